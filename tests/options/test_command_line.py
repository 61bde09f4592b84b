"""The command line is timm's, plus ours."""

import json
from pathlib import Path

import pytest
import yaml

from regaug.options import (
    OWN_TRAIN,
    OWN_VALIDATE,
    TRAIN,
    VALIDATE,
    args_as_yaml,
    parse_train,
    train_parser,
    validate_parser,
)
from tests.helpers.options import BASE, refusal

FROZEN = json.loads((Path(__file__).parent.parent / 'data' / 'cli.json').read_text())

OUR_TRAIN_OPTIONS = {
    '--pad-crop': 0,
    '--pad-mode': 'reflect',
    '--labels-per-class': None,
    '--label-split': 0,
    '--updates-per-epoch': None,
    '--exact-resume': False,
    '--overwrite': False,
    '--dry-run': False,
    '--max-bad-updates': 10,
    '--gradaug': 0,
    '--gradaug-min-width': 0.9,
    '--gradaug-width-divisor': 8,
    '--gradaug-widths': 'sandwich',
    '--gradaug-transforms': ['scale'],
    '--gradaug-sizes': None,
    '--gradaug-targets': 'soft',
    '--gradaug-subnet': 'width',
    '--gradaug-depth-rate': 0.2,
    '--gradaug-depth-mode': 'sample',
    '--gradaug-weight': 1.0,
    '--gradaug-batch-share': 1.0,
    '--gradaug-average': False,
    '--gradaug-mask-ratio': 0.5,
    '--gradaug-mask-patch': 32,
    '--gradaug-every': 1,
    '--gradaug-start-epoch': 0,
    '--gradaug-compile': 0,
    '--unlabeled-split': None,
    '--unlabeled-data-dir': None,
    '--unlabeled-dataset': None,
    '--uratio': 1.0,
    '--ulb-loss-ratio': 1.0,
    '--ulb-warmup-updates': 0,
    '--p-cutoff': 0.0,
    '--ulb-teacher': 'full',
    '--maxup': 0,
    '--maxup-aug': None,
    '--maxup-warmup-epochs': None,
    '--maxup-score': 'loss',
    '--cutout-size': 16,
    '--gauss-sigma': 0.1,
    '--freeze-bn': False,
    '--score-size': None,
    '--score-dtype': None,
    '--refine-epochs': 0,
    '--refine-lr': None,
    '--refine-fade': 0,
    '--refine-plain': False,
    '--manifold-mixup': 0.0,
    '--uada': False,
    '--uada-groups': ['policy'],
    '--uada-ranges': 'paper',
    '--uada-delta': 1,
    '--uada-epsilon': 1,
    '--uada-step': 'ascend',
}
OUR_VALIDATE_OPTIONS = {
    '--width': None,
    '--calibrate-images': 5120,
    '--calibrate-split': 'train',
    '--ece': False,
    '--attack': None,
    '--attack-eps': None,
    '--attack-space': None,
    '--attack-steps': 10,
    '--attack-step-size': None,
    '--attack-restarts': 1,
    '--imagenet-c': None,
    '--corruptions': None,
    '--severities': None,
    '--corruption-resize': False,
    '--certify': None,
    '--certify-n': 100_000,
    '--certify-n0': 100,
    '--certify-alpha': 0.001,
    '--certify-skip': 20,
    '--certify-file': '',
    '--cam': None,
    '--cam-images': 8,
    '--cam-baseline': '',
    '--spectrum': None,
    '--risk': None,
    '--export': None,
    '--log-wandb': False,
    '--wandb-project': None,
}


def describe(parser):
    """What an argparse parser declares, in the form of the committed list."""
    actions = {'_StoreAction': 'Store', '_StoreTrueAction': 'StoreTrue', 'KeyValues': 'ParseKwargs'}
    return [
        {
            'flags': action.option_strings or [action.dest],
            'dest': action.dest,
            'type': getattr(action.type, '__name__', None),
            'default': action.default,
            'nargs': action.nargs,
            'const': action.const,
            'choices': list(action.choices) if action.choices else None,
            'action': actions[type(action).__name__],
            'group': group.title,
        }
        for group in parser._action_groups
        for action in group._group_actions
        if action.dest not in ('help', 'config')
    ]


@pytest.mark.parametrize(
    ('program', 'parser', 'ours'),
    [('train', train_parser, OUR_TRAIN_OPTIONS), ('validate', validate_parser, OUR_VALIDATE_OPTIONS)],
)
def test_command_line_is_timms_plus_ours(program, parser, ours):
    declared = describe(parser())
    timms = [option for option in declared if option['flags'][0] not in ours]
    assert timms == FROZEN[program]
    assert {option['flags'][0]: option['default'] for option in declared if option['flags'][0] in ours} == ours


def test_timm_has_175_training_and_60_validation_options():
    assert [len(FROZEN[program]) for program in ('train', 'validate')] == [175, 60]


@pytest.mark.parametrize(
    ('groups', 'titles'),
    [
        (
            OWN_TRAIN,
            [
                'GradAug parameters',
                'Manifold Mixup parameters',
                'MaxUp parameters',
                'Refinement parameters',
                'regaug parameters',
                'Scoring parameters',
                'GradAug-semi parameters',
                'UADA parameters',
            ],
        ),
        (OWN_VALIDATE, ['regaug parameters', 'Evaluation parameters']),
    ],
)
def test_our_options_stand_in_groups_of_their_own(groups, titles):
    assert [group.title for group in groups] == titles
    assert not {group.title for group in groups} & {option['group'] for option in FROZEN['train']}


@pytest.mark.parametrize(('parser', 'groups'), [(train_parser, TRAIN), (validate_parser, VALIDATE)])
def test_help_prints_every_option_with_an_explanation(parser, groups):
    text = ' '.join(parser().format_help().split())
    for option in (option for group in groups for option in group.options):
        assert option.label in text
        assert ' '.join(option.help.split())[:40] in text


def test_help_of_training_mentions_the_configuration_file_and_resume_auto():
    text = ' '.join(train_parser().format_help().split())
    assert '--config CONFIG' in text
    assert 'auto: from the newest good checkpoint' in text


def test_options_may_be_abbreviated_as_in_argparse():
    assert parse_train([*BASE, '--epoch-r', '2']).epoch_repeats == 2.0


def test_aliases_of_timm_are_accepted():
    argv = ['--dr', '0.3', '--train-img-sizes', '8', '--train-steps-per-epoch', '7', '-vb', '3', '-j', '0', '-b', '4']
    args = parse_train([*BASE, *argv])
    chosen = args.decay_rate, args.train_batches_per_epoch, args.validation_batch_size, args.workers, args.batch_size
    assert chosen == (0.3, 7, 3, 0, 4)


def test_key_value_options_become_dictionaries():
    args = parse_train([*BASE, '--model-kwargs', 'depth=3', 'name=x', 'sizes=(1, 2)'])
    assert args.model_kwargs == {'depth': 3, 'name': 'x', 'sizes': (1, 2)}


def test_two_parses_share_no_mutable_default():
    first, second = parse_train(BASE), parse_train(BASE)
    first.model_kwargs['changed'] = True
    first.scale.append(2.0)
    assert second.model_kwargs == {}
    assert second.scale == [0.08, 1.0]


@pytest.mark.parametrize(
    ('argv', 'parts'),
    [
        (['--epochz', '3'], ['--epochz', 'did you mean', '--epochs']),
        (['stray', 'words'], ['words']),
        (['--epochs', 'x'], ['--epochs', "'x'"]),
        (['--kd-distill-type', 'x'], ['--kd-distill-type', "'x'", 'logit', 'feature', 'token']),
        (['--gradaug-transforms', 'scale', 'shear'], ['--gradaug-transforms', "'shear'", 'rotate']),
        (['--pad-mode', 'edge'], ['--pad-mode', "'edge'", 'reflect']),
        (['--input-size', '3', '32'], ['--input-size', '3 arguments']),
        (['--wandb-tags'], ['--wandb-tags', 'at least one']),
        (['--log'], ['--log', '--log-interval', '--log-wandb']),
        (['--model-kwargs', 'depth'], ['--model-kwargs', 'depth', 'key=value']),
        (['-c'], ['--config', 'one argument']),
    ],
)
def test_slips_on_the_command_line_are_one_clear_error(argv, parts):
    message = refusal([*BASE, *argv])
    assert [part for part in parts if part not in message] == [], message


def test_dumped_options_are_all_options_sorted():
    dumped = yaml.safe_load(args_as_yaml(parse_train(BASE)))
    ours = {flag.removeprefix('--').replace('-', '_') for flag in OUR_TRAIN_OPTIONS}
    assert list(dumped) == sorted({option['dest'] for option in FROZEN['train']} | ours)


def test_a_dump_of_timms_own_script_is_a_valid_configuration(write_config):
    timms = {option['dest']: option['default'] for option in FROZEN['train']}
    timms |= {'device': 'cpu', 'dataset': 'regaug/digits', 'model': 'resnet10t'}
    assert parse_train(['-c', write_config(yaml.safe_dump(timms))]) == parse_train(BASE)
