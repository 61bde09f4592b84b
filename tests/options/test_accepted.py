"""What timm runs is accepted as it is, without a random number drawn."""

import random

import numpy as np
import pytest
import torch
from timm.data import dataset_factory
from timm.optim import list_optimizers

from regaug.options import parse_train, parse_validate, timm_checks, train_parser, validate_parser
from regaug.options.timm_data_checks import TORCH_DATASETS
from tests.helpers.options import BASE


def test_parsing_and_checking_draw_no_random_numbers():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    parse_train([*BASE, '--aa', 'rand-m9-mstd0.5', '--opt', 'lookahead_adamw', '--reprob', '0.3', '--mixup', '1'])
    assert states() == before


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
    args = parse_train([*BASE, *line.split(' ')])
    assert args == train_parser().parse_args([*BASE, *line.split(' ')])


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
    args = parse_validate([*BASE, *line.split()])
    assert args == validate_parser().parse_args([*BASE, *line.split()])


def test_every_optimiser_of_timm_that_needs_no_other_package_is_accepted():
    for name in list_optimizers(exclude_filters=['fused*', 'bnb*']):
        args = train_parser().parse_args([*BASE, '--opt', name])
        timm_checks.check_optimizer(args)
        timm_checks.check_schedule(args)
        assert args.opt == name


def test_every_torchvision_set_that_timm_has_by_name_is_accepted():
    assert set(dataset_factory._TORCH_BASIC_DS) <= set(TORCH_DATASETS)
