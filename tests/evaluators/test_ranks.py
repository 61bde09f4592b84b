"""validate.py in two processes: the numbers of one process, although the images cannot be dealt out evenly."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from regaug.evaluators.accuracy import RealLabels
from regaug.options import args_as_yaml, parse_train
from tests.helpers.ranks import run_on_ranks
from tests.helpers.validate import NUM_CLASSES, PIXELS, validate_rank

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none


@pytest.fixture(scope='module')
def argv(folder, checkpoint, tmp_path_factory):
    """Command lines by what they evaluate; the split `odd` lacks one of the validation images."""
    root = tmp_path_factory.mktemp('odd')
    for path in sorted(folder.glob('val/*/*.JPEG'))[1:]:
        copied = root / 'odd' / path.parent.name / path.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.symlink_to(path)
    (root / 'valid.txt').write_text('\n'.join(map(str, reversed(range(NUM_CLASSES)))))
    data = ['--data-dir', root, '--split', 'odd', '--checkpoint', checkpoint, '-b', 16]
    for severity in (1, 2):
        (root / 'corrupted' / 'fog').mkdir(parents=True, exist_ok=True)
        (root / 'corrupted' / 'fog' / str(severity)).symlink_to(root / 'odd')
    mixing = ['--mixup', 0.8, '--cutmix', 1.0, '--aa', 'rand-m9-inc1', '--reprob', 0.3]
    run = ['--data-dir', root, '--train-split', 'odd', '--num-classes', NUM_CLASSES, '--img-size', PIXELS, *mixing]
    args = parse_train([str(item) for item in ('--model', 'test_resnet', '--device', 'cpu', *run)])
    (root / 'args.yaml').write_text(args_as_yaml(args))
    return {
        'risk': [*data, '--risk', root / 'args.yaml'],
        'corruptions': [*data, '--imagenet-c', root / 'corrupted'],
        'certify': [*data, '--certify', 0.25, '--certify-n', 40, '--certify-n0', 10, '--certify-skip', 13],
        'spectrum': [*data, '--spectrum', root / 'spectrum'],
        'widths': [*data, '--metrics-avg', 'macro', '--ece', '--width', 1.0, 0.5, '--calibrate-split', 'odd'],
        'fgsm': [*data, '--attack', 'fgsm', '--attack-eps', 0.05, 0.2],
        'pgd': [*data, '--attack', 'pgd', '--attack-steps', 2, '--attack-restarts', 2],
        'valid labels': [*data, '--valid-labels', root / 'valid.txt', '--no-prefetcher'],
    }


@pytest.fixture(scope='module')
def ranks(argv, tmp_path_factory):
    """What each of two processes says, by case."""
    cases = [*argv, 'real labels']
    return run_on_ranks(tmp_path_factory.mktemp('ranks'), functools.partial(case_on_rank, argv), cases)


def case_on_rank(argv, case, rank, world_size):
    if case == 'real labels':
        return judge_real_labels(rank, world_size)
    return validate_rank(argv[case], rank, world_size)


def judge_real_labels(rank, world_size):
    """Seven images with outputs of their own, judged by re-assessed labels."""
    output = torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
    judge = RealLabels([{i % 3} for i in range(7)])
    for rows in output[rank::world_size].split(2):
        judge.update(rows, torch.zeros(len(rows), dtype=torch.long))
    return judge.compute(distributed=world_size > 1)


@pytest.mark.parametrize(
    'case', ['widths', 'valid labels', 'fgsm', 'pgd', 'corruptions', 'certify', 'spectrum', 'risk']
)
def test_two_ranks_give_the_rows_of_one_process(argv, ranks, case):
    if case == 'spectrum':
        (written,) = Path(argv[case][-1]).glob('*.npz')
        values = dict(np.load(written))
    expected = validate_rank(argv[case], 0, 1)
    assert [rows[case] for rows in ranks] == [expected, expected]
    if case == 'spectrum':
        for name, value in np.load(written).items():
            assert np.allclose(values[name], value, rtol=1e-9, atol=1e-9 * np.max(value)), name


def test_real_labels_belong_to_the_same_images_in_every_process(ranks):
    expected = judge_real_labels(0, 1)
    assert 0 < expected['top1'] < 100
    assert [metrics['real labels'] for metrics in ranks] == [expected, expected]


@pytest.mark.slow
def test_torchrun_prints_once_and_writes_once(argv, start, tmp_path):
    common = ['--model', 'test_resnet', '--num-classes', NUM_CLASSES, '--img-size', PIXELS, '--device', 'cpu', '-j', 0]
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2]
    files = ['--results-file', tmp_path / 'rows.json', '--results-format', 'json']
    status, output = start(*launcher, 'validate.py', *common, *argv['widths'], *files).finish()
    assert (status, output.count('--result\n')) == (0, 1), output
    assert json.loads((tmp_path / 'rows.json').read_text()) == validate_rank(argv['widths'], 0, 1)
