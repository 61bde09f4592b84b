"""The cost benchmark of evaluations: both sides make the same passes, and the limit decides the exit status."""

import csv

import pytest
import timm
import torch

from benchmarks import evaluations

OPTIONS = ['--model', 'test_resnet', '--batch-size', '4', '--batches', '2', '--size', '32', '--rounds', '1']


def test_evaluation_and_bare_loop_make_the_same_number_of_passes(tmp_path):
    args = evaluations.parse([*OPTIONS, '--output', str(tmp_path)])
    network = timm.create_model('test_resnet').eval()
    passes = []
    network.conv1.register_forward_hook(lambda module, input, output: passes.append(len(output)))
    for name, *runs in evaluations.pairs(args, network, tmp_path):
        counts = []
        for run in runs:
            passes.clear()
            with torch.no_grad():
                run()
            counts.append(sum(passes))
        assert counts[0] == counts[1] > 0, name


@pytest.mark.parametrize(('limit', 'status'), [('1000', 0), ('0.001', 1)])
def test_limit_decides_the_exit_status(tmp_path, limit, status, capsys):
    assert evaluations.main([*OPTIONS, '--output', str(tmp_path), '--limit', limit, '--warmup', '0']) == status
    (report,) = tmp_path.glob('*.md')
    assert report.read_text() in capsys.readouterr().out
    with report.with_suffix('.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 2
    assert {row['kind'] for row in rows} == {'evaluation', 'bare'}
