"""The command line wins over the file, also where two options set one thing; what has no effect is told, once."""

import pytest

from regaug.options import args_as_yaml, parse_train, parse_validate
from tests.helpers.options import BASE, refusal


@pytest.fixture
def parse(write_config, workplace):
    """Parses a file of a configuration together with a line of arguments."""

    def parse(text, line, base=BASE):
        return parse_train([*base, '-c', write_config(text), *line.split()])

    return parse


@pytest.mark.parametrize(
    ('text', 'line', 'values'),
    [
        ('input_size: [1, 32, 48]', '--img-size 64', {'input_size': [1, 64, 64], 'img_size': 64}),
        ('input_size: [1, 32, 48]', '--in-chans 3', {'input_size': [3, 32, 48], 'in_chans': 3}),
        ('input_size: [1, 32, 48]', '--in-chans 3 --img-size 8', {'input_size': [3, 8, 8]}),
        ('img_size: 64\nin_chans: 1', '--input-size 3 32 32', {'input_size': [3, 32, 32], 'img_size': None}),
        ('input_size: [1, 32, 32]\nimg_size: 32', '--img-size 8', {'input_size': [1, 8, 8], 'img_size': 8}),
        ('input_size: [1, 32, 32]', '--img-size 64 --input-size 3 64 64', {'input_size': [3, 64, 64]}),
        ('drop_path: 0.2', '--drop-connect 0.1', {'drop_path': None, 'drop_connect': 0.1}),
        ('drop_connect: 0.2', '--drop-path 0.1', {'drop_path': 0.1}),
        ('cutmix_minmax: [0.2, 0.8]', '--cutmix 1', {'cutmix_minmax': None, 'cutmix': 1.0}),
        ('cutmix_minmax: [0.2, 0.8]', '--cutmix 0', {'cutmix_minmax': None, 'cutmix': 0.0}),
        ('cutmix: 1.0', '--cutmix-minmax 0.2 0.8', {'cutmix_minmax': [0.2, 0.8]}),
        ('lr: 0.1', '--lr-base 0.2', {'lr': None, 'lr_base': 0.2}),
        ('lr_base: 0.1', '--lr 0.2', {'lr': 0.2}),
        # side by side on one line (or in one file) they keep timm's meaning
        ('epochs: 3', '--drop-path 0.1 --drop-connect 0.2', {'drop_path': 0.1, 'drop_connect': 0.2}),
        ('cutmix: 1.0\ncutmix_minmax: [0.2, 0.8]', '', {'cutmix_minmax': [0.2, 0.8], 'cutmix': 1.0}),
    ],
)
def test_the_command_line_wins_where_two_options_set_one_thing(parse, text, line, values):
    args = parse(text, line)
    assert {name: getattr(args, name) for name in values} == values


@pytest.mark.parametrize(
    ('text', 'line', 'folder'),
    [
        ('data_dir: gone', 'images', 'images'),
        ('data: gone', '--data-dir images', 'images'),
        ('data: images', '', 'images'),
    ],
)
def test_the_folder_of_the_command_line_wins(parse, text, line, folder):
    args = parse(text, line, base=['--device', 'cpu'])
    assert (args.data_dir or args.data, args.data or args.data_dir) == (folder, folder)


def test_the_command_line_turns_off_what_a_file_turns_on(parse):
    text = 'gradaug: 3\ngradaug_min_width: 0.5\nrefine_epochs: 5\nrefine_fade: 2\ncutmix: 1.0\nmaxup: 4\n'
    args = parse(text, '--gradaug 0 --refine-epochs 0 --maxup 0 --torchscript')
    assert (args.gradaug, args.refine_epochs, args.maxup, args.gradaug_min_width) == (0, 0, 0, 0.5)


@pytest.mark.parametrize(
    ('line', 'warnings'),
    [
        ('--gradaug-min-width 0.5', ['--gradaug-min-width 0.5 has no effect without --gradaug.']),
        (
            '--uada-groups policy flip --uada-delta 2',
            [
                '--uada-groups policy flip has no effect without --uada.',
                '--uada-delta 2 has no effect without --uada.',
            ],
        ),
        ('--refine-fade 2 --refine-epochs 0', ['--refine-fade 2 has no effect without --refine-epochs.']),
        ('--refine-plain', ['--refine-plain has no effect without --refine-epochs.']),
        ('--maxup-aug cutout', ['--maxup-aug cutout has no effect without --maxup.']),
        ('--maxup-warmup-epochs 2 --maxup 0', ['--maxup-warmup-epochs 2 has no effect without --maxup.']),
        ('--cutout-size 8', ['--cutout-size 8 has no effect without --maxup-aug cutout or --uada-groups cutout.']),
        (
            '--maxup 2 --cutmix 1 --maxup-aug cutmix+gauss --cutout-size 8 --gauss-sigma 0.2 --mixup-switch-prob 0.1',
            [
                '--mixup-switch-prob 0.1 has no effect under --maxup, which mixes as --maxup-aug says.',
                '--cutout-size 8 has no effect without --maxup-aug cutout or --uada-groups cutout.',
            ],
        ),
        (
            '--maxup 2 --maxup-aug cutout --cutout-size 8 --uada-groups cutout',
            ['--uada-groups cutout has no effect without --uada.'],
        ),
        (
            '--maxup 2 --maxup-aug cutout --gauss-sigma 0.2',
            ['--gauss-sigma 0.2 has no effect without --maxup-aug gauss.'],
        ),
        (
            '--uada --uada-groups flip --uada-ranges timm',
            ['--uada-ranges timm has no effect without --uada-groups policy.'],
        ),
        (
            '--gradaug 2 --gradaug-transforms flip --gradaug-mask-ratio 0.4 --gradaug-mask-patch 8',
            [
                '--gradaug-mask-ratio 0.4 has no effect without --gradaug-transforms mask.',
                '--gradaug-mask-patch 8 has no effect without --gradaug-transforms mask.',
            ],
        ),
        ('--gradaug 2 --gradaug-transforms flip mask --gradaug-mask-ratio 0.4', []),
        (
            '--gradaug 2 --gradaug-subnet depth --drop-path 0.7',
            [
                '--drop-path 0.7 has no effect with --gradaug-subnet depth: blocks are dropped in the sub-networks '
                'alone, see --gradaug-depth-rate.'
            ],
        ),
        (
            '--maxup 1 --maxup-aug cutout --score-size 0.5',
            ['--score-size 0.5 has no effect with --maxup 1: there is nothing to choose.'],
        ),
        (
            '--uada --uada-epsilon 0 --score-dtype bfloat16',
            ['--score-dtype bfloat16 has no effect with --uada-epsilon 0: there is nothing to choose.'],
        ),
        ('--maxup 2 --maxup-aug cutout --score-size 0.5', []),
        ('--pad-crop 4 --scale 0.2 1', ['--scale 0.2 1.0 has no effect with --pad-crop 4, which keeps the size.']),
        ('--pad-crop 4 --scale 0.08 1 --ratio 0.75 1.3333333333333333', []),  # as args.yaml has it
        ('--gauss-sigma 0.2 --uada', ['--gauss-sigma 0.2 has no effect without --maxup.']),
        (
            '--gradaug 2 --gradaug-depth-rate 0.3',
            ['--gradaug-depth-rate 0.3 has no effect without --gradaug-subnet depth.'],
        ),
        (
            '--gradaug 2 --gradaug-subnet depth --gradaug-widths uniform',
            ['--gradaug-widths uniform has no effect without --gradaug-subnet width.'],
        ),
        ('--gradaug-depth-mode batch', ['--gradaug-depth-mode batch has no effect without --gradaug.']),
        ('--pad-mode constant', ['--pad-mode constant has no effect without --pad-crop.']),
        ('--amp-dtype bfloat16', ['--amp-dtype bfloat16 has no effect without --amp.']),
        ('--model-ema-decay 0.9', ['--model-ema-decay 0.9 has no effect without --model-ema.']),
        ('--mixup-prob 0.5', ['--mixup-prob 0.5 has no effect without --mixup or --cutmix or --cutmix-minmax.']),
        ('--kd-temperature 2', ['--kd-temperature 2.0 has no effect without --kd-model-name.']),
        ('--wandb-project p', ['--wandb-project p has no effect without --log-wandb.']),
        # with their switches, and without the options, all is quiet
        ('--gradaug 2 --gradaug-min-width 0.5 --gradaug-start-epoch 3', []),
        ('--gradaug 2 --gradaug-subnet depth --gradaug-depth-rate 0.3 --gradaug-depth-mode batch', []),
        ('--uada --uada-groups policy cutout --cutout-size 8 --uada-epsilon 0', []),
        ('--maxup 4 --mixup-prob 0.5', []),  # MaxUp turns CutMix on
        ('--cutmix-minmax 0.2 0.8 --mixup-prob 0.5', []),
        ('--gradaug 0 --maxup 0 --refine-epochs 0 --manifold-mixup 0', []),
        ('', []),
    ],
)
def test_an_option_without_its_switch_is_warned_about_once(line, warnings, caplog):
    parse_train([*BASE, *line.split()])
    assert caplog.messages == warnings


SWITCHES = {
    '--kd-model-name': '--kd-distill-type=logit --kd-loss-type=kl --distill-loss-weight=1 --task-loss-weight=1 '
    '--kd-temperature=2 --kd-student-feature-dim=3 --kd-teacher-feature-dim=3 --kd-token-distill-type=hard',
    '--resume': '--no-resume-opt',
    '--torchcompile': '--torchcompile-mode=default',
    '--amp': '--amp-dtype=float16',
    '--clip-grad': '--clip-mode=agc',
    '--lr-noise': '--lr-noise-pct=0.1 --lr-noise-std=1',
    '--bce-loss or --task multilabel': '--bce-sum --bce-target-thresh=0.5 --bce-pos-weight=2',
    '--reprob': '--remode=const --recount=2',
    '--mixup or --cutmix or --cutmix-minmax': '--mixup-prob=1 --mixup-switch-prob=1 --mixup-mode=elem '
    '--mixup-off-epoch=9',
    '--model-ema': '--model-ema-force-cpu --model-ema-decay=0.5 --model-ema-warmup',
    '--task multilabel': '--multilabel-threshold=0.5',
    '--log-wandb': '--wandb-project=a --wandb-tags=a',
    '--train-img-sizes': '--variable-batch-loss-scale=sqrt',
    '--train-size-schedule progressive': '--train-size-schedule-spread=1 --train-size-random-mix=0',
    '--naflex-loader': '--naflex-train-seq-lens=9 --naflex-max-seq-len=9 --naflex-patch-sizes=9 '
    '--naflex-loss-scale=none --naflex-patchify-channels-first',
    '--pad-crop': '--pad-mode=constant',
    '--maxup-aug cutout or --uada-groups cutout': '--cutout-size=8',
    '--maxup or --uada': '--score-size=9 --score-dtype=float16',
    '--gradaug': '--gradaug-min-width=1 --gradaug-width-divisor=1 --gradaug-widths=uniform --gradaug-transforms=flip '
    '--gradaug-sizes=9 --gradaug-targets=hard --gradaug-subnet=depth --gradaug-depth-rate=0 '
    '--gradaug-depth-mode=batch --gradaug-weight=2 --gradaug-every=2 --gradaug-start-epoch=1 --gradaug-compile=2',
    '--maxup': '--maxup-aug=cutout --maxup-warmup-epochs=1 --maxup-score=excess --gauss-sigma=1',
    '--refine-epochs': '--refine-lr=1 --refine-fade=1 --refine-plain',
    '--uada': '--uada-groups=flip --uada-ranges=timm --uada-delta=2 --uada-epsilon=2 --uada-step=random',
}


@pytest.mark.parametrize('switch', SWITCHES)
def test_every_option_that_needs_a_switch_says_so(switch, caplog):
    for word in SWITCHES[switch].split():
        caplog.clear()
        parse_train([*BASE, word])
        [message] = caplog.messages
        assert message.startswith(word.partition('=')[0]) and message.endswith(f' has no effect without {switch}.')


def test_what_a_file_sets_may_wait_for_its_switch(parse, caplog):
    text = 'gradaug: 3\ngradaug_min_width: 0.5\nuada_groups: [flip]\nmixup_prob: 0.5\nrefine_fade: 2\n'
    parse(text, '--gradaug 0')
    assert caplog.messages == []
    parse(text, '--gradaug 0 --gradaug-every 2')
    assert caplog.messages == ['--gradaug-every 2 has no effect without --gradaug.']


def test_validation_warns_as_well(caplog):
    parse_validate([*BASE, '--calibrate-images', '64', '--amp-dtype', 'bfloat16'])
    assert caplog.messages == [
        '--amp-dtype bfloat16 has no effect without --amp.',
        '--calibrate-images 64 has no effect without --width.',
    ]


def test_one_process_of_many_warns(caplog, monkeypatch):
    for rank, count in (('0', 1), ('1', 0)):
        monkeypatch.setenv('RANK', rank)
        caplog.clear()
        parse_train([*BASE, '--uada-delta', '2'])
        assert len(caplog.messages) == count


def test_what_is_for_one_start_alone_does_not_come_back_from_args_yaml(workplace, write_config):
    start = '--resume notes.txt --no-resume-opt --start-epoch 7 --log-wandb --wandb-resume-id abc --overwrite'
    args = parse_train([*BASE, '--experiment', 'run', '--lr', '0.5', *start.split()])
    assert (args.resume, args.start_epoch, args.wandb_resume_id, args.overwrite) == ('notes.txt', 7, 'abc', True)
    again = parse_train(['-c', write_config(args_as_yaml(args))])
    assert (again.resume, again.no_resume_opt, again.start_epoch) == ('', False, None)
    assert (again.wandb_resume_id, again.overwrite) == ('', False)
    assert (again.experiment, again.lr, again.log_wandb) == ('run', 0.5, True)
    assert parse_train([*BASE, '--resume', 'auto']).resume == 'auto'
    assert 'resume: auto' not in args_as_yaml(parse_train([*BASE, '--resume', 'auto']))


def test_overwriting_what_one_resumes_is_refused(workplace):
    message = refusal([*BASE, '--overwrite', '--resume', 'auto'])
    assert message.startswith('--overwrite: does not go with --resume auto')
    assert parse_train([*BASE, '--overwrite', '--resume', 'notes.txt']).overwrite  # a checkpoint of another run


@pytest.mark.parametrize(
    ('line', 'sizes'),
    [
        ('32 28 24', [32, 28, 24]),
        ('1 0.857 0.5', [1.0, 0.857, 0.5]),
        ('1.0 28.0', [1.0, 28]),
        ('176', [176]),
    ],
)
def test_sizes_of_subnetworks_are_pixels_or_shares(line, sizes, write_config):
    args = parse_train([*BASE, '--gradaug', '2', '--gradaug-sizes', *line.split()])
    assert repr(args.gradaug_sizes) == repr(sizes)
    assert repr(parse_train(['-c', write_config(args_as_yaml(args))]).gradaug_sizes) == repr(sizes)


@pytest.mark.parametrize(
    'line',
    [
        '--gradaug 2 --epochs 10 --gradaug-start-epoch 9',
        '--gradaug 2 --epochs 10 --refine-epochs 5 --gradaug-start-epoch 14',
        '--gradaug 2 --epochs 10 --cooldown-epochs 5 --gradaug-start-epoch 14',
        '--gradaug 2 --epochs 10 --warmup-prefix --gradaug-start-epoch 14',
        '--gradaug 2 --epochs 0 --refine-epochs 5',
        '--gradaug 2 --epochs 0 --refine-epochs 5 --refine-plain',
        '--gradaug 0 --epochs 10 --gradaug-start-epoch 10',
        '--gradaug 0 --gradaug-sizes 999',
        '--gradaug 2 --gradaug-sizes 24 --train-img-sizes 16 24',
        '--gradaug 2 --gradaug-sizes 999 --model hf-hub:timm/resnet18.a1_in1k',  # only the download tells its size
        '--train-img-sizes 8 --train-batches-per-epoch 4 --grad-accum-steps 4',
        '--train-num-samples 8 --grad-accum-steps 4',  # not for data sets that have a length
    ],
)
def test_what_is_reached_and_what_fits_is_accepted(line):
    assert parse_train([*BASE, *line.split()])


def test_accumulation_longer_than_an_epoch_of_a_stream_is_refused(monkeypatch):
    monkeypatch.setattr('regaug.options.timm_data_checks.require_package', lambda *args: None)
    stream = [*BASE, '--dataset', 'wds/x', '--data-dir', 'x', '--train-num-samples', '1000', '--batch-size', '128']
    assert parse_train([*stream, '--grad-accum-steps', '8']).grad_accum_steps == 8
    assert refusal([*stream, '--grad-accum-steps', '9']) == '--grad-accum-steps 9: an epoch has 8 batches only'
