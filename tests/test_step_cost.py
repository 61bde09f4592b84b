import csv
import time

import pytest
import torch

from benchmarks.contender import Contender, Turns, check_comparable, random_batches
from benchmarks.report import ROOT, Spread, environment, markdown_table, paired_ratios, write_report
from benchmarks.step_cost import MIB, Result, interleave, main, report
from regaug.errors import OptionError

SMALL = '--model test_resnet --img-size 32 --num-classes 10 -b 4 --device cpu --lr 0.1 --sched none'


class FakeContender:
    """Takes a known time for each update."""

    def __init__(self, seconds, log):
        self.seconds = seconds
        self.log = log

    def step(self):
        self.log.append(self.seconds)
        return self.seconds, 2 * self.seconds


def turns_of(num_turns, batches_per_turn=1):
    batches = [(torch.full((1,), float(index)), index) for index in range(3)]
    return Turns(batches, num_turns=num_turns, batches_per_turn=batches_per_turn, device=torch.device('cpu'))


def test_ratio_cancels_what_slows_a_round_down():
    assert paired_ratios([2.0, 20.0, 3.0], [1.0, 10.0, 2.0]) == [2.0, 2.0, 1.5]


def test_spread_gives_median_and_extremes():
    spread = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert spread == Spread(median=2.5, low=1.0, high=10.0, count=4)
    assert spread.text(2) == '2.50 (1.00 to 10.00)'


def test_interleaving_gives_each_configuration_one_update_a_round_and_drops_the_warm_up():
    log = []
    results = [Result('a'), Result('b'), Result('c')]
    contenders = [FakeContender(seconds, log) for seconds in (1.0, 2.0, 3.0)]
    raw = interleave(contenders, results, warmup=2, rounds=8)
    rounds = [tuple(log[start : start + 3]) for start in range(0, len(log), 3)]
    assert len(rounds) == 10
    assert all(sorted(order) == [1.0, 2.0, 3.0] for order in rounds)
    assert len(set(rounds)) > 1
    assert [result.seconds for result in results] == [[1.0] * 8, [2.0] * 8, [3.0] * 8]
    assert results[1].processor_seconds == [4.0] * 8
    assert [row[2] for row in raw] == log[6:]
    assert raw[-1][0] == 7


def test_loop_waits_after_each_update_for_its_next_turn():
    seen = []

    def loop(loader):
        for _, target in loader:
            seen.append(target)

    turns = turns_of(num_turns=3, batches_per_turn=2)
    turns.start(loop)
    assert len(turns) == 6
    progress = []
    for _ in range(3):
        seconds, _ = turns.step()
        assert seconds > 0
        progress.append(list(seen))
    assert progress == [[0, 1], [0, 1, 2, 0], [0, 1, 2, 0, 1, 2]]


def test_loop_has_ended_when_its_last_update_returns():
    ended = []

    def loop(loader):
        for _ in loader:
            pass
        time.sleep(0.05)
        ended.append(True)

    turns = turns_of(num_turns=2)
    turns.start(loop)
    turns.step()
    assert not ended
    turns.step()
    assert ended


def test_failing_loop_is_reported_with_its_cause():
    def loop(loader):
        for _, target in loader:
            if target == 1:
                raise ZeroDivisionError

    turns = turns_of(num_turns=3)
    turns.start(loop)
    turns.step()
    with pytest.raises(RuntimeError, match='stopped before its last update') as caught:
        turns.step()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize('options', ['', '--opt adamw', '--amp --amp-dtype bfloat16 --channels-last', '--cutmix 1'])
def test_engine_and_bare_loop_make_the_same_updates(options):
    contenders = [Contender(f'{loop} {options}', common=SMALL, num_turns=3) for loop in ('bare', '')]
    start = [parameter.detach().clone() for parameter in contenders[0].run.model.parameters()]
    for _ in range(3):
        for contender in contenders:
            contender.step()
    bare, engine = (list(contender.run.model.parameters()) for contender in contenders)
    assert not any(torch.equal(before, after) for before, after in zip(start, bare, strict=True))
    for expected, parameter in zip(bare, engine, strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=0)


def test_forward_pass_has_a_third_of_the_operations_of_an_update():
    counts = []
    for loop in ('bare', 'forward'):
        contender = Contender(loop, common=SMALL, num_turns=1, count_flops=True)
        contender.step()
        counts.append(contender.flops)
    # The stem's input needs no gradient, so an update takes a little less than three forward passes.
    assert 1 / 3 <= counts[1] / counts[0] < 0.36


def test_batches_are_the_same_for_all_configurations_of_one_shape():
    key = ((2, 3, 8, 8), 5, torch.float32, torch.device('cpu'))
    hard, soft = random_batches(*key, False), random_batches(*key, True)
    assert random_batches(*key, False) is hard
    for (input, target), (same_input, soft_target) in zip(hard, soft, strict=True):
        torch.testing.assert_close(input, same_input)
        assert input.min() >= 0 and input.max() <= 1
        assert soft_target.argmax(1).tolist() == target.tolist()
    assert not torch.equal(hard[0][0], hard[1][0])


def test_configurations_of_different_shape_are_refused():
    contenders = [Contender(options, common=SMALL, num_turns=1) for options in ('', '-b 2')]
    with pytest.raises(OptionError, match=r'differ in their batches: \(2, 3, 32, 32\), \(4, 3, 32, 32\)'):
        check_comparable(contenders)


def test_report_gives_ratios_to_the_first_configuration():
    base = Result('bare', [1.0, 2.0, 4.0], [1.0, 1.0, 1.0], peak=100 * MIB, flops=10)
    other = Result('--gradaug 3', [2.0, 5.0, 8.0], [3.0, 3.0, 3.0], peak=102 * MIB, flops=25)
    text = report('demo', [base, other], [('batch', '[8]')], limit=1.05)
    row = next(line for line in text.splitlines() if '--gradaug' in line)
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells == [
        '`--gradaug 3`',
        '5.0000 (2.0000 to 8.0000)',
        '2.000 (2.000 to 2.500)',
        '2.143',
        '3.000 (3.000 to 3.000)',
        '2.500',
        '102.0',
        '1.020',
        'above 1.05',
    ]
    assert '- batch: [8]' in text.splitlines()


def test_table_keeps_bars_inside_a_cell():
    assert markdown_table(['a', 'b'], [['x|y', 1]]).splitlines() == ['| a | b |', '| --- | ---: |', '| x\\|y | 1 |']


def test_environment_names_no_folder():
    values = dict(environment())
    assert values['commit'] and torch.__version__ in values['python, torch, timm, regaug']
    assert not any(str(ROOT) in value for value in values.values())


def test_raw_numbers_lie_beside_the_report(tmp_path):
    path = write_report(tmp_path / 'new', 'demo', '# text\n', ['round', 'seconds'], [(0, 0.5), (1, 0.25)])
    assert path.read_text() == '# text\n'
    assert path.name.endswith('-demo.md')
    with open(path.with_suffix('.csv'), newline='') as file:
        assert list(csv.reader(file)) == [['round', 'seconds'], ['0', '0.5'], ['1', '0.25']]


@pytest.mark.parametrize('limit, status', [('0.000001', 1), ('1000000', 0)])
def test_exit_status_tells_whether_the_limit_held(tmp_path, capsys, limit, status):
    argv = ['--name', 'demo', '--common', SMALL, '--base', 'bare', '--with', '--clip-grad 1', '--rounds', '2']
    assert (
        main([*argv, '--warmup', '1', '--memory-updates', '0', '--limit', limit, '--output', str(tmp_path)]) == status
    )
    assert '`--clip-grad 1`' in capsys.readouterr().out
    assert len(next(tmp_path.glob('*-demo.csv')).read_text().splitlines()) == 1 + 2 * 2
