import csv
from types import SimpleNamespace

import pytest

pytest.importorskip('matplotlib')
from benchmarks import cost_map


class Known:
    """A contender whose updates take known times: methods cost more on larger batches, and rounds differ."""

    def __init__(self, options, *, common, num_turns):
        self.label, self.rounds = options or 'plain', 0
        batch_size = int(common.split()[-1])
        self.ratio = 1.0 if not options else batch_size * (2 if 'gradaug' in options else 3)
        self.run = SimpleNamespace(device=SimpleNamespace(type='cpu'))

    def step(self):
        self.rounds += 1
        slow = 10.0 if self.rounds % 2 else 1.0
        return 7.0, self.ratio * slow


def test_each_cell_is_the_median_cost_in_its_rounds_and_every_update_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cost_map, 'Contender', Known)
    cost_map.main(
        [
            '--name',
            'known',
            '--networks',
            'a',
            'b',
            '--batch-sizes',
            '2',
            '4',
            '--rounds',
            '3',
            '--output',
            str(tmp_path),
        ]
        + ['--with', '--gradaug 3', '--with', '--maxup 4']
    )
    report, table, picture = (next(tmp_path.glob(f'*known.{kind}')) for kind in ('md', 'csv', 'png'))
    text = report.read_text()
    assert '| a | 2 | 4.00 (4.00 to 4.00) | 6.00 (6.00 to 6.00) |' in text
    assert '| b | 4 | 8.00 (8.00 to 8.00) | 12.00 (12.00 to 12.00) |' in text
    assert f'({picture.name})' in text and 'processor time' in text
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 2 * 2 * 3 * 3 and {row['seconds'] for row in rows} == {'7.0'}
