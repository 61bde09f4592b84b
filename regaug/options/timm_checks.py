"""Model, device, optimiser and schedule: what timm and torch notice late or never, and trials of what they refuse."""

import importlib.util
import math
import warnings
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import torch
from timm import models
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationEvaluator, MultiLabelClassificationEvaluator
from timm.utils import is_distributed_env

from regaug.options.parser import naming, refuse_with, require, require_known, require_package, shown, unknown, value_of


def check(args: Namespace):
    """Check train.py's options of model, device, optimiser, schedule and logging."""
    for module in args.device_modules or ():
        found = importlib.util.find_spec(module) is not None
        require(args, '--device-modules', found, f'the Python module {module} is not installed')
    check_device(args)
    refuse_with(args, '--torchscript', ['--torchcompile', '--sync-bn'], 'a scripted model cannot be changed')
    on_cpu = args.sync_bn and is_distributed_env() and args.device.startswith('cpu')
    require(args, '--sync-bn', not on_cpu, f'does not work with {shown(args, "--device")}')
    check_model_name(args, '--model')
    if not args.pretrained_path:
        check_published_weights(args, '--model', args.pretrained, 'leave --pretrained out')
    check_files(args, '--pretrained-path', '--initial-checkpoint', *(['--resume'] if args.resume != 'auto' else []))
    if args.kd_model_name:
        check_model_name(args, '--kd-model-name')
        check_published_weights(args, '--kd-model-name', True, 'an untrained teacher teaches nothing')
    check_optimizer(args)
    check_schedule(args)
    evaluator = MultiLabelClassificationEvaluator if args.task == 'multilabel' else ClassificationEvaluator
    require_known(args, '--eval-metric', args.eval_metric, evaluator.metric_names)
    require_package(args, '--log-wandb', 'wandb')
    used = args.log_wandb or not args.wandb_resume_id
    require(args, '--wandb-resume-id', used, 'works with --log-wandb only, which is not given')


def check_device(args: Namespace):
    """Make sure that the device exists, and what runs on it; modules of `--device-modules` may bring further names."""
    refuse_with(args, '--model-dtype', ['--amp'], 'autocast needs weights in float32')
    if args.torchcompile:  # torch itself looks at backend and mode only when the first batch comes
        backends = torch.compiler.list_backends(exclude_tags=())
        require_known(args, '--torchcompile', args.torchcompile, backends, 'backend')
        if args.torchcompile_mode and args.torchcompile == 'inductor':
            require_known(args, '--torchcompile-mode', args.torchcompile_mode, torch._inductor.list_mode_options())
    if getattr(args, 'device_modules', None):
        return
    with naming(args, '--device', hint='say --device cpu or --device cuda'):
        device = torch.device(args.device)
        available = torch.get_device_module(device).is_available()
    require(args, '--device', available, f'{device.type.upper()} is not available here, say --device cpu')
    # Under torchrun the index is replaced by the local rank.
    if device.type == 'cuda' and device.index is not None and not is_distributed_env():
        count = torch.cuda.device_count()
        require(args, '--device', device.index < count, f'the last of the {count} devices is cuda:{count - 1}')


def check_model_name(args: Namespace, flag: str):
    """Make sure that timm can resolve a model name; what `hf-hub:` stands for is known only when it is downloaded."""
    with naming(args, flag):
        source, name = models.parse_model_name(value_of(args, flag))
    if source == 'local-dir':
        require(args, flag, (Path(name) / 'config.json').is_file(), 'there is no config.json in that folder')
    if source:
        return
    architecture = models.split_model_name_tag(name)[0]
    if not models.is_model(architecture):
        require(args, flag, False, unknown(architecture, models.list_models(), 'model'))
    removed = models.get_deprecated_models().get(architecture, architecture) is None
    require(args, flag, not removed, 'timm no longer has this model')
    tagged = ', '.join(models.list_models(f'{architecture}.*', include_tags=True))
    with naming(args, flag, hint=f'there are {tagged}' if tagged else 'it has no tags'):
        models.get_pretrained_cfg(name)


def check_published_weights(args: Namespace, flag: str, wanted: bool, otherwise: str):
    """Make sure that weights were published for a model of timm's registry, where they are wanted."""
    source, name = models.parse_model_name(value_of(args, flag))
    published = source is not None or models.is_model_pretrained(models.get_deprecated_models().get(name) or name)
    require(args, flag, published or not wanted, f'no pretrained weights were published for it; {otherwise}')


def check_files(args: Namespace, *flags: str):
    """Make sure that the files that options name are there."""
    for flag in flags:
        value = value_of(args, flag)
        found = 'this is a folder, not a file' if value and Path(value).is_dir() else 'there is no such file'
        require(args, flag, not value or Path(value).is_file(), found)


def check_optimizer(args: Namespace):
    """Check the optimiser's name and number of betas, then let timm build it for one parameter."""
    *prefix, name = args.opt.lower().split('_')
    require_known(args, '--opt', name if prefix in ([], ['lookahead']) else args.opt, list_optimizers(), 'optimiser')
    info = get_optimizer_info(name)
    fits = args.opt_betas is None or not info.has_betas or len(args.opt_betas) == info.num_betas
    require(args, '--opt-betas', fits, f'{shown(args, "--opt")} takes {info.num_betas} values')
    parameter = torch.nn.Parameter(torch.zeros(2, 2))  # without random numbers, whose stream belongs to the run
    with naming(args, '--opt', '--opt-betas', '--opt-eps', '--opt-kwargs'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        create_optimizer_v2([parameter], **optimizer_kwargs(args) | {'lr': args.lr or args.lr_base}, **args.opt_kwargs)


def check_schedule(args: Namespace):
    """Check what timm's schedules take in silence, then let timm build one."""
    require(args, '--lr-noise', len(args.lr_noise or [0]) <= 2, 'needs one or two values: from, and until')
    in_order = args.decay_milestones == sorted(args.decay_milestones)
    require(args, '--decay-milestones', in_order, 'must be in ascending order')
    decays = args.sched != 'step' or args.decay_epochs > 0
    require(args, '--decay-epochs', decays, f'must be positive for {shown(args, "--sched")}')
    main_epochs(args)


def main_epochs(args: Namespace) -> int:
    """Return the epochs of the schedule, with its cycles, cooldown and warm-up prefix; refinement comes after."""
    # A schedule that never runs is built all the same, for its name.
    kwargs = scheduler_kwargs(args) | {'num_epochs': args.epochs or 10**6, 'updates_per_epoch': 1}
    flags = ('--sched', '--epochs', '--sched-on-updates', '--decay-epochs', '--warmup-epochs')
    with naming(args, *flags), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        epochs = create_scheduler_v2(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0), **kwargs)[1]
    return epochs if args.epochs else 0


def training_size(args: Namespace) -> tuple[int, int, int] | None:
    """Return the input size [C, H, W] in training, or None where only the built model can tell."""
    source, name = models.parse_model_name(args.model)
    config = None if source else models.get_pretrained_cfg(name)
    known = config or args.input_size or args.img_size
    return resolve_data_config(vars(args), pretrained_cfg=config and config.to_dict())['input_size'] if known else None


def check_pixels(args: Namespace, flag: str, sizes: Iterable[float]):
    """Make sure that sizes above 1 are whole numbers of pixels, and none of them is above the training size."""
    size = training_size(args)
    limit = max(args.train_img_sizes or size[1:2]) if size else math.inf
    for pixels in (size for size in sizes if size > 1):
        require(args, flag, isinstance(pixels, int), 'must be whole numbers of pixels, or shares up to 1')
        require(args, flag, pixels <= limit, f'must not be above the training size, {limit}')
