"""Class activation maps (Zhou et al., arXiv 1512.04150), as in GradAug's figure 1: what each network looks at.

M_c = sum_k w_k^c f_k over the maps f before pooling: its mean plus the bias is the logit of class c. Drawn without
ReLU, from its minimum to its maximum, bilinearly at the size of the image. A picture is one row: the input, the
baseline, the sub-networks, the full network, all for the class that the image is labelled with.
"""

import copy
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from timm.utils import unwrap_model
from torch import nn
from torch.nn import functional

from regaug.errors import OptionError
from regaug.evaluators.evaluator import Needs
from regaug.files import load_weights

_logger = logging.getLogger('validate')
PANEL, CAPTION = 224, 32  # pixels
HEAT, IMAGE = 0.3, 0.5  # shares in the overlay, as in the original


def class_maps(network: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """Class activation maps of a network: [B, K, H, W], for all its classes.

    Raises:
        ValueError: It is no linear classifier on maps; the message says what it has.
    """
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ValueError(f'its classifier is a {type(classifier).__name__}, not a linear layer')
    features = network.forward_features(input)
    if not torch.is_tensor(features) or features.ndim != 4:
        raise ValueError('its last features are no maps')
    if getattr(network, 'output_fmt', 'NCHW') == 'NHWC':
        features = features.permute(0, 3, 1, 2)
    if features.shape[1] != classifier.in_features:
        raise ValueError(f'its classifier takes {classifier.in_features} values, its maps are {features.shape[1]}')
    return torch.einsum('kc,bchw->bkhw', classifier.weight.float(), features.float())


def check_maps(network: nn.Module, input: torch.Tensor):
    """Make sure that the maps explain the logits: their mean plus the bias.

    Raises:
        ValueError: They do not, since something comes between the maps and the classifier.
    """
    maps = class_maps(network, input)
    bias = network.get_classifier().bias
    logits = maps.mean(dim=(2, 3)) + (0 if bias is None else bias)
    output = network(input)
    if not torch.allclose(logits, output, rtol=1e-3, atol=1e-3 * float(output.abs().max())):
        raise ValueError('the mean of its maps is not what its classifier takes (another pooling, or layers between)')


def jet(heat: np.ndarray) -> np.ndarray:
    """Colours from blue (0) over green to red (1): [H, W] to [H, W, 3], in [0, 1]."""
    return np.clip(1.5 - np.abs(4 * heat[..., None] - np.array([3.0, 2.0, 1.0])), 0, 1)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Heat over an image: both in [0, 1], [H, W, 3] and [H, W]."""
    return HEAT * jet(heat) + IMAGE * image


class ClassActivationMaps:
    """Pictures and raw maps of some images, one row of networks each.

    Args:
        folder: Where to write.
        num_images: How many images, taken evenly from the split.
        baseline: Checkpoint of the same model to draw beside; empty for none.
        use_ema: Take the averaged weights of that checkpoint.
    """

    needs = Needs()

    def __init__(self, folder: str | Path, *, num_images: int = 8, baseline: str = '', use_ema: bool = False):
        self.folder = Path(folder)
        self.num_images = num_images
        self.baseline_path = baseline
        self.use_ema = use_ema
        self.baseline = None
        self.panels = {}  # width, map and probability of each image, by network

    def check(self, model: nn.Module, data: Any):
        """Refuse a model whose classifier is not linear on pooled maps, and a baseline that does not fit it."""
        if not hasattr(data.dataset, '__getitem__'):
            raise OptionError(f'--cam {self.folder}: the data set is a stream; images need a place of their own.')
        generator = torch.Generator().manual_seed(0)
        input = torch.randn(2, *data.data_config['input_size'], generator=generator)
        probe = copy.deepcopy(model).eval()  # some models keep what they computed
        try:
            with torch.no_grad():
                check_maps(probe, input)
        except (AttributeError, ValueError) as error:
            raise OptionError(f'--cam {self.folder}: {type(model).__name__} has no such maps: {error}.') from error
        if self.baseline_path:
            self.baseline = copy.deepcopy(model).eval()
            load_weights(self.baseline, self.baseline_path, use_ema=self.use_ema, option='--cam-baseline')

    def run(self, network: nn.Module, data: Any) -> Iterator[tuple[str, Any]]:
        """Write the pictures, with all networks so far; yield no column."""
        if data.args.rank == 0:
            full = data.width in (None, 1)
            networks = {'full network' if full else f'width {data.width:g}': (data.width or 1, unwrap_model(network))}
            if self.baseline is not None and not self.panels:
                like = next(network.parameters())
                networks['baseline'] = (0, self.baseline.to(like.device, like.dtype))
            self._draw(networks, data)
        yield from ()

    def _draw(self, networks: dict[str, tuple[float, nn.Module]], data: Any):
        count = min(self.num_images, len(data.dataset))
        places = [index * len(data.dataset) // count for index in range(count)]
        done = 0
        for input, target in data.loader(data.part(places), shared=False):
            input, target = data.to_device(input), target.to(data.device)
            pixels = self._pixels(input, data)
            classes = target if data.valid_labels is None else torch.tensor(data.valid_labels).to(target)[target]
            for name, (width, network) in networks.items():
                with data.precision.autocast():
                    maps = class_maps(network, input)
                    probability = data.logits(network, input).float().softmax(1).gather(1, target[:, None])[:, 0]
                rows = torch.arange(len(target), device=target.device)
                for i, (heat, share) in enumerate(zip(maps[rows, classes].cpu(), probability.tolist())):
                    self.panels.setdefault(places[done + i], {})[name] = (width, heat, share)
            for i, image in enumerate(pixels):
                self._write(places[done + i], image, int(target[i]), data)
            done += len(target)
        _logger.info(f'{done} pictures of {", ".join(networks)} in {self.folder}.')

    @staticmethod
    def _pixels(input: torch.Tensor, data: Any) -> np.ndarray:
        """The images themselves: [B, H, W, 3] in [0, 1]."""
        mean, std = (torch.tensor(data.data_config[key]).view(1, -1, 1, 1) for key in ('mean', 'std'))
        pixels = (input.float().cpu() * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
        return pixels.expand(-1, -1, -1, 3).numpy()

    def _write(self, place: int, image: np.ndarray, label: int, data: Any):
        captions, pictures, raw = [data.class_names().get(label, str(label))], [image], {}
        for name, (_, heat, share) in sorted(self.panels[place].items(), key=lambda panel: panel[1][0]):
            raw[name] = heat.numpy()
            scaled = functional.interpolate(heat[None, None], image.shape[:2], mode='bilinear', align_corners=False)[
                0, 0
            ]
            low, high = scaled.min(), scaled.max()
            pictures.append(overlay(image, ((scaled - low) / (high - low).clamp(min=1e-12)).numpy()))
            captions.append(f'{name}: {share:.3f}')
        stem = f'{data.networks_name}-{place:06d}'
        self.folder.mkdir(parents=True, exist_ok=True)
        draw_row(pictures, captions).save(self.folder / f'{stem}.png')
        np.savez(self.folder / f'{stem}.npz', input=image, **raw)


def draw_row(pictures: list[np.ndarray], captions: list[str]) -> Image.Image:
    """Pictures [H, W, 3] in [0, 1] side by side, each with its caption above."""
    row = Image.new('RGB', (PANEL * len(pictures), PANEL + CAPTION), 'white')
    draw = ImageDraw.Draw(row)
    for index, (picture, caption) in enumerate(zip(pictures, captions)):
        panel = Image.fromarray((255 * picture + 0.5).astype(np.uint8)).resize((PANEL, PANEL), Image.BILINEAR)
        row.paste(panel, (PANEL * index, CAPTION))
        draw.text((PANEL * index + 6, 9), caption, fill='black')
    return row


def create(args: Namespace) -> ClassActivationMaps | None:
    """Build the evaluator from the options of validate.py."""
    if not args.cam:
        return None
    return ClassActivationMaps(args.cam, num_images=args.cam_images, baseline=args.cam_baseline, use_ema=args.use_ema)
