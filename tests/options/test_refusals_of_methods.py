"""What refinement and GradAug cannot work with is refused by option and value."""

import pytest

from tests.helpers.options import assert_refused

REFUSALS = [
    # refinement
    ('--epochs 0', ['--epochs 0', '--refine-epochs']),
    ('--refine-epochs -1', ['--refine-epochs -1']),
    ('--refine-epochs 2 --refine-lr 0', ['--refine-lr 0', 'positive']),
    ('--refine-epochs 2 --refine-lr -1', ['--refine-lr -1', 'negative']),
    ('--refine-epochs 2 --epochs 5 --refine-fade 6', ['--refine-fade 6', '--epochs 5']),
    ('--refine-epochs 2 --epochs 5 --warmup-prefix --warmup-epochs 3 --refine-fade 9', ['--refine-fade 9']),
    ('--refine-epochs 2 --naflex-loader', ['--refine-epochs 2', '--naflex-loader']),
    ('--refine-epochs 2 --aug-splits 2 --jsd-loss', ['--refine-epochs 2', '--jsd-loss']),
    ('--manifold-mixup 1 --torchscript', ['--manifold-mixup 1', '--torchscript']),
    # GradAug
    ('--gradaug -1', ['--gradaug -1']),
    ('--gradaug-min-width 0', ['--gradaug-min-width 0']),
    ('--gradaug-min-width 1.1', ['--gradaug-min-width 1.1']),
    ('--gradaug-width-divisor 0', ['--gradaug-width-divisor 0']),
    ('--gradaug-every 0', ['--gradaug-every 0']),
    ('--gradaug-weight 0', ['--gradaug-weight 0']),
    ('--gradaug-sizes 32 0', ['--gradaug-sizes 32 0']),
    ('--gradaug 2 --gradaug-sizes 0.5 1.5', ['--gradaug-sizes 0.5 1.5', 'whole numbers']),
    ('--gradaug 2 --gradaug-sizes -0.5', ['--gradaug-sizes -0.5', 'positive']),
    ('--gradaug 2 --gradaug-sizes big', ['--gradaug-sizes', "'big'"]),
    ('--gradaug 2 --gradaug-sizes 177', ['--gradaug-sizes 177', 'training size, 176']),  # resnet10t's own
    ('--gradaug 2 --gradaug-sizes 32 28 --img-size 28', ['--gradaug-sizes 32 28', 'training size, 28']),
    ('--gradaug 2 --gradaug-sizes 32 --input-size 3 28 40', ['--gradaug-sizes 32', 'training size, 28']),
    ('--gradaug 2 --gradaug-sizes 32 --train-img-sizes 16 24', ['--gradaug-sizes 32', 'training size, 24']),
    ('--gradaug-widths none', ['--gradaug-widths', "'none'", 'uniform']),
    ('--gradaug-depth-mode block', ['--gradaug-depth-mode', "'block'", 'batch']),
    ('--gradaug 2 --epochs 10 --gradaug-start-epoch 10', ['--gradaug-start-epoch 10', '10 epochs']),
    (
        '--gradaug 2 --epochs 10 --refine-epochs 5 --refine-plain --gradaug-start-epoch 12',
        ['--gradaug-start-epoch 12', '10 epochs'],
    ),
    ('--gradaug-depth-rate 1', ['--gradaug-depth-rate 1']),
    ('--gradaug-transforms scale scale', ['--gradaug-transforms scale scale', 'once']),
    ('--gradaug 2 --gradaug-transforms crop scale', ['--gradaug-transforms crop scale', 'one size']),
    (
        '--gradaug 2 --gradaug-transforms rotate --input-size 3 32 48',
        ['--gradaug-transforms rotate', '--input-size 3 32 48'],
    ),
    (
        '--gradaug 2 --gradaug-transforms flip --gradaug-sizes 32 28',
        ['--gradaug-sizes 32 28', 'scale and crop'],
    ),
    ('--gradaug 2 --gradaug-subnet depth --gradaug-compile 4', ['--gradaug-compile 4', '--gradaug-subnet depth']),
    ('--gradaug 2 --unlabeled-split val --use-multi-epochs-loader', ['--unlabeled-split val', 'drawn anew']),
    ('--gradaug 2 --torchscript', ['--gradaug 2', '--torchscript']),
    ('--gradaug 2 --aug-splits 2', ['--gradaug 2', '--aug-splits 2']),
    ('--gradaug 2 --aug-splits 2 --jsd-loss', ['--gradaug 2', '--jsd-loss']),
    ('--gradaug 2 --naflex-loader', ['--gradaug 2', '--naflex-loader']),
    ('--gradaug 2 --kd-model-name resnet18', ['--gradaug 2', '--kd-model-name resnet18']),
    ('--gradaug 2 --opt adahessian', ['--gradaug 2', '--opt adahessian']),
    ('--gradaug 2 --opt Lookahead_AdaHessian', ['--gradaug 2', '--opt Lookahead_AdaHessian']),
]


@pytest.mark.parametrize(('line', 'parts'), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_what_cannot_work_is_refused_by_option_and_value(workplace, line, parts):
    assert_refused(line, parts)
