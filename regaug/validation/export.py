"""Networks as programs of their own: `torch.export`, ONNX where it is installed, and a small JSON file beside.

A program runs without this package: `torch.export.load(FILE).module()(input)`, for any batch size.
"""

import copy
import importlib.util
import io
import json
import logging
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from regaug.errors import OptionError
from regaug.evaluators import Needs
from regaug.files import write_whole
from regaug.validation.model import num_parameters

_logger = logging.getLogger('validate')
_TIMED_BATCH, _ROUNDS = 8, 7


class Export:
    """Writes each network as a program, checks it against the network, and measures it beside the full network.

    Args:
        folder: Where to write.
    """

    needs = Needs()

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.full = None

    def check(self, model: nn.Module, data: Any):
        """Export the full network, in memory: what cannot be exported is refused here."""
        if data.args.rank:
            return
        try:
            program = export_program(model, data.data_config['input_size'])
        except Exception as error:  # whatever the tracer stumbles over
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OptionError(
                f'--export {self.folder}: {type(model).__name__} cannot be exported ({reason}).'
            ) from error
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        self.full = (program.module(), len(buffer.getvalue()))

    def run(self, network: nn.Module, data: Any) -> Iterator[tuple[str, Any]]:
        """Write the files; yield size in MB and milliseconds a batch of 8 on the CPU, for it and the full network."""
        if data.args.rank:
            return
        input_size = data.data_config['input_size']
        with torch.inference_mode(False), torch.no_grad():
            network = copy.deepcopy(unwrap_model(network)).cpu().eval()
            program = export_program(network, input_size)
            path = self.folder / f'{data.network_name}.pt2'
            save(program, path)
            loaded = torch.export.load(path).module()
            difference = largest_difference(network, loaded, input_size)
            full, full_bytes = self.full
            input = torch.randn(_TIMED_BATCH, *input_size, generator=torch.Generator().manual_seed(0))
            dtype = next(network.parameters()).dtype
            milliseconds, full_milliseconds = time_beside(lambda: loaded(input.to(dtype)), lambda: full(input))
            onnx = export_onnx(network, input_size, path.with_suffix('.onnx'))
        measured = {
            'export_mb': path.stat().st_size / 1e6,
            'export_full_mb': full_bytes / 1e6,
            'export_ms': milliseconds,
            'export_full_ms': full_milliseconds,
        }
        kept = data.valid_labels
        facts = {
            'model': data.args.model,
            'width': data.width or 1.0,
            'num_classes': data.num_classes,
            'classes': {kept[index] if kept else index: name for index, name in data.class_names().items()},
            'input_size': list(input_size),
            'dtype': str(dtype).removeprefix('torch.'),
            'mean': list(data.data_config['mean']),
            'std': list(data.data_config['std']),
            'interpolation': data.data_config['interpolation'],
            'crop_pct': data.data_config['crop_pct'],
            'parameters': num_parameters(network),
            'accuracy': {name: data.metrics[name] for name in ('top1', 'top5')},
            'largest_difference': difference,
            'onnx': onnx,
            **measured,
        }
        write_whole(path.with_suffix('.json'), json.dumps(facts, indent=4))
        _logger.info(f'{path}: its logits differ from those of the network by {difference:.1e} at most.')
        yield from measured.items()


def example_input(network: nn.Module, input_size: tuple[int, int, int], batch_size: int = 2) -> torch.Tensor:
    """A random batch in the number format of the network."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, *input_size, generator=generator).to(next(network.parameters()).dtype)


def export_program(network: nn.Module, input_size: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """A network on the CPU as a program with a free batch size."""
    network = copy.deepcopy(network).eval()
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    with torch.no_grad():
        return torch.export.export(network, (example_input(network, input_size),), dynamic_shapes=shapes)


def save(program: torch.export.ExportedProgram, path: Path):
    """Write a program; the file appears whole or not at all."""
    temporary = path.with_name(f'{path.stem}.tmp.pt2')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, temporary)
        temporary.replace(path)
    except OSError as error:
        raise OptionError(f'--export {path.parent}: {error}') from error


def largest_difference(network: nn.Module, program: Callable, input_size: tuple[int, int, int]) -> float:
    """Largest difference of logits between a network and its program, for batches of two sizes."""
    inputs = [example_input(network, input_size, batch_size) for batch_size in (1, 3)]
    return max(float((network(input) - program(input)).abs().max()) for input in inputs)


def time_beside(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """Median milliseconds of two functions, run in turn."""
    seconds = ([], [])
    for index in range(_ROUNDS + 1):
        for times, function in zip(seconds, (first, second)):
            start = time.perf_counter()
            function()
            if index:  # the first round warms up
                times.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[0]), 1000 * statistics.median(seconds[1])


def export_onnx(network: nn.Module, input_size: tuple[int, int, int], path: Path) -> str | None:
    """Write a network in the ONNX format where the packages are installed; the file's name, or None."""
    if any(importlib.util.find_spec(name) is None for name in ('onnx', 'onnxscript')):
        return None
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(
        network,
        (example_input(network, input_size),),
        path,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=['input'],
        output_names=['output'],
        external_data=False,
        verbose=False,
    )
    return path.name


def create_export(args: Namespace) -> list[Export]:
    """Build the evaluator from the options of validate.py; none where they do not ask for it."""
    return [Export(args.export)] if args.export else []
