"""Phases: a table of what holds in which epoch, and what learning rate."""

import pytest
import torch
from timm.loss import BinaryCrossEntropy

from regaug.options import parse_train
from regaug.training.criterion import create_criterion
from regaug.training.phases import main_epochs, phase_at, refine_lr, set_learning_rate
from tests.helpers.training import train_args

HEAVY = ('--mixup', 0.8, '--cutmix', 1.0, '--aa', 'rand-m9', '--reprob', 0.25)


def names(args, count):
    return [phase_at(epoch, args).name for epoch in range(count)]


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (('--epochs', 3), ['main'] * 3),
        (('--epochs', 2, '--refine-epochs', 2), ['main', 'main', 'refine', 'refine']),
        (('--epochs', 4, '--refine-epochs', 1, '--refine-fade', 2), ['main', 'main', 'fade', 'fade', 'refine']),
        (('--epochs', 0, '--refine-epochs', 2), ['refine', 'refine']),
        (('--epochs', 3, '--mixup', 0.5, '--mixup-off-epoch', 2), ['main', 'main', 'unmixed']),
        (('--epochs', 3, '--mixup-off-epoch', 2), ['main'] * 3),
        (
            ('--epochs', 2, '--warmup-epochs', 1, '--warmup-prefix', '--cooldown-epochs', 1, '--refine-epochs', 1),
            ['main'] * 4 + ['refine'],
        ),
        (('--epochs', 3, '--maxup', 2, '--maxup-warmup-epochs', 2), ['warmup', 'warmup', 'main']),
        (('--epochs', 2, '--maxup', 2, '--maxup-warmup-epochs', 0), ['main', 'main']),
        (('--epochs', 2, '--sched', 'step', '--decay-epochs', 1, '--refine-epochs', 1), ['main', 'main', 'refine']),
    ],
)
def test_phases_follow_from_the_options_alone(options, expected):
    warmup = () if '--warmup-epochs' in options else ('--warmup-epochs', 0)
    assert names(train_args(*warmup, *options), len(expected)) == expected


@pytest.mark.parametrize('mixing', [('--mixup', 0.2), ('--cutmix-minmax', 0.2, 0.8), ('--manifold-mixup', 1.0)])
@pytest.mark.parametrize('smoothing', [0, 0.1])
def test_the_loss_is_binary_in_every_phase_of_a_run_or_in_none(mixing, smoothing):
    options = ('--epochs', 4, '--warmup-epochs', 0, '--refine-epochs', 1, '--refine-fade', 1, '--smoothing', smoothing)
    args = train_args(*options, '--bce-loss', *mixing)
    kinds = {phase_at(epoch, args).name: type(create_criterion(phase_at(epoch, args))) for epoch in range(5)}
    assert kinds == {'main': BinaryCrossEntropy, 'fade': BinaryCrossEntropy, 'refine': BinaryCrossEntropy}
    plain = train_args(*options, '--bce-loss')
    expected = BinaryCrossEntropy if smoothing else torch.nn.CrossEntropyLoss
    assert {type(create_criterion(phase_at(epoch, plain))) for epoch in range(5)} == {expected}


def test_refinement_switches_off_all_intensive_augmentation_and_names_what_was_on():
    colours = ('--grayscale-prob', 0.1, '--color-jitter-prob', 0.5)
    args = train_args('--epochs', 2, '--warmup-epochs', 0, '--refine-epochs', 1, *HEAVY, *colours)
    phase = phase_at(2, args)
    off = phase.options
    assert (off.mixup, off.cutmix, off.cutmix_minmax, off.aa, off.reprob, off.color_jitter) == (
        0,
        0,
        None,
        None,
        0,
        None,
    )
    assert not off.grayscale_prob and not off.gaussian_blur_prob and not off.color_jitter_prob
    named = {'--mixup', '--cutmix', '--aa', '--reprob', '--grayscale-prob', '--color-jitter-prob'}
    assert named <= set(phase.switched_off)
    assert '--gaussian-blur-prob' not in phase.switched_off
    # What is not augmentation of the refined kind stays.
    for name in ('scale', 'ratio', 'hflip', 'smoothing', 'train_interpolation', 'batch_size'):
        assert getattr(off, name) == getattr(args, name)


def test_the_criterion_of_refinement_is_the_plain_one_with_label_smoothing():
    args = train_args('--epochs', 1, '--warmup-epochs', 0, '--refine-epochs', 1, '--mixup', 0.5, '--smoothing', 0.2)
    before, after = (create_criterion(phase_at(epoch, args)) for epoch in (0, 1))
    assert type(before).__name__ == 'SoftTargetCrossEntropy'
    assert type(after).__name__ == 'LabelSmoothingCrossEntropy' and after.smoothing == 0.2


def test_gradaug_stays_on_in_refinement_unless_it_is_to_be_plain():
    options = ('--epochs', 1, '--warmup-epochs', 0, '--refine-epochs', 1, '--gradaug', 3)
    assert phase_at(1, train_args(*options)).methods == ('gradaug',)
    plain = phase_at(1, train_args(*options, '--refine-plain'))
    assert plain.methods == () and '--gradaug' in plain.switched_off


def test_gradaug_starts_with_its_epoch():
    args = train_args('--epochs', 3, '--warmup-epochs', 0, '--gradaug', 2, '--gradaug-start-epoch', 2)
    assert [phase_at(epoch, args).methods for epoch in range(3)] == [(), (), ('gradaug',)]


def test_intensity_fades_linearly_to_nothing():
    args = train_args('--epochs', 5, '--warmup-epochs', 0, '--refine-epochs', 1, '--refine-fade', 3, *HEAVY)
    phases = [phase_at(epoch, args) for epoch in range(1, 6)]
    faded = [phase.options for phase in phases]
    assert [options.mixup for options in faded] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    cutmix = [options.mixup_prob * options.mixup_switch_prob for options in faded[:-1]]
    mixup = [options.mixup_prob * (1 - options.mixup_switch_prob) for options in faded[:-1]]
    assert cutmix == pytest.approx([0.5, 0.375, 0.25, 0.125])
    assert mixup == pytest.approx([0.5] * 4)  # Mixup fades by its alpha, not by its probability
    assert [phase.intensity for phase in phases[:-1]] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert [options.reprob for options in faded] == pytest.approx([0.25, 0.1875, 0.125, 0.0625, 0.0])


def test_cutmix_alone_fades_by_its_probability():
    args = train_args('--epochs', 2, '--warmup-epochs', 0, '--refine-epochs', 1, '--refine-fade', 1, '--cutmix', 1.0)
    assert phase_at(1, args).options.mixup_prob == pytest.approx(0.5)
    assert phase_at(1, args).options.cutmix == 1.0


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        (('--sched', 'cosine'), 1e-4),
        (('--sched', 'poly'), 1e-4),
        (('--sched', 'tanh'), 1e-4),
        (('--sched', 'plateau'), 1e-4),
        (('--sched', 'cosine', '--sched-on-updates'), 1e-4),
        (('--sched', 'cosine', '--warmup-epochs', 3, '--warmup-prefix', '--cooldown-epochs', 2), 1e-4),
        (('--sched', 'cosine', '--refine-lr', 0.003), 0.003),
        (('--sched', 'step', '--decay-epochs', 4, '--decay-rate', 0.1), 1e-3),
        (('--sched', 'step', '--decay-epochs', 4, '--decay-rate', 0.1, '--sched-on-updates'), 1e-3),
        (('--sched', 'step', '--decay-epochs', 5, '--decay-rate', 0.1), 0.01),  # no epoch has the second decay
        (('--sched', 'multistep', '--decay-milestones', 3, 6, 9, '--decay-rate', 0.1), 1e-4),
        (('--sched', 'multistep', '--decay-milestones', 3, 6, '--decay-rate', 0.5), 0.025),
        (('--sched', 'step', '--epochs', 0), 1e-4),
    ],
)
def test_learning_rate_of_refinement(options, expected):
    args = train_args('--epochs', 10, '--warmup-epochs', 0, '--lr', 0.1, '--refine-epochs', 2, *options)
    assert refine_lr(args) == pytest.approx(expected)


def test_learning_rate_is_set_for_each_group_with_its_layer_decay():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{'params': parameters[:1], 'lr_scale': 0.25}, {'params': parameters[1:]}], lr=1.0)
    set_learning_rate(optimizer, 0.01)
    assert [group['lr'] for group in optimizer.param_groups] == [0.0025, 0.01]


def test_without_our_options_every_epoch_keeps_the_options_as_they_are():
    args = parse_train(['--dataset', 'regaug/digits', '--device', 'cpu', '--epochs', '3', '--mixup', '0.2'])
    for epoch in range(3):
        options = vars(phase_at(epoch, args).options)
        assert {name: options[name] for name in vars(args)} == vars(args)
    assert main_epochs(args) == 3
