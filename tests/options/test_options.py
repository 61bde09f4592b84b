"""The command line is timm's, plus ours; configuration files read and written."""

import json
from pathlib import Path

import pytest
import yaml

from regaug.errors import OptionError
from regaug.options import args_as_yaml, parse_train, train_parser, validate_parser
from regaug.options.tables import OWN_TRAIN, OWN_VALIDATE, TRAIN, VALIDATE

FROZEN = json.loads((Path(__file__).parent.parent / 'data' / 'cli.json').read_text())
TRAIN_BASE = ['--device', 'cpu', '--dataset', 'regaug/digits', '--model', 'resnet10t']

OUR_TRAIN_OPTIONS = {
    '--pad-crop': 0,
    '--pad-mode': 'reflect',
    '--labels-per-class': None,
    '--label-split': 0,
    '--updates-per-epoch': None,
    '--exact-resume': False,
    '--dry-run': False,
    '--max-bad-updates': 10,
    '--gradaug': 0,
    '--gradaug-min-width': 0.9,
    '--gradaug-width-divisor': 8,
    '--gradaug-transforms': ['scale'],
    '--gradaug-sizes': None,
    '--gradaug-targets': 'soft',
    '--gradaug-subnet': 'width',
    '--gradaug-depth-rate': 0.2,
    '--gradaug-weight': 1.0,
    '--gradaug-every': 1,
    '--gradaug-start-epoch': 0,
    '--gradaug-compile': 0,
    '--maxup': 0,
    '--maxup-aug': None,
    '--maxup-warmup-epochs': None,
    '--maxup-score': 'loss',
    '--cutout-size': 16,
    '--gauss-sigma': 0.1,
    '--freeze-bn': False,
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
    '--uada-reuse': False,
}
OUR_VALIDATE_OPTIONS = {'--width': None, '--calibrate-images': 5120, '--calibrate-split': 'train'}


@pytest.fixture
def write_config(tmp_path):
    def write(text):
        path = tmp_path / 'config.yaml'
        path.write_text(text)
        return str(path)

    return write


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


# --- the tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('program', 'parser', 'ours'),
    [('train', train_parser, OUR_TRAIN_OPTIONS), ('validate', validate_parser, OUR_VALIDATE_OPTIONS)],
)
def test_command_line_is_timms_plus_ours(program, parser, ours):
    declared = describe(parser())
    timms = [option for option in declared if option['flags'][0] not in ours]
    assert timms == FROZEN[program]
    assert {option['flags'][0]: option['default'] for option in declared if option['flags'][0] in ours} == ours


def test_timm_has_172_training_and_57_validation_options():
    assert [len(FROZEN[program]) for program in ('train', 'validate')] == [172, 57]


@pytest.mark.parametrize(
    ('groups', 'titles'),
    [
        (
            OWN_TRAIN,
            [
                'regaug parameters',
                'GradAug parameters',
                'MaxUp parameters',
                'Refinement parameters',
                'UADA parameters',
            ],
        ),
        (OWN_VALIDATE, ['regaug parameters']),
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
    assert '--config FILE' in text
    assert 'auto: from the newest good checkpoint' in text


# --- the command line ---------------------------------------------------------------------------------------------


def test_options_may_be_abbreviated_as_in_argparse():
    assert parse_train([*TRAIN_BASE, '--epoch-r', '2']).epoch_repeats == 2.0


def test_aliases_of_timm_are_accepted():
    argv = ['--dr', '0.3', '--train-img-sizes', '8', '--train-steps-per-epoch', '7', '-vb', '3', '-j', '0', '-b', '4']
    args = parse_train([*TRAIN_BASE, *argv])
    chosen = args.decay_rate, args.train_batches_per_epoch, args.validation_batch_size, args.workers, args.batch_size
    assert chosen == (0.3, 7, 3, 0, 4)


def test_key_value_options_become_dictionaries():
    args = parse_train([*TRAIN_BASE, '--model-kwargs', 'depth=3', 'name=x', 'sizes=(1, 2)'])
    assert args.model_kwargs == {'depth': 3, 'name': 'x', 'sizes': (1, 2)}


def test_two_parses_share_no_mutable_default():
    first, second = parse_train(TRAIN_BASE), parse_train(TRAIN_BASE)
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
    with pytest.raises(OptionError) as caught:
        parse_train([*TRAIN_BASE, *argv])
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert '\n' not in str(caught.value)


# --- the configuration file ---------------------------------------------------------------------------------------


def test_configuration_sets_defaults_and_the_command_line_wins(write_config):
    path = write_config('epochs: 7\nlr: 0.5\nopt: adamw\n')
    args = parse_train([*TRAIN_BASE, '-c', path, '--lr', '0.25'])
    assert (args.epochs, args.lr, args.opt) == (7, 0.25, 'adamw')
    assert not hasattr(args, 'config')


def test_the_command_line_wins_wherever_the_configuration_stands(write_config):
    path = write_config('epochs: 7\n')
    assert parse_train([*TRAIN_BASE, '--epochs', '3', f'--config={path}']).epochs == 3


def test_keys_may_be_written_with_dashes_underscores_or_by_an_alias(write_config):
    args = parse_train([*TRAIN_BASE, '-c', write_config('weight-decay: 0.5\nwarmup_epochs: 2\ndr: 0.25\n')])
    assert (args.weight_decay, args.warmup_epochs, args.decay_rate) == (0.5, 2, 0.25)


@pytest.mark.parametrize(
    ('text', 'name', 'value'),
    [
        ('lr: 1e-3', 'lr', 1e-3),  # YAML takes this for text
        ('lr: 1', 'lr', 1.0),
        ('epochs: 90.0', 'epochs', 90),
        ('amp: true', 'amp', True),
        ('scale: [0.5, 1]', 'scale', [0.5, 1.0]),
        ('opt_betas: [0.9, 1e-1]\nopt: adam', 'opt_betas', [0.9, 0.1]),
        ('input_size: [1, 8, 8]', 'input_size', [1, 8, 8]),
        ('gradaug_transforms: []', 'gradaug_transforms', []),
        ('gradaug_transforms: [rotate, scale]', 'gradaug_transforms', ['rotate', 'scale']),
        ('wandb_tags: []', 'wandb_tags', []),
        ('wandb_tags: [a, b]', 'wandb_tags', ['a', 'b']),
        ('opt_kwargs: {nesterov: false}', 'opt_kwargs', {'nesterov': False}),
        ('model_kwargs: {}', 'model_kwargs', {}),
        ('torchcompile: eager', 'torchcompile', 'eager'),
        ('drop_path: null', 'drop_path', None),
        ('resume:', 'resume', ''),  # nothing, where nothing is spelled as empty text
        ('color_jitter: null', 'color_jitter', None),  # no jitter at all, which timm tells from strength 0
        ('kd_distill_type: token', 'kd_distill_type', 'token'),
    ],
)
def test_values_of_a_configuration_take_the_type_of_their_option(write_config, text, name, value):
    resolved = getattr(parse_train([*TRAIN_BASE, '-c', write_config(text)]), name)
    assert resolved == value
    assert type(resolved) is type(value)


def test_an_empty_configuration_changes_nothing(write_config):
    assert parse_train([*TRAIN_BASE, '-c', write_config('# nothing yet\n')]) == parse_train(TRAIN_BASE)


@pytest.mark.parametrize(
    ('text', 'parts'),
    [
        ('epoch: 3', ["'epoch'", 'did you mean', 'epochs']),
        ('weight_decy: 3', ["'weight_decy'", 'weight_decay']),
        ('config: other.yaml', ["'config'"]),
        ('3: 4', ['3']),
        ('batch-size: 4\nbatch_size: 8', ['batch_size', '--batch-size', 'second time']),
        ('epochs: many', ['epochs', "'many'", '--epochs', 'whole number']),
        ('epochs: 1.5', ['epochs', '1.5', 'whole number']),
        ('epochs: true', ['epochs', 'True', 'whole number']),
        ('epochs: null', ['epochs', 'None', 'null']),
        ('epochs: [3]', ['epochs', '[3]', 'whole number']),
        ('lr: fast', ['lr', "'fast'", 'a number']),
        ('lr: {a: 1}', ['lr', "{'a': 1}"]),
        ('amp: 1', ['amp', '1', 'true or false']),
        ("amp: 'no'", ['amp', "'no'", 'true or false']),
        ('model: 50', ['model', '50', 'text']),
        ('dist_bn: off', ['dist_bn', 'False', 'text']),
        ('experiment: 2024-01-01', ['experiment', '2024', 'text']),
        ('scale: 0.5', ['scale', '0.5', 'a list']),
        ('scale: []', ['scale', '[]', 'at least one']),
        ('scale: [0.5, wide]', ['scale', 'wide', 'a number']),
        ('input_size: [3, 32]', ['input_size', '[3, 32]', 'list of 3']),
        ('model_kwargs: [a=1]', ['model_kwargs', 'a=1', 'mapping']),
        ('model_kwargs: {1: 2}', ['model_kwargs', '{1: 2}', 'mapping']),
        ('kd_distill_type: half', ['kd_distill_type', "'half'", 'logit, feature, token']),
        ('gradaug_transforms: [scale, shear]', ['gradaug_transforms', 'shear', 'scale, rotate, crop, flip']),
        ('- epochs\n- lr', ['epochs', 'lr']),
        ('epochs: [3', ['no valid YAML']),
        ('epochs: -3', ['--epochs -3', 'negative']),
    ],
)
def test_a_wrong_configuration_is_refused_by_key_and_value(write_config, text, parts):
    path = write_config(text)
    with pytest.raises(OptionError) as caught:
        parse_train([*TRAIN_BASE, '-c', path])
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(OptionError, match=r'nowhere\.yaml.*No such file'):
        parse_train([*TRAIN_BASE, '-c', str(tmp_path / 'nowhere.yaml')])


@pytest.mark.parametrize(
    'argv',
    [
        [],
        [
            '--opt',
            'adamw',
            '--opt-kwargs',
            'amsgrad=True',
            '--opt-betas',
            '0.9',
            '0.95',
            '--model-kwargs',
            'a=1',
            'b=x',
        ],
        ['--gradaug', '3', '--gradaug-sizes', '32', '28', '--refine-epochs', '2', '--pad-crop', '4', '--dry-run'],
        ['--train-img-sizes', '8', '16', '--torchcompile', '--aa', 'rand-m9-mstd0.5', '--wandb-tags', 'a', 'b'],
    ],
)
def test_dumped_options_read_back_by_c_are_the_same(write_config, argv):
    args = parse_train([*TRAIN_BASE, *argv])
    assert parse_train(['-c', write_config(args_as_yaml(args))]) == args


def test_dumped_options_are_all_options_sorted():
    dumped = yaml.safe_load(args_as_yaml(parse_train(TRAIN_BASE)))
    expected = {option['dest'] for option in FROZEN['train']} | {
        flag.removeprefix('--').replace('-', '_') for flag in OUR_TRAIN_OPTIONS
    }
    assert list(dumped) == sorted(expected)


def test_a_dump_of_timms_own_script_is_a_valid_configuration(write_config):
    timms = {option['dest']: option['default'] for option in FROZEN['train']}
    timms |= {'device': 'cpu', 'dataset': 'regaug/digits', 'model': 'resnet10t'}
    assert parse_train(['-c', write_config(yaml.safe_dump(timms))]) == parse_train(TRAIN_BASE)
