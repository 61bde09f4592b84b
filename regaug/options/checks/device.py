"""Devices, number formats, compilation."""

import importlib.util
from argparse import Namespace

import torch
from timm.utils import is_distributed_env

from regaug.errors import OptionError
from regaug.options.checks.require import refuse_with, require, require_known, require_one_of, spell

AMP_DTYPES = ('float16', 'bfloat16')
MODEL_DTYPES = ('float32', 'float16', 'bfloat16')
FUSERS = ('', 'te', 'old', 'legacy', 'nvfuser', 'nvf')


def check_device_modules(args: Namespace):
    for module in args.device_modules or ():
        found = importlib.util.find_spec(module) is not None
        require(args, '--device-modules', found, f'the Python module {module} is not installed')


def check_device(args: Namespace):
    """Makes sure that the device exists; modules of `--device-modules` may bring names that are not known yet."""
    if getattr(args, 'device_modules', None):
        return
    try:
        device = torch.device(args.device)
        available = torch.get_device_module(device).is_available()
    except RuntimeError:
        raise OptionError(f'{spell(args, "--device")}: unknown device, say --device cpu or --device cuda') from None
    require(args, '--device', available, f'{device.type.upper()} is not available here, say --device cpu')
    # Under torchrun the index is replaced by the local rank.
    if device.type == 'cuda' and device.index is not None and not is_distributed_env():
        count = torch.cuda.device_count()
        require(args, '--device', device.index < count, f'the last of the {count} devices is cuda:{count - 1}')


def check_dtypes(args: Namespace):
    require_one_of(args, '--amp-dtype', AMP_DTYPES)
    if args.model_dtype:
        require_one_of(args, '--model-dtype', MODEL_DTYPES)
        refuse_with(args, '--model-dtype', ['--amp'], 'autocast needs weights in float32')


def check_fuser(args: Namespace):
    require_one_of(args, '--fuser', FUSERS)


def check_compile(args: Namespace):
    """Backend and mode of torch.compile; torch itself looks at them only when the first batch comes."""
    if not args.torchcompile:
        return
    backends = torch.compiler.list_backends(exclude_tags=())
    require_known(args, '--torchcompile', args.torchcompile in backends, 'backend', args.torchcompile, backends)
    if args.torchcompile_mode and args.torchcompile == 'inductor':
        require_one_of(args, '--torchcompile-mode', torch._inductor.list_mode_options())


def check_torchscript(args: Namespace):
    if args.torchscript:
        others = ['--torchcompile', '--sync-bn', '--freeze-bn']
        refuse_with(args, '--torchscript', others, 'a scripted model cannot be changed')


def check_sync_bn(args: Namespace):
    on_cpu = args.sync_bn and is_distributed_env() and args.device.startswith('cpu')
    require(args, '--sync-bn', not on_cpu, f'does not work with {spell(args, "--device")}')
