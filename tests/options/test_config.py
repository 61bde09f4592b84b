"""A YAML file is a command line; args.yaml reads back as it was."""

import pytest

from regaug.errors import OptionError
from regaug.options import args_as_yaml, parse_train
from tests.helpers.options import BASE, refusal


def test_configuration_sets_defaults_and_the_command_line_wins(write_config):
    path = write_config('epochs: 7\nlr: 0.5\nopt: adamw\n')
    args = parse_train([*BASE, '-c', path, '--lr', '0.25'])
    assert (args.epochs, args.lr, args.opt) == (7, 0.25, 'adamw')
    assert not hasattr(args, 'config')


def test_the_command_line_wins_wherever_the_configuration_stands(write_config):
    path = write_config('epochs: 7\n')
    assert parse_train([*BASE, '--epochs', '3', f'--config={path}']).epochs == 3


def test_keys_may_be_written_with_dashes_underscores_or_by_an_alias(write_config):
    args = parse_train([*BASE, '-c', write_config('weight-decay: 0.5\nwarmup_epochs: 2\ndr: 0.25\n')])
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
    resolved = getattr(parse_train([*BASE, '-c', write_config(text)]), name)
    assert resolved == value
    assert type(resolved) is type(value)


def test_an_empty_configuration_changes_nothing(write_config):
    assert parse_train([*BASE, '-c', write_config('# nothing yet\n')]) == parse_train(BASE)


@pytest.mark.parametrize(
    ('text', 'parts'),
    [
        ('epoch: 3', ["'epoch'", 'did you mean', 'epochs']),
        ('weight_decy: 3', ["'weight_decy'", 'weight_decay']),
        ('config: other.yaml', ["'config'"]),
        ('3: 4', ['3']),
        ('batch-size: 4\nbatch_size: 8', ['batch_size', '--batch-size', 'second time']),
        ('amp: false\namp: true', ["'amp'", 'twice', 'line 2']),
        ('epochs: 1\nlr: 0.1\nepochs: 2', ["'epochs'", 'twice', 'line 3']),
        ('opt_kwargs: {foreach: true, foreach: false}', ["'foreach'", 'twice']),
        ('epochs: many', ['epochs', "'many'", '--epochs', 'invalid int']),
        ('epochs: 1.5', ['epochs', '1.5', 'invalid int']),
        ('epochs: true', ['epochs', 'True', 'invalid int']),
        ('epochs: null', ['epochs', 'None', 'one value']),
        ('epochs: [3]', ['epochs', '[3]', 'one value']),
        ('epochs: {a: 1}', ['epochs', "{'a': 1}", 'invalid int']),
        ('lr: fast', ['lr', "'fast'", 'invalid float']),
        ('lr: {a: 1}', ['lr', "{'a': 1}"]),
        ('amp: 1', ['amp', '1', 'true or false']),
        ("amp: 'no'", ['amp', "'no'", 'true or false']),
        ('amp: null', ['amp', 'None', 'true or false']),
        ('model: 50', ['model', '50', 'text']),
        ('dist_bn: off', ['dist_bn', 'False', 'text']),
        ('experiment: 2024-01-01', ['experiment', '2024', 'text']),
        ('data: [a, b]', ['data', "['a', 'b']", 'one value']),
        ('scale: 0.5', ['scale', '0.5', 'a list']),
        ('scale: []', ['scale', '[]', 'at least one']),
        ('scale: null', ['scale', 'None', 'a list']),
        ('scale: [0.5, wide]', ['scale', 'wide', 'invalid float']),
        ('wandb_tags: [a, 5]', ['wandb_tags', "['a', 5]", 'text']),
        ('wandb_tags: [a, --epochs=3]', ['wandb_tags', '--epochs=3']),
        ('input_size: [3, 32]', ['input_size', '[3, 32]', '3 arguments']),
        ('input_size: [3, 32, 32, 32]', ['input_size', '[3, 32, 32, 32]', '32']),
        ('model_kwargs: [a=1]', ['model_kwargs', 'a=1', 'mapping']),
        ('model_kwargs: {1: 2}', ['model_kwargs', '{1: 2}', 'mapping']),
        ('kd_distill_type: half', ['kd_distill_type', "'half'", "'logit', 'feature', 'token'"]),
        ('gradaug_transforms: [scale, shear]', ['gradaug_transforms', "'shear'", "'scale', 'rotate', 'crop', 'flip'"]),
        ('- epochs\n- lr', ['epochs', 'lr']),
        ('epochs: [3', ['no valid YAML']),
        ('model: !!python/object:os.system {}', ['no valid YAML']),
        ('epochs: -3', ['--epochs -3', 'negative']),
        ('lr: .nan', ['--lr nan', 'finite']),
        ('weight_decay: .inf', ['--weight-decay inf', 'finite']),
    ],
)
def test_a_wrong_configuration_is_refused_by_key_and_value(write_config, text, parts):
    message = refusal([*BASE, '-c', write_config(text)])
    assert [part for part in parts if part not in message] == [], message


def test_a_missing_configuration_is_named(tmp_path):
    with pytest.raises(OptionError, match=r'nowhere\.yaml.*No such file'):
        parse_train([*BASE, '-c', str(tmp_path / 'nowhere.yaml')])


ROUND_TRIPS = [
    '',
    '--opt adamw --opt-kwargs amsgrad=True --opt-betas 0.9 0.95 --model-kwargs a=1 b=x',
    '--model-kwargs size=(1,2) nested={"a":[1,(2,3)],"b":None} text="3" small=1e-7 flag=False none=None',
    '--opt-kwargs= --model-kwargs=',
    '--gradaug 3 --gradaug-sizes 32 28 --refine-epochs 2 --pad-crop 4 --dry-run',
    '--gradaug 1 --gradaug-transforms',
    '--gradaug 2 --gradaug-transforms rotate scale --gradaug-min-width 0.5 --gradaug-subnet depth',
    '--train-img-sizes 8 16 --torchcompile --aa rand-m9-mstd0.5 --wandb-tags a b',
    '--wandb-tags 1 true null 2024-01-01 ~ 1e3 off --experiment 007 --log-wandb',
    '--wandb-tags=-x --wandb-project=--y --log-wandb',
    '--experiment= --output= --val-split= --dist-bn= --interpolation= --wandb-project=',
    '--mean -1 -0.5 .25 --std 1e-3 1 1e22 --head-init-bias=-1e-5 --bce-target-thresh=-0.0 --lr-k-decay=-2',
    '--mean=-1e-7 --min-lr 1e-300 --lr 0.1 --weight-decay 0.30000000000000004',
    '--epochs 7 --lr 1 --warmup-epochs 0 --decay-epochs 2.4 --aug-splits 2 --scale 1 1',
    '--input-size 1 8 8 --mean 0.5 --std 0.5 --color-jitter 0 --drop-path 0 --lr-noise 0.4 0.9',
    '--amp --channels-last --model-ema --no-prefetcher --exact-resume --cutmix 1 --cutmix-minmax 0.2 0.8',
    '--maxup 4 --cutmix 1 --maxup-aug cutmix+gauss --maxup-warmup-epochs 0',
    '--uada --uada-groups policy flip --uada-epsilon 0',
    '--sched multistep --decay-milestones 30 60 --seed 4294967295 --train-size-schedule constant',
]


def exact(args):
    """Values with their types, which `==` takes lightly (1, 1.0, True); mappings have no order."""
    values = vars(args).items()
    return {name: repr(sorted(value.items()) if isinstance(value, dict) else value) for name, value in values}


@pytest.mark.parametrize('line', ROUND_TRIPS)
def test_dumped_options_read_back_by_c_are_the_same(write_config, line):
    args = parse_train([*BASE, *line.split()])
    again = parse_train(['-c', write_config(args_as_yaml(args))])
    assert exact(again) == exact(args)
    assert args_as_yaml(again) == args_as_yaml(args)


def test_a_null_that_timm_tells_from_zero_reads_back(write_config):
    args = parse_train([*BASE, '-c', write_config('color_jitter: null\ndrop_path: null\n')])
    again = parse_train(['-c', write_config(args_as_yaml(args))])
    assert again.color_jitter is None
    assert exact(again) == exact(args)


def test_a_positional_folder_reads_back(write_config, workplace):
    args = parse_train(['images', '--device', 'cpu'])
    again = parse_train(['-c', write_config(args_as_yaml(args))])
    assert (again.data, again.data_dir) == ('images', None)
    assert exact(again) == exact(args)


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('epochs: 7\nlr: 1e-2\nopt: adamw', '--epochs 7 --lr 1e-2 --opt adamw'),
        ('scale: [0.5, 1]\nratio: [1, 1.5]\namp: true', '--scale 0.5 1 --ratio 1 1.5 --amp'),
        ('gradaug: 2\ngradaug-sizes: [32, 28]', '--gradaug 2 --gradaug-sizes 32 28'),
        ('mean: [-1.0e-5, -2, 3]\nstd: [1, 1, 1]', '--mean=-0.00001 --std 1'),
        ('opt_kwargs: {nesterov: false}\nmomentum: 0.5', '--opt-kwargs nesterov=False --momentum 0.5'),
    ],
)
def test_a_file_is_a_command_line(write_config, text, line):
    from_file = parse_train([*BASE, '-c', write_config(text)])
    from_line = parse_train([*BASE, *line.split()])
    if text.startswith('mean'):  # what no command line can say, since it looks like options
        from_line.mean, from_line.std = [-1e-5, -2.0, 3.0], [1.0, 1.0, 1.0]
    assert exact(from_file) == exact(from_line)


# --- bases --------------------------------------------------------------------------------------------------------


@pytest.fixture
def write_based(tmp_path):
    """Writes a file with a base, in a folder of its own beside the base's, and returns its path."""

    def write(text, base='epochs: 7\nlr: 0.5\nwarmup_epochs: 2\n'):
        (tmp_path / 'wrn.yaml').write_text(base)
        (tmp_path / 'paper').mkdir()
        (tmp_path / 'paper' / 'recipe.yaml').write_text(text)
        return str(tmp_path / 'paper' / 'recipe.yaml')

    return write


def test_values_of_a_base_hold_where_the_file_says_nothing(write_based, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a base is looked for beside the file, wherever one is
    args = parse_train([*BASE, '-c', write_based('base: ../wrn.yaml\nlr: 0.25\nopt: adamw\n'), '--warmup-epochs', '3'])
    assert (args.epochs, args.lr, args.opt, args.warmup_epochs) == (7, 0.25, 'adamw', 3)
    assert not hasattr(args, 'base')


def test_a_file_overrides_its_base_under_any_name_of_an_option(write_based):
    args = parse_train([*BASE, '-c', write_based('base: ../wrn.yaml\ndecay-rate: 0.5\n', 'dr: 0.25\n')])
    assert args.decay_rate == 0.5


def test_values_of_a_base_stand_in_what_a_run_notes(write_based, write_config):
    args = parse_train([*BASE, '-c', write_based('base: ../wrn.yaml\nlr: 0.25\n')])
    noted = args_as_yaml(args)
    assert 'epochs: 7\n' in noted
    assert '\nbase:' not in noted
    assert parse_train(['-c', write_config(noted)]) == args


@pytest.mark.parametrize(
    ('text', 'base', 'parts'),
    [
        ('base: ../wrm.yaml\n', '', ['wrm.yaml: cannot be read']),
        ('base: [a, b]\n', '', ["base: ['a', 'b']: takes the name of one file"]),
        ('base: ../wrn.yaml\n', 'base: other.yaml\n', ['wrn.yaml has a base itself']),
        ('base: ../wrn.yaml\n', 'epoch: 7\n', ["wrn.yaml: unknown key 'epoch'", 'epochs']),
        ('base: ../wrn.yaml\nepochs: seven\n', '', ["recipe.yaml: epochs: 'seven'"]),
    ],
)
def test_a_base_that_cannot_be_is_refused_by_name(write_based, text, base, parts):
    message = refusal([*BASE, '-c', write_based(text, base)])
    assert [part for part in parts if part not in message] == [], message
