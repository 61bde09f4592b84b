"""Device, process group and number formats of a run."""

import logging
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.utils import NativeScaler, init_distributed_device

_logger = logging.getLogger('train')


def prepare_device(args: Namespace):
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

    def scale(self, loss: torch.Tensor):
        return self._scaler.scale(loss)

    def unscale_(self, optimizer: torch.optim.Optimizer):
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer):
        self._scaler.step(optimizer)
        self._scaler.update()

    def get_scale(self) -> float:
        return self._scaler.get_scale()


class Precision:
    """Number formats of a run: autocast under `--amp`, or the model's own dtype under `--model-dtype`.

    Attributes:
        model_dtype: dtype of the model and its input, None for float32.
        loss_scaler: `LossScaler` for float16 autocast on CUDA, else None.
    """

    def __init__(self, args: Namespace, device: torch.device):
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


def to_device(input: torch.Tensor, device: torch.device, dtype: Any):
    """Move images, or NaFlex's dict of tensors of which only the patches are images."""
    if isinstance(input, dict):
        return {
            key: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            if torch.is_tensor(value)
            else value
            for key, value in input.items()
        }
    return input.to(device=device, dtype=dtype)
