"""From losses to weights: backward, unscaling, clipping, step."""

from typing import Any

import torch
from timm.utils import dispatch_clip_grad
from torch import nn

_LEAST_SCALE = 2.0**-20  # below it after 37 overflows in a row, from 65,536


class Updater:
    """Turns losses into weight updates: backward, unscaling, clipping, step.

    Args:
        clip_grad: clipping value of `clip_mode`, None for no clipping.
        clip_mode: timm's `norm`, `value` or `agc` (which leaves the classifier out).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        task: nn.Module,
        *,
        loss_scaler: Any = None,
        clip_grad: Any = None,
        clip_mode: str = 'norm',
    ):
        self.optimizer = optimizer
        self.task = task
        self.loss_scaler = loss_scaler
        self.clip_grad = clip_grad
        self.clip_mode = clip_mode
        self.second_order = getattr(optimizer, 'is_second_order', False)

    def backward(self, loss: torch.Tensor):
        if self.loss_scaler is not None:
            loss = self.loss_scaler.scale(loss)
        loss.backward(create_graph=self.second_order)

    @property
    def stuck(self) -> bool:
        """The loss scaler has skipped so many updates that the gradients do not overflow, they are no numbers."""
        return self.loss_scaler is not None and self.loss_scaler.get_scale() < _LEAST_SCALE

    def step(self, measure_norm: bool = False) -> torch.Tensor | None:
        """Apply the accumulated gradients and clear them.

        Args:
            measure_norm: give the norm also under a loss scaler, which looks after gradients that are not finite by
                itself.

        Returns:
            L2 norm of all gradients before clipping, on the device, or None.
        """
        norm = None
        if self.loss_scaler is not None and (measure_norm or self.clip_grad is not None):
            self.loss_scaler.unscale_(self.optimizer)
        if measure_norm or self.loss_scaler is None:
            gradients = [p.grad.detach() for p in self.task.get_clip_parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_grad is not None:
            parameters = self.task.get_clip_parameters(exclude_head='agc' in self.clip_mode)
            dispatch_clip_grad(parameters, value=self.clip_grad, mode=self.clip_mode)
        if self.loss_scaler is not None:
            self.loss_scaler.step(self.optimizer)
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm
