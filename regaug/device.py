"""Device, process group, number formats and random state of a run."""

import hashlib
import logging
import random
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from timm.utils import NativeScaler, dispatch_clip_grad, init_distributed_device

_logger = logging.getLogger('train')


def prepare_device(args):
    """Join the process group if torchrun started this process, choose the device, set what timm sets for CUDA.

    Adds `distributed`, `world_size`, `rank`, `local_rank`, `prefetcher` and the resolved `device` to `args`, as timm
    does.
    """
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    for module in args.device_modules or ():
        __import__(module)
    device = init_distributed_device(args)
    args.prefetcher = not args.no_prefetcher
    args.data_dir = args.data_dir or args.data
    if args.distributed:
        _logger.info(f'Process {args.rank} of {args.world_size} on {args.device}.')
    else:
        _logger.info(f'One process on {args.device}.')
    return device


class LossScaler(NativeScaler):
    """timm's loss scaler with backward and update apart, so that several backward passes share one update."""

    def scale(self, loss):
        return self._scaler.scale(loss)

    def unscale_(self, optimizer):
        self._scaler.unscale_(optimizer)

    def step(self, optimizer):
        self._scaler.step(optimizer)
        self._scaler.update()


class Precision:
    """Number formats of a run: autocast under `--amp`, or the model's own dtype under `--model-dtype`.

    Attributes:
        model_dtype: dtype of the model and its input, None for float32.
        loss_scaler: `LossScaler` for float16 autocast on CUDA, else None.
    """

    def __init__(self, args, device):
        self.model_dtype = getattr(torch, args.model_dtype) if args.model_dtype else None
        self.loss_scaler = None
        self._autocast = nullcontext
        if args.amp:
            amp_dtype = getattr(torch, args.amp_dtype)
            self._autocast = partial(torch.autocast, device_type=device.type, dtype=amp_dtype)
            if device.type == 'cuda' and amp_dtype == torch.float16:
                self.loss_scaler = LossScaler(device=device.type)

    @property
    def input_dtype(self):
        return self.model_dtype or torch.float32

    def autocast(self):
        return self._autocast()


class Updater:
    """Turns losses into weight updates: backward, unscaling, clipping, step.

    Args:
        clip_grad: clipping value of `clip_mode`, None for no clipping.
        clip_mode: timm's `norm`, `value` or `agc` (which leaves the classifier out).
    """

    def __init__(self, optimizer, task, *, loss_scaler=None, clip_grad=None, clip_mode='norm'):
        self.optimizer = optimizer
        self.task = task
        self.loss_scaler = loss_scaler
        self.clip_grad = clip_grad
        self.clip_mode = clip_mode
        self.second_order = getattr(optimizer, 'is_second_order', False)

    def backward(self, loss):
        if self.loss_scaler is not None:
            loss = self.loss_scaler.scale(loss)
        loss.backward(create_graph=self.second_order)

    def step(self, measure_norm=False):
        """Apply the accumulated gradients and clear them.

        Args:
            measure_norm: return the gradients' total norm.

        Returns:
            L2 norm of all gradients before clipping (float), or None when not asked for.
        """
        norm = None
        if self.loss_scaler is not None and (measure_norm or self.clip_grad is not None):
            self.loss_scaler.unscale_(self.optimizer)
        if measure_norm:
            gradients = [p.grad for p in self.task.get_clip_parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
        if self.clip_grad is not None:
            parameters = self.task.get_clip_parameters(exclude_head='agc' in self.clip_mode)
            dispatch_clip_grad(parameters, value=self.clip_grad, mode=self.clip_mode)
        if self.loss_scaler is not None:
            self.loss_scaler.step(self.optimizer)
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


def derived_seed(*parts):
    """A 63-bit seed that depends on every part and on nothing else, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') >> 1


def reseed_epoch(seed, epoch, rank):
    """Seed every generator of the process for one epoch (`--exact-resume`)."""
    value = derived_seed('epoch', seed, epoch, rank)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
