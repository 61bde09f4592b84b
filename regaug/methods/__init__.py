"""The door of a method: what regaug adds to an update of timm's, one file each.

A module of this package is a method when it ends with

- `create(args, model, data_config) -> Method | None`: how it is built from the options, None when they do not ask for
  it. Called once, after timm has built the model and before batch-norm is converted and the model placed.

It may also have

- `adapt_phase(phase, epoch, args) -> Phase`: what the options change in a phase (see `training.phases`), a pure
  function. A method that is on in the phase adds its name (`phase.on('gradaug')`).
- `model_kwargs(args) -> dict[str, dict]`: arguments for timm's `create_model`, by the option that asks for them.

Modules are found by themselves, so a new method is a new file here, one in `options/`, and nothing else.
"""

import functools
import importlib
import pkgutil
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

Metrics = dict[str, torch.Tensor | float]
Term = tuple[str, Callable[..., dict[str, Any]]]
Pictures = list[tuple[str, torch.Tensor, list[str]]]


@dataclass(frozen=True)
class Context:
    """What a method may know about the micro-batch at hand.

    Attributes:
        num_updates: which update of the run this is, from 0.
        rank: this process among those that train together.
        micro_batch: which of the update's micro-batches this is, from 0.
        criterion: the training loss of the phase.
        autocast: gives the context in which a forward pass runs.
        network: the module that runs the terms' forward passes; under DDP the one that DDP made.
    """

    num_updates: int
    rank: int
    micro_batch: int
    criterion: nn.Module
    autocast: Callable[[], AbstractContextManager]
    network: nn.Module

    @property
    def key(self) -> tuple[int, int, int]:
        """What random draws depend on besides the seed: (num_updates, rank, micro_batch)."""
        return self.num_updates, self.rank, self.micro_batch


class Method:
    """One way to regularise. Hooks stand in the order in which a run calls them; none of them has to be there.

    A method draws from generators seeded by the run's seed and the context alone: nothing to store, exact resume for
    free. It keeps nothing on the model, which a moving average copies.

    Attributes:
        name: its name in a phase's `methods`.
        keep_pictures: keep what is done to the next micro-batch, for `pictures`.
        every: it costs time in every so many updates.
        order: among the methods of a run, the smaller first; of equal ones in the order of their names.
    """

    name = ''
    every = 1
    order = 0
    keep_pictures = False

    def attach(self, task: nn.Module):
        """Take hold of the task that trains, with the model in its place and before compilation and DDP."""

    def wrap(self, network: nn.Module) -> nn.Module:
        """Put around the network what DDP has to see beside it."""
        return network

    def start_phase(self, phase: Any):
        """Prepare for a `training.phases.Phase` that the method is on in."""

    def start_epoch(self, epoch: int):
        """Prepare for an epoch, counted from 0."""

    def train(self, mode: bool):
        """Follow the task's `train()` and `eval()`."""

    def close(self):
        """End processes that belong to the method; the run is over."""

    def select(self, input: torch.Tensor, target: torch.Tensor, context: Context):
        """Choose what to train on, without gradient.

        Returns:
            (input, target, metrics): in their places, and what to log about the choice.
        """
        return input, target, {}

    def loss_terms(self, terms: list[Term], input: torch.Tensor, target: torch.Tensor, context: Context) -> list[Term]:
        """The loss terms of a micro-batch, given those so far: more of them, or others in their place.

        A term is a name and a callable that runs one forward pass under autocast and returns timm's dict: `loss`,
        `output`, anything to log, and `weight` where the loss counts by a factor that the log leaves out. The first
        one is the full network's; it takes another `input` and `target` in place of its own. The terms run one after
        the other, each followed by its backward pass.
        """
        return terms

    def pictures(self) -> Pictures:
        """What the method did to the last micro-batch for which `keep_pictures` was set.

        Returns:
            List of (name, images [N, C, H, W] normalised, one caption for each image).
        """
        return []


@functools.cache
def modules() -> tuple[ModuleType, ...]:
    """The methods' modules, in the order of their names."""
    found = [importlib.import_module(f'{__name__}.{info.name}') for info in pkgutil.iter_modules(__path__)]
    return tuple(module for module in found if hasattr(module, 'create'))


def create_methods(args: Namespace, model: nn.Module, data_config: dict) -> list[Method]:
    """The methods that the options ask for, in the order in which they take part in an update."""
    created = [module.create(args, model, data_config) for module in modules()]
    return sorted((method for method in created if method is not None), key=lambda method: method.order)


def adapt_phase(phase: Any, epoch: int, args: Namespace):
    """A phase with what the methods' options change in it."""
    for module in modules():
        if hasattr(module, 'adapt_phase'):
            phase = module.adapt_phase(phase, epoch, args)
    return phase


def model_kwargs(args: Namespace) -> dict[str, dict[str, Any]]:
    """Arguments of `timm.create_model` that methods need, by the option that asks for them."""
    found = {}
    for module in modules():
        if hasattr(module, 'model_kwargs'):
            found |= module.model_kwargs(args)
    return found
