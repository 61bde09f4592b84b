"""The model that validate.py evaluates: built by timm, given its weights, fitted to the input, put on the device."""

import copy
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from timm import create_model
from timm.data import resolve_input_data_config
from timm.layers import apply_test_time_pool, set_fast_norm
from timm.models import resolve_model_input_args, safe_model_name
from timm.utils import reparameterize_model, set_jit_fuser
from torch import nn

from regaug.errors import OptionError, one_line
from regaug.files import load_weights

_logger = logging.getLogger('validate')


def set_backends(args: Namespace):
    """Set what holds for the whole process: TF32 and the cuDNN search on CUDA, `--fuser`, `--fast-norm`."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if args.fuser:
        set_jit_fuser(args.fuser)
    set_fast_norm(args.fast_norm)


def build_model(args: Namespace) -> nn.Module:
    """Build the model with its weights, on the CPU, branches merged under `--reparam`.

    Without a checkpoint the published weights are taken.

    Raises:
        OptionError: The model cannot be built so, its weights are not to be had, or the checkpoint does not fit.
    """
    pretrained = args.pretrained or not args.checkpoint
    try:
        arguments = resolve_model_input_args(
            args.model,
            vars(args),
            pretrained=pretrained,
            num_classes=args.num_classes,
            global_pool=args.gp,
            scriptable=args.torchscript,
            **args.model_kwargs,
        )
        model = create_model(**arguments)
    except OSError as error:
        raise OptionError(
            f'--model {args.model}: the published weights cannot be had ({one_line(error)}); '
            f'--checkpoint takes weights from a file.'
        ) from error
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        kwargs = ' '.join(f'{key}={value}' for key, value in args.model_kwargs.items())
        given = f'--model {args.model}' + (f' --model-kwargs {kwargs}' if kwargs else '')
        raise OptionError(f'{given}: the model cannot be built ({one_line(error)}).') from error
    if args.checkpoint:
        load_weights(model, args.checkpoint, use_ema=args.use_ema, option='--checkpoint')
    if args.reparam:
        model = reparameterize_model(model)
    _logger.info(f'Model {args.model}, {num_parameters(model):,} parameters.')
    return model


def fit_to_input(args: Namespace, model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """Find the input size and the preprocessing; wrap the model for test-time pooling under `--test-pool`.

    Returns:
        (model, data_config): timm's data configuration, with `patch_size` for the NaFlex loader.

    Raises:
        OptionError: The options ask for an input that the model does not take.
    """
    try:
        data_config = resolve_input_data_config(model, vars(args), use_test_size=not args.use_train_size, verbose=True)
    except (AssertionError, ValueError) as error:
        raise OptionError(
            f'--model {args.model} with the given --input-size, --img-size, --in-chans, --mean or --std: '
            f'{one_line(error)}'
        ) from error
    if args.naflex_loader:
        data_config['patch_size'] = getattr(getattr(model, 'embeds', None), 'patch_size', None) or (16, 16)
    if args.test_pool:
        model, pooled = _pool_at_test_time(args, model, data_config)
        if pooled:
            data_config['crop_pct'] = 1.0
    return model, data_config


def _pool_at_test_time(args: Namespace, model: nn.Module, data_config: dict[str, Any]) -> tuple[nn.Module, bool]:
    """Wrap the model by timm, where the input is larger than the model's own; whether it was.

    timm's wrapper pools averages and puts the classifier upon them: not the same network where layers stand between
    the two or it pools otherwise. At the model's own size wrapper and model have to agree, so that is asked.
    """
    own = copy.deepcopy(model).eval()
    try:
        model, pooled = apply_test_time_pool(model, data_config)
        if not pooled:
            return model, False
        shape = data_config['input_size'][0], *own.default_cfg['input_size'][1:]
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected, outputs = own(images), model.eval()(images)
        agrees = torch.allclose(outputs, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    except (AttributeError, RuntimeError, TypeError, ValueError, AssertionError):
        agrees = False  # no such layers, or an input of one size only
    if not agrees:
        raise OptionError(
            f'--test-pool: {args.model} is not a pooling of averages followed by a classifier, which timm takes it '
            f'for; without --test-pool it pools the larger input itself.'
        )
    return model, True


def prepare(args: Namespace, model: nn.Module, *, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """Bring the model to the device and the number format; script, compile or spread it over GPUs as asked."""
    model = to_device(args, model, device=device, dtype=dtype)
    if args.torchscript:
        model = torch.jit.script(model)
    elif args.torchcompile:
        torch._dynamo.reset()  # bulk validation compiles many models in one process
        model = torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode)
    elif args.aot_autograd:
        from functorch.compile import memory_efficient_fusion  # its import costs a second

        model = memory_efficient_fusion(model)
    if args.num_gpu > 1:
        if device.type == 'cuda' and args.num_gpu > torch.cuda.device_count():
            raise OptionError(f'--num-gpu {args.num_gpu}: this machine has {torch.cuda.device_count()}.')
        model = torch.nn.DataParallel(model, device_ids=list(range(args.num_gpu)))
    return model


def to_device(args: Namespace, model: nn.Module, *, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """Bring the model to the device, the number format (None: as it is) and the memory format, in evaluation mode."""
    model = model.to(device=device, dtype=dtype)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model.eval()


def job_name(args: Namespace) -> str:
    """Name of what is evaluated for files: its model, the run's folder, its checkpoint, and whether averaged."""
    name = safe_model_name(args.model)
    if args.checkpoint:
        path = Path(args.checkpoint).absolute()
        name += f'-{path.parent.name}-{path.name.removesuffix(".tar").removesuffix(".pth")}'
    return name + ('-ema' if args.use_ema else '')


def num_parameters(model: nn.Module) -> int:
    """Number of weights of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
