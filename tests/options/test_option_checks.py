"""Every combination of options that cannot work is refused by option and value; what timm runs is accepted."""

import logging
import random
import sys

import numpy as np
import pytest
import torch
from timm.data import dataset_factory
from timm.optim import list_optimizers

from regaug.errors import OptionError
from regaug.options import parse_train, parse_validate, train_parser, validate_parser
from regaug.options.checks import data as data_checks
from regaug.options.checks import model as model_checks
from regaug.options.checks import ranges, schedule

TRAIN_BASE = ['--device', 'cpu', '--dataset', 'regaug/digits', '--model', 'resnet10t']
VALIDATE_BASE = TRAIN_BASE


@pytest.fixture(autouse=True)
def single_process(monkeypatch):
    for name in ('WORLD_SIZE', 'SLURM_NTASKS'):
        monkeypatch.delenv(name, raising=False)


def test_parsing_and_checking_draw_no_random_numbers():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    parse_train([*TRAIN_BASE, '--aa', 'rand-m9-mstd0.5', '--opt', 'lookahead_adamw', '--reprob', '0.3', '--mixup', '1'])
    assert states() == before


@pytest.mark.parametrize(
    ('flags', 'bad', 'reason'),
    [
        (ranges.TRAIN_AT_LEAST_ONE, '0', 'at least 1'),
        (ranges.TRAIN_NOT_NEGATIVE, '-1', 'negative'),
        (ranges.TRAIN_POSITIVE, '0', 'positive'),
        (ranges.TRAIN_FRACTIONS, '-1', 'between 0 and 1'),
        (ranges.TRAIN_FRACTIONS, '2', 'between 0 and 1'),
    ],
)
def test_every_training_number_is_held_to_its_range(flags, bad, reason):
    for flag in flags:
        values = [bad] * 3 if flag == '--input-size' else [bad]
        with pytest.raises(OptionError, match=rf'^{flag} {bad}.*{reason}'):
            parse_train([*TRAIN_BASE, flag, *values])


@pytest.mark.parametrize(
    ('flags', 'bad', 'reason'),
    [
        (ranges.VALIDATE_AT_LEAST_ONE, '0', 'at least 1'),
        (ranges.VALIDATE_NOT_NEGATIVE, '-1', 'negative'),
        (ranges.VALIDATE_POSITIVE, '0', 'positive'),
    ],
)
def test_every_validation_number_is_held_to_its_range(flags, bad, reason):
    for flag in flags:
        values = [bad] * 3 if flag == '--input-size' else [bad]
        with pytest.raises(OptionError, match=rf'^{flag} {bad}.*{reason}'):
            parse_validate([*VALIDATE_BASE, flag, *values])


TRAIN_REFUSALS = [
    # numbers
    ('--epochs -1', ['--epochs -1']),
    ('--batch-size 0', ['--batch-size 0']),
    ('--workers -1', ['--workers -1']),
    ('--grad-accum-steps 0', ['--grad-accum-steps 0']),
    ('--checkpoint-hist 0', ['--checkpoint-hist 0']),
    ('--val-interval 0', ['--val-interval 0']),
    ('--log-interval 0', ['--log-interval 0']),
    ('--recount -1', ['--recount -1']),
    ('--clip-grad 0', ['--clip-grad 0']),
    ('--max-bad-updates -1', ['--max-bad-updates -1']),
    ('--smoothing 1', ['--smoothing 1']),
    ('--smoothing -0.1', ['--smoothing -0.1']),
    ('--seed -1', ['--seed -1']),
    ('--seed 4294967296', ['--seed 4294967296']),
    # device and formats
    ('--device nvidia', ['--device nvidia', '--device cpu']),
    ('--device-modules no_such_backend', ['--device-modules', 'no_such_backend']),
    ('--amp-dtype float64', ['--amp-dtype float64', 'float16', 'bfloat16']),
    ('--model-dtype fp8', ['--model-dtype fp8', 'float32']),
    ('--amp --model-dtype bfloat16', ['--model-dtype bfloat16', '--amp']),
    ('--fuser fast', ['--fuser fast', 'nvfuser']),
    ('--torchcompile inducter', ['--torchcompile inducter', 'did you mean inductor']),
    ('--torchcompile --torchcompile-mode fast', ['--torchcompile-mode fast', 'max-autotune']),
    ('--torchscript --torchcompile', ['--torchscript', '--torchcompile inductor']),
    ('--torchscript --sync-bn', ['--torchscript', '--sync-bn']),
    # model, weights, input
    ('--model resnet5O', ['--model resnet5O', 'did you mean', 'resnet50']),
    ('--model resnet50.a9_in1k', ['--model resnet50.a9_in1k', "'a9_in1k'", 'a1_in1k']),
    ('--model timm/resnet50', ['--model timm/resnet50', 'hf-hub:timm/resnet50']),
    ('--model foo:resnet50', ['--model foo:resnet50', 'foo']),
    ('--model local-dir:no/such/model', ['--model local-dir:no/such/model', 'config.json']),
    ('--model resnet200 --pretrained', ['--model resnet200', '--pretrained']),
    ('--pretrained-path gone.pth', ['--pretrained-path gone.pth', 'no such file']),
    ('--initial-checkpoint gone.pth', ['--initial-checkpoint gone.pth', 'no such file']),
    ('--resume gone.pth', ['--resume gone.pth', 'no such file']),
    ('--input-size 3 0 32', ['--input-size 3 0 32']),
    ('--img-size 0', ['--img-size 0']),
    ('--input-size 1 8 8 --in-chans 3', ['--input-size 1 8 8', '--in-chans 3']),
    ('--mean 0.5 0.5', ['--mean 0.5 0.5', '3 input channels']),
    ('--std 0.5 0.5 0.5 --in-chans 1', ['--std 0.5 0.5 0.5', '1 input channels']),
    ('--interpolation cubic', ['--interpolation cubic', 'bicubic']),
    ('--train-interpolation cubic', ['--train-interpolation cubic', 'bicubic']),
    # data
    ('--dataset regaug/letters', ['--dataset regaug/letters', 'regaug/digits']),
    ('--dataset torsch/cifar10', ['--dataset torsch/cifar10', 'did you mean torch']),
    ('--dataset torch/cifar11 --data-dir .', ['--dataset torch/cifar11', 'cifar10']),
    ('--dataset torch/cifar10', ['--data-dir', '--dataset torch/cifar10', 'none was given']),
    ('--dataset torch/cifar10 --data-dir gone', ['--data-dir gone', 'no such folder']),
    ('--dataset=', ['--data-dir', "--dataset ''", 'none was given']),
    ('--dataset= --data-dir gone', ['--data-dir gone', 'no such folder']),
    ('--dataset= gone', ['data gone', 'no such folder']),
    ('--dataset= --data-dir empty', ['--data-dir empty', 'is empty']),
    ('--dataset= --data-dir notes.txt', ['--data-dir notes.txt', '.tar']),
    ('--dataset= --data-dir images --class-map gone.txt', ['--class-map gone.txt', 'no such file']),
    ('--dataset= --data-dir images --class-map map.json', ['--class-map map.json', '.txt']),
    ('--input-img-mode GREY', ['--input-img-mode GREY', 'RGB']),
    ('--label-split 2', ['--label-split 2', '--labels-per-class']),
    ('--labels-per-class 0', ['--labels-per-class 0']),
    ('--aug-repeats 3', ['--aug-repeats 3', 'torchrun']),
    # scheduled sizes and NaFlex
    ('--train-batch-sizes 8', ['--train-batch-sizes 8', '--train-img-sizes']),
    ('--train-size-probs 1', ['--train-size-probs 1', '--train-img-sizes']),
    ('--train-batches-per-epoch 5', ['--train-batches-per-epoch 5', '--train-img-sizes']),
    ('--train-size-schedule progressive', ['--train-size-schedule progressive', '--train-img-sizes']),
    ('--train-img-sizes 8 16 --train-batch-sizes 4', ['--train-batch-sizes 4', '--train-img-sizes 8 16']),
    ('--train-img-sizes 8 16 --train-size-probs 1', ['--train-size-probs 1', '--train-img-sizes 8 16']),
    ('--train-img-sizes 8 16 --train-size-probs 0 0', ['--train-size-probs 0.0 0.0', 'above 0']),
    ('--train-img-sizes 8 --train-size-schedule progressive', ['--train-img-sizes 8', 'progressive']),
    (
        '--train-img-sizes 8 16 --train-size-schedule progressive --epochs 0 --refine-epochs 1',
        ['--epochs 0', 'progressive'],
    ),
    ('--train-img-sizes 8 --use-multi-epochs-loader', ['--train-img-sizes 8', '--use-multi-epochs-loader']),
    ('--train-img-sizes 8 --aug-splits 2', ['--train-img-sizes 8', '--aug-splits 2']),
    ('--train-img-sizes 8 --naflex-loader', ['--train-img-sizes 8', '--naflex-loader']),
    ('--naflex-patch-size-probs 1', ['--naflex-patch-size-probs 1', '--naflex-patch-sizes']),
    (
        '--naflex-patch-sizes 8 16 --naflex-patch-size-probs 1',
        ['--naflex-patch-size-probs 1', '--naflex-patch-sizes 8 16'],
    ),
    ('--naflex-patch-sizes 8 --naflex-patch-size-probs 0', ['--naflex-patch-size-probs 0', 'above 0']),
    ('--naflex-loader --aug-splits 2', ['--naflex-loader', '--aug-splits 2']),
    ('--naflex-loader --jsd-loss', ['--naflex-loader', '--jsd-loss']),
    # augmentation, mixing, splits
    ('--aa rand-q9', ['--aa rand-q9', 'policy']),
    ('--aa rand-m9-mstdx1', ['--aa rand-m9-mstdx1', 'policy']),
    ('--aa autoaugment', ['--aa autoaugment', 'policy']),
    ('--train-crop-mode center', ['--train-crop-mode center', 'rrc']),
    ('--remode noise', ['--remode noise', 'pixel']),
    ('--scale 0.5', ['--scale 0.5', 'two values']),
    ('--ratio 2 0.5', ['--ratio 2.0 0.5', 'two values']),
    ('--cutmix-minmax 0.5', ['--cutmix-minmax 0.5', 'two values']),
    ('--mixup-mode image', ['--mixup-mode image', 'batch, pair, elem']),
    ('--mixup-mode half --no-prefetcher', ['--mixup-mode half', 'batch, pair, elem']),
    ('--mixup 0.2 --batch-size 7', ['--batch-size 7', '--mixup 0.2', 'even']),
    ('--cutmix 1 --batch-size 7 --no-prefetcher', ['--batch-size 7', '--cutmix 1.0', 'even']),
    ('--cutmix-minmax 0.2 0.8 --batch-size 7', ['--batch-size 7', '--cutmix-minmax 0.2 0.8', 'even']),
    (
        '--mixup 0.2 --train-img-sizes 8 16 --train-batch-sizes 8 7',
        ['--train-batch-sizes 8 7', '--mixup 0.2', 'even'],
    ),
    ('--jsd-loss', ['--jsd-loss', '--aug-splits', 'not 0']),
    ('--aug-splits 1', ['--aug-splits 1', '2 and more']),
    ('--aug-splits 2 --mixup 0.2', ['--aug-splits 2', '--mixup 0.2']),
    ('--aug-splits 2 --cutmix-minmax 0.2 0.8', ['--aug-splits 2', '--cutmix-minmax 0.2 0.8']),
    ('--aug-splits 2 --no-aug', ['--aug-splits 2', '--no-aug']),
    ('--aug-splits 2 --no-prefetcher', ['--aug-splits 2', '--no-prefetcher']),
    ('--split-bn', ['--split-bn', '--aug-splits', '--resplit']),
    ('--split-bn --resplit --batch-size 7', ['--batch-size 7', '--split-bn']),
    ('--pad-crop 4 --no-aug', ['--pad-crop 4', '--no-aug']),
    ('--pad-crop 4 --train-crop-mode rrc', ['--pad-crop 4', '--train-crop-mode rrc']),
    ('--pad-crop 4 --train-img-sizes 8', ['--pad-crop 4', '--train-img-sizes 8']),
    ('--pad-crop 4 --naflex-loader', ['--pad-crop 4', '--naflex-loader']),
    ('--pad-crop -4', ['--pad-crop -4']),
    # optimiser and schedule
    ('--opt adamq', ['--opt adamq', 'did you mean', 'adam']),
    ('--opt lookahed_adam', ['--opt lookahed_adam', 'optimiser']),
    ('--opt adamw --opt-betas 0.9', ['--opt-betas 0.9', '--opt adamw', '2 values']),
    ('--opt adamw --opt-betas 0.9 1.5', ['--opt adamw', '--opt-betas 0.9 1.5', 'cannot be built']),
    ('--opt sgd --opt-kwargs wings=2', ['--opt sgd', '--opt-kwargs wings=2', 'wings']),
    ('--opt sgd --opt-kwargs lr=2', ['--opt sgd', '--opt-kwargs lr=2', 'multiple values']),
    ('--clip-mode global', ['--clip-mode global', 'agc']),
    ('--sched cosin', ['--sched cosin', 'did you mean cosine']),
    ('--sched plateau --sched-on-updates', ['--sched plateau', '--sched-on-updates']),
    ('--sched step --decay-epochs 0', ['--decay-epochs 0', '--sched step']),
    ('--sched wsd --epochs 10', ['--sched wsd', '--epochs 10', 'decay_epochs']),
    ('--sched multistep --decay-milestones 60 30', ['--decay-milestones 60 30', 'ascending']),
    ('--lr-base-scale log', ['--lr-base-scale log', 'sqrt']),
    ('--lr-noise 0.1 0.5 0.9', ['--lr-noise 0.1 0.5 0.9', 'two values']),
    # refinement
    ('--epochs 0', ['--epochs 0', '--refine-epochs']),
    ('--refine-epochs -1', ['--refine-epochs -1']),
    ('--refine-epochs 2 --refine-lr 0', ['--refine-lr 0', 'positive']),
    ('--refine-epochs 2 --refine-lr -1', ['--refine-lr -1', 'negative']),
    ('--refine-epochs 2 --epochs 5 --refine-fade 6', ['--refine-fade 6', '--epochs 5']),
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
    ('--gradaug-depth-rate 1', ['--gradaug-depth-rate 1']),
    ('--gradaug-transforms scale scale', ['--gradaug-transforms scale scale', 'once']),
    (
        '--gradaug 2 --gradaug-transforms rotate --input-size 3 32 48',
        ['--gradaug-transforms rotate', '--input-size 3 32 48'],
    ),
    (
        '--gradaug 2 --gradaug-transforms flip --gradaug-sizes 32 28',
        ['--gradaug-sizes 32 28', 'scale and crop'],
    ),
    ('--gradaug 2 --gradaug-subnet depth --gradaug-compile 4', ['--gradaug-compile 4', '--gradaug-subnet depth']),
    ('--gradaug 2 --torchscript', ['--gradaug 2', '--torchscript']),
    ('--gradaug 2 --aug-splits 2', ['--gradaug 2', '--aug-splits 2']),
    ('--gradaug 2 --aug-splits 2 --jsd-loss', ['--gradaug 2', '--jsd-loss']),
    ('--gradaug 2 --naflex-loader', ['--gradaug 2', '--naflex-loader']),
    ('--gradaug 2 --kd-model-name resnet18', ['--gradaug 2', '--kd-model-name resnet18']),
    ('--gradaug 2 --opt adahessian', ['--gradaug 2', '--opt adahessian']),
    ('--gradaug 2 --opt Lookahead_AdaHessian', ['--gradaug 2', '--opt Lookahead_AdaHessian']),
    # the rest
    ('--worker-seeding none', ['--worker-seeding none', 'all, part']),
    ('--dist-bn mean', ['--dist-bn mean', 'reduce, broadcast']),
    ('--eval-metric accuracy', ['--eval-metric accuracy', 'top1, top5, loss']),
    ('--wandb-resume-id abc', ['--wandb-resume-id abc', '--log-wandb']),
    ('--kd-model-name resnet5O', ['--kd-model-name resnet5O', 'resnet50']),
    ('--kd-model-name resnet200', ['--kd-model-name resnet200', 'teacher']),
    ('--kd-model-name resnet18 --kd-loss-type mse', ['--kd-loss-type mse', 'kl']),
    ('--exact-resume --use-multi-epochs-loader', ['--exact-resume', '--use-multi-epochs-loader']),
    ('--exact-resume --sched plateau', ['--exact-resume', '--sched plateau']),
]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A current folder with one image folder, an empty one and two stray files."""
    (tmp_path / 'images' / 'train' / 'cat').mkdir(parents=True)
    (tmp_path / 'images' / 'map.json').write_text('{}')
    (tmp_path / 'images' / 'map.txt').write_text('cat\n')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'notes.txt').write_text('')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(('line', 'parts'), TRAIN_REFUSALS, ids=[line for line, _ in TRAIN_REFUSALS])
def test_training_refuses_by_option_and_value(workplace, line, parts):
    with pytest.raises(OptionError) as caught:
        parse_train([*TRAIN_BASE, *line.split(' ')])
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert '\n' not in str(caught.value)


VALIDATE_REFUSALS = [
    ('--device nvidia', ['--device nvidia', '--device cpu']),
    ('--amp --model-dtype float16', ['--model-dtype float16', '--amp']),
    ('--fuser fast', ['--fuser fast']),
    ('--torchcompile inducter', ['--torchcompile inducter', 'inductor']),
    ('--model resnet5O', ['--model resnet5O', 'resnet50']),
    ('--model resnet200', ['--model resnet200', '--checkpoint']),
    ('--model nothing*', ['--model nothing*', 'no pretrained model']),
    ('--checkpoint gone.pth', ['--checkpoint gone.pth']),
    ('--input-size 3 32 0', ['--input-size 3 32 0']),
    ('--mean 0.5 0.5', ['--mean 0.5 0.5']),
    ('--interpolation random', ['--interpolation random']),
    ('--dataset= --data-dir gone', ['--data-dir gone']),
    ('--dataset=', ['--data-dir', 'none was given']),
    ('--crop-mode middle', ['--crop-mode middle', 'center']),
    ('--results-format xml', ['--results-format xml', 'json']),
    ('--real-labels gone.json', ['--real-labels gone.json']),
    ('--valid-labels gone.txt', ['--valid-labels gone.txt']),
    ('--metrics-avg mean', ['--metrics-avg', "'mean'", 'macro']),
    ('--width 0', ['--width 0']),
    ('--width 1.0 1.5', ['--width 1.0 1.5']),
    ('--width 0.9 --torchscript', ['--width 0.9', '--torchscript']),
    ('--width 0.9 --naflex-loader', ['--width 0.9', '--naflex-loader']),
    ('--calibrate-images 0', ['--calibrate-images 0']),
    ('--seed -1', ['--seed -1']),
]


@pytest.mark.parametrize(('line', 'parts'), VALIDATE_REFUSALS, ids=[line for line, _ in VALIDATE_REFUSALS])
def test_validation_refuses_by_option_and_value(workplace, line, parts):
    with pytest.raises(OptionError) as caught:
        parse_validate([*VALIDATE_BASE, *line.split(' ')])
    assert all(part in str(caught.value) for part in parts), str(caught.value)


ACCEPTED = [
    '--resume auto',
    '--model hf-hub:timm/resnet18.a1_in1k',
    '--model hf_hub:timm/resnet18.a1_in1k',
    '--model resnet50.a1_in1k --pretrained',
    '--model convnext_tiny_in22ft1k --pretrained',  # an old name that timm maps to a new one
    '--model resnet200 --pretrained --pretrained-path notes.txt',
    '--dataset= images',
    '--dataset= --data-dir images --class-map map.txt',
    '--dataset torch/cifar10 --data-dir new --dataset-download',
    '--dataset torch/image_folder --data-dir images',
    '--aa rand-m9-mstd0.5-inc1 --reprob 0.25 --remode pixel --recount 0',
    '--aa augmix-m5-w4-d2 --aug-splits 3 --jsd-loss --split-bn --resplit',
    '--aug-splits 3 --jsd-loss --kd-model-name resnet18',
    '--aa original-mstd0.5',
    '--aa 3a',
    '--split-bn --resplit --batch-size 8',
    '--mixup 0.2 --cutmix 1 --mixup-mode half',
    '--mixup 0.2 --naflex-loader --batch-size 7',
    '--batch-size 7',
    '--validation-batch-size 7 --mixup 0.2',
    '--train-crop-mode rkrr --train-interpolation bicubic',
    '--opt lookahead_adamw --opt-betas 0.9 0.999 --opt-eps 1e-6',
    '--opt adan --opt-betas 0.98 0.92 0.99',
    '--opt adahessian',
    '--opt sgd --opt-betas 0.9',  # which sgd leaves aside, as in timm
    '--layer-decay 0.75 --layer-decay-min-scale 0.1',
    '--sched multistep --decay-milestones 30 60 90 --decay-rate 0.2',
    '--sched wsd --decay-epochs 0.2',
    '--sched plateau',
    '--sched none',
    '--sched cosine --lr-cycle-limit 3 --lr-cycle-mul 2 --sched-on-updates --lr-noise 0.4 0.9',
    '--epochs 0 --refine-epochs 5 --sched cosine',
    '--epochs 5 --refine-epochs 5 --refine-fade 5',
    '--refine-fade 2 --refine-lr 0.1 --refine-epochs 0',
    '--amp --amp-dtype bfloat16',
    '--model-dtype bfloat16',
    '--torchcompile',
    '--fuser te',
    '--dist-bn=',
    '--val-split=',
    '--train-img-sizes 8 16 --train-batch-sizes 8 4 --train-size-probs 0 1 --train-batches-per-epoch 3 --mixup 1',
    '--train-img-sizes 8 16 --train-size-schedule progressive',
    '--input-size 1 8 8 --mean 0.5 --std 0.5 --interpolation bilinear',
    '--labels-per-class 5 --label-split 3 --pad-crop 1 --pad-mode constant',
    '--gradaug 3 --gradaug-transforms rotate scale --gradaug-sizes 32 28 24 --cutmix 1 --mixup-prob 0.5',
    '--gradaug 1 --gradaug-transforms',
    '--gradaug 2 --gradaug-subnet depth --refine-epochs 3',
    '--gradaug-transforms rotate --input-size 3 32 48',
    '--gradaug-every 2 --torchscript',
    '--exact-resume --dry-run --max-bad-updates 0',
    '--wandb-project p --wandb-tags a b',
    '--color-jitter 0 --grayscale-prob 0.2 --gaussian-blur-prob 0.1',
]


@pytest.mark.parametrize('line', ACCEPTED)
def test_what_timm_runs_is_accepted(workplace, line):
    args = parse_train([*TRAIN_BASE, *line.split(' ')])
    assert args == train_parser().parse_args([*TRAIN_BASE, *line.split(' ')])


@pytest.mark.parametrize(
    'line',
    [
        '',
        '--model all',
        '--model resnet1*',
        '--model notes.txt',
        '--model resnet200 --checkpoint empty',
        '--model resnet200 --checkpoint notes.txt --use-ema',
        '--width 1.0 0.9 0.5 --calibrate-images 64',
        '--crop-mode squash --crop-pct 1 --test-pool --metrics-avg macro',
        '--dataset= images --valid-labels notes.txt --real-labels notes.txt --results-format json',
    ],
)
def test_valid_validation_options_are_accepted(workplace, line):
    args = parse_validate([*VALIDATE_BASE, *line.split()])
    assert args == validate_parser().parse_args([*VALIDATE_BASE, *line.split()])


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
@pytest.mark.parametrize('parse', [parse_train, parse_validate])
def test_cuda_where_there_is_none_is_refused_and_cpu_is_suggested(parse):
    with pytest.raises(OptionError, match=r'--device cuda: CUDA is not available.*--device cpu'):
        parse(['--dataset', 'regaug/digits', '--model', 'resnet10t'])


@pytest.mark.parametrize('prefix', ['hfids', 'tfds', 'WDS'])
@pytest.mark.parametrize(
    ('line', 'flag'),
    [
        ('--labels-per-class 4', '--labels-per-class 4'),
        ('--exact-resume', '--exact-resume'),
        ('--train-img-sizes 8 16', '--train-img-sizes 8 16'),
        ('--aug-splits 2', '--aug-splits 2'),
        ('--naflex-loader', '--naflex-loader'),
    ],
)
def test_streams_are_refused_where_an_index_is_needed(monkeypatch, prefix, line, flag):
    monkeypatch.setattr(data_checks, 'require_package', lambda *args: None)
    argv = [*TRAIN_BASE, '--dataset', f'{prefix}/x', '--data-dir', 's3://bucket/x', *line.split()]
    with pytest.raises(OptionError) as caught:
        parse_train(argv)
    assert flag in str(caught.value)
    assert f'--dataset {prefix}/x' in str(caught.value)


def test_a_data_set_whose_package_is_missing_is_refused(monkeypatch):
    monkeypatch.setitem(data_checks.PACKAGES, 'wds', 'no_such_package')
    with pytest.raises(OptionError, match='--dataset wds/x: needs the Python package no_such_package'):
        parse_train([*TRAIN_BASE, '--dataset', 'wds/x', '--data-dir', 'x'])


def test_a_stream_of_shards_needs_to_be_told_where_they_are(monkeypatch):
    monkeypatch.setattr(data_checks, 'require_package', lambda *args: None)
    with pytest.raises(OptionError, match='--data-dir: --dataset wds/x needs a folder'):
        parse_train([*TRAIN_BASE, '--dataset', 'wds/x'])


def test_wandb_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(OptionError, match='--log-wandb: needs the Python package wandb'):
        parse_train([*TRAIN_BASE, '--log-wandb'])


@pytest.mark.parametrize(
    ('line', 'package'), [('--metrics-avg macro', 'scikit-learn'), ('--tf-preprocessing', 'tensorflow')]
)
def test_evaluation_that_needs_a_missing_package_is_refused(monkeypatch, line, package):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(OptionError, match=f'{line}: needs the Python package {package}'):
        parse_validate([*VALIDATE_BASE, *line.split()])


def test_a_cuda_device_beyond_the_last_one_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert parse_train([*TRAIN_BASE, '--device', 'cuda:1']).device == 'cuda:1'
    with pytest.raises(OptionError, match='--device cuda:2: the last of the 2 devices is cuda:1'):
        parse_train([*TRAIN_BASE, '--device', 'cuda:2'])


def test_a_model_that_timm_has_dropped_is_refused(monkeypatch):
    monkeypatch.setattr(model_checks, 'get_deprecated_models', lambda: {'resnet10t': None})
    with pytest.raises(OptionError, match='--model resnet10t: timm no longer has this model'):
        parse_train(TRAIN_BASE)


def test_repeated_augmentation_of_a_stream_is_refused(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr(data_checks, 'require_package', lambda *args: None)
    with pytest.raises(OptionError, match=r'--aug-repeats 3\.0: .*--dataset tfds/x'):
        parse_train([*TRAIN_BASE, '--dataset', 'tfds/x', '--aug-repeats', '3'])


def test_repeated_augmentation_is_accepted_under_torchrun(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert parse_train([*TRAIN_BASE, '--aug-repeats', '3']).aug_repeats == 3


def test_synchronised_batch_norm_of_cpu_processes_is_refused(monkeypatch):
    assert parse_train([*TRAIN_BASE, '--sync-bn']).sync_bn
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(OptionError, match='--sync-bn: does not work with --device cpu'):
        parse_train([*TRAIN_BASE, '--sync-bn'])


@pytest.mark.parametrize(('lr', 'warned'), [('0.01', True), ('0.2', False)])
def test_a_refinement_learning_rate_above_the_peak_is_warned_about(caplog, lr, warned):
    with caplog.at_level(logging.WARNING):
        parse_train([*TRAIN_BASE, '--refine-epochs', '2', '--refine-lr', '0.1', '--lr', lr])
    messages = [record.getMessage() for record in caplog.records if '--refine-lr 0.1' in record.getMessage()]
    assert [f'--lr {lr}' in message for message in messages] == ([True] if warned else [])


def test_every_optimiser_of_timm_that_needs_no_other_package_is_accepted():
    for name in list_optimizers(exclude_filters=['fused*', 'bnb*']):
        args = train_parser().parse_args([*TRAIN_BASE, '--opt', name])
        schedule.check_optimizer(args)
        schedule.check_schedule(args)
        assert args.opt == name


def test_every_torchvision_set_that_timm_has_by_name_is_accepted():
    assert set(dataset_factory._TORCH_BASIC_DS) <= set(data_checks.TORCH_DATASETS)
