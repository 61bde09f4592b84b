"""The model: built by timm, then put where and how it trains."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from timm import create_model
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm
from timm.utils import set_jit_fuser
from torch import nn

from regaug import methods
from regaug.data.channels import input_channels
from regaug.errors import OptionError, one_line
from regaug.slimmable.shapes import shape_error, single_values
from regaug.slimmable.structure import batch_norms
from regaug.training.weights import forget_weights, load_initial, pretrained_overlay

_logger = logging.getLogger('train')


def build_model(args: Namespace):
    """Build the model for these options by timm's factory; sets `args.num_classes` if the user did not.

    Raises:
        OptionError: when timm cannot build it, or `--initial-checkpoint` or `--pretrained-path` is truncated, foreign
            or does not fit.
    """
    fixed = {'in_chans': '--in-chans', 'num_classes': '--num-classes', 'global_pool': '--gp', 'drop_rate': '--drop'}
    for name in fixed.keys() & args.model_kwargs.keys():
        raise OptionError(f'--model-kwargs {name}={args.model_kwargs[name]}: {fixed[name]} says that.')
    if args.fuser:
        set_jit_fuser(args.fuser)
    if args.fast_norm:
        set_fast_norm()
    factory_kwargs = dict(
        in_chans=input_channels(args),
        num_classes=args.num_classes,
        drop_rate=args.drop,
        drop_path_rate=args.drop_path,
        drop_block_rate=args.drop_block,
        global_pool=args.gp,
        bn_momentum=args.bn_momentum,
        bn_eps=args.bn_eps,
        scriptable=args.torchscript,
        **args.model_kwargs,
    )
    if args.drop_connect is not None and args.drop_path is None:
        factory_kwargs['drop_path_rate'] = args.drop_connect
    wanted = methods.model_kwargs(args)
    for kwargs in wanted.values():
        factory_kwargs |= kwargs
    weights = dict(pretrained=args.pretrained)
    if args.pretrained_path:
        weights = dict(pretrained=True, pretrained_cfg_overlay=pretrained_overlay(args.model, args.pretrained_path))
    try:
        model = create_model(args.model, **weights, **factory_kwargs)
    except OptionError:
        raise
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise refusal(args, error) from error
    except TypeError as error:
        by_methods = [option for option, kwargs in wanted.items() if any(name in str(error) for name in kwargs)]
        options = ', '.join(by_methods) or '--drop-path, --model-kwargs, ...'
        raise OptionError(f'--model {args.model}: {error} ({options})') from error
    if args.pretrained_path:
        forget_weights(model, args.pretrained_path)
    if args.initial_checkpoint:
        load_initial(model, args.initial_checkpoint)
    if args.head_init_scale is not None:
        with torch.no_grad():
            model.get_classifier().weight.mul_(args.head_init_scale)
            model.get_classifier().bias.mul_(args.head_init_scale)
    if args.head_init_bias is not None:
        nn.init.constant_(model.get_classifier().bias, args.head_init_bias)
    if args.num_classes is None:
        args.num_classes = model.num_classes
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing(enable=True)
        except (AssertionError, AttributeError) as error:
            raise OptionError(f'--grad-checkpointing: --model {args.model} does not support it.') from error
    return model


def refusal(args: Namespace, error: Exception) -> OptionError:
    """What timm's factory stumbled over, told by the option that it comes from."""
    if args.pretrained_path:
        return OptionError(f'--pretrained-path {args.pretrained_path}: {one_line(error)}')
    if args.pretrained and isinstance(error, OSError):
        reason = f'the published weights cannot be had ({one_line(error)})'
        return OptionError(f'--pretrained: {reason}; --pretrained-path takes them from a file.')
    words = ['--model', args.model]
    if args.gp:
        words += ['--gp', args.gp]
    if args.model_kwargs:
        words += ['--model-kwargs', *(f'{key}={value}' for key, value in args.model_kwargs.items())]
    return OptionError(f'{" ".join(words)}: the model cannot be built ({one_line(error)}).')


def prepare_model(model: nn.Module, args: Namespace, *, device: torch.device, model_dtype: Any):
    """Convert batch-norm, move, lay out and script the model as the options say, in timm's order.

    Synchronised batch-norm needs no distribution of its statistics: `args.dist_bn` is then emptied.
    """
    if args.split_bn:
        model = convert_splitbn_model(model, max(args.aug_splits, 2))
    model.to(device=device, dtype=model_dtype)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.distributed and args.sync_bn:
        args.dist_bn = ''
        model = convert_sync_batchnorm(model)
        _logger.info('Batch-norm is synchronised over the ranks.')
    if args.torchscript:
        model = torch.jit.script(model)
    if args.freeze_bn:
        count = freeze_batch_norm(model)
        if count:
            _logger.info(f'{count} batch-norm layers are frozen, statistics and parameters.')
        else:
            _logger.warning(f'--freeze-bn has no effect: --model {args.model} has no batch-norm.')
    return model


def freeze_batch_norm(model: nn.Module):
    """Fix the affine parameters of batch-norm; `keep_statistics` fixes its statistics (`--freeze-bn`).

    Source: MaxUp (arXiv 2002.09024, section 4.1) fine-tunes EfficientNets so.

    Returns:
        Number of layers.
    """
    layers = batch_norms(model)
    for layer in layers:
        layer.requires_grad_(False)
    return len(layers)


def keep_statistics(model: nn.Module):
    """Put batch-norm into evaluation mode, whatever the mode of the model."""
    for layer in batch_norms(model):
        layer.eval()


def resolve_learning_rate(args: Namespace, loader: Any):
    """Set `args.lr` from `--lr-base` and the global batch size, unless the user gave `--lr` (timm's rule).

    Args:
        loader: the training loader; with scheduled sizes its average batch size counts.
    """
    if args.lr:
        return
    batch_size = loader.batch_sampler.average_batch_size if args.train_img_sizes else args.batch_size
    batch_size *= args.world_size * args.grad_accum_steps
    ratio = batch_size / args.lr_base_size
    if not args.lr_base_scale:
        adaptive = any(name in args.opt.lower() for name in ('ada', 'lamb'))
        args.lr_base_scale = 'sqrt' if adaptive else 'linear'
    args.lr = args.lr_base * (ratio**0.5 if args.lr_base_scale == 'sqrt' else ratio)
    _logger.info(
        f'Learning rate {args.lr:.6g}: base {args.lr_base:g} at batch size {args.lr_base_size}, '
        f'global batch size {batch_size:g}, {args.lr_base_scale} scaling.'
    )


def check_input_size(model: nn.Module, args: Namespace, input_size: Sequence[int]):
    """Make sure that the model can take the images it will be trained on.

    Args:
        input_size: (C, H, W) as timm resolves it.

    Raises:
        OptionError: naming the option that set the size.
    """
    if args.naflex_loader or args.torchscript:
        return
    channels, height, width = input_size
    sizes = [(size, size) for size in args.train_img_sizes or ()] or [(height, width)]
    option = '--train-img-sizes' if args.train_img_sizes else '--img-size' if args.img_size else '--input-size'
    for size in sizes:
        reason = shape_error(model, (channels, *size))
        if reason is not None:
            raise OptionError(f'{option} {size[0]}x{size[1]}: --model {args.model} cannot take such images ({reason}).')
        if trains_on_single_images(args) and single_values(model, (channels, *size)):
            raise OptionError(
                f'--batch-size 1: batch-norm of --model {args.model} would see one value per channel '
                f'in images of {size[0]}x{size[1]}; take 2 or more, or --freeze-bn.'
            )


def trains_on_single_images(args: Namespace):
    """True if batch-norm takes its statistics from one image at a time."""
    smallest = min(args.train_batch_sizes or [args.batch_size])
    others = args.freeze_bn or (args.distributed and args.sync_bn) or (args.aug_splits > 1 and not args.split_bn)
    return smallest == 1 and not others
