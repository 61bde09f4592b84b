"""Pictures of what training sees: a grid of images with a caption under each, as one PNG."""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from timm.data.loader import adapt_to_chs
from torchvision.transforms.functional import to_pil_image

from regaug.data.datasets import class_index

MAX_IMAGES = 16
_SMALLEST = 96  # pixels: smaller images are enlarged, so that captions fit under them
_CAPTION = 14  # pixels


def draw(images: torch.Tensor, captions: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Draw the first images of a batch.

    Args:
        images: [N, C, H, W], normalised.
        captions: one for each image.
        mean, std: of the normalisation, one number for each channel.
    """
    images = images[:MAX_IMAGES].detach().float().cpu()
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    height, width = images.shape[-2:]
    scale = max(1, math.ceil(_SMALLEST / min(height, width)))
    columns = min(4, len(images)) or 1
    tile = width * scale + 2, height * scale + _CAPTION + 2
    picture = Image.new('RGB', (columns * tile[0], math.ceil(len(images) / columns) * tile[1]), 'white')
    pen = ImageDraw.Draw(picture)
    for index, (image, caption) in enumerate(zip(images, captions)):
        left, top = index % columns * tile[0], index // columns * tile[1]
        tiled = to_pil_image((image * std + mean).clamp(0, 1)).convert('RGB')
        picture.paste(tiled.resize((width * scale, height * scale), Image.Resampling.NEAREST), (left, top))
        pen.text((left + 1, top + height * scale + 1), caption, fill='black')
    return picture


def captions_of(target: torch.Tensor, names: Sequence[str] | None = None) -> list[str]:
    """Labels as text: the class, for soft targets the two largest shares, for several labels an image the first three.

    Args:
        target: class indices [B], or dense targets [B, K].
        names: of the classes, their indices if None.
    """
    name = (lambda label: names[label]) if names else str
    if target.ndim == 1:
        return [name(label) for label in target.tolist()]
    values, labels = target.float().topk(min(3, target.shape[1]), dim=1)
    texts = []
    for lams, indices in zip(values.tolist(), labels.tolist()):
        if lams[0] + sum(lams[1:]) > 1.01:  # independent labels
            texts.append(' '.join(name(label) for lam, label in zip(lams, indices) if lam > 0.5))
        elif len(lams) > 1 and lams[1] > 0.05:
            texts.append(f'{name(indices[0])}:{lams[0]:.2f}+{name(indices[1])}')
        else:
            texts.append(name(indices[0]))
    return texts


class Pictures:
    """Writes the pictures of a run.

    Args:
        folder: where the PNGs go.
        mean, std: of the normalisation.
        names: of the classes, or None.
    """

    def __init__(
        self, folder: str | Path, mean: Sequence[float], std: Sequence[float], names: Sequence[str] | None = None
    ):
        self.folder = Path(folder)
        self.mean, self.std, self.names = mean, std, names

    def save(self, phase: str, input: torch.Tensor, target: torch.Tensor, more: Sequence):
        """Write `pictures/<phase>-batch.png`, and one file for each of the methods' pictures.

        Args:
            input: images as the full network gets them, [B, C, H, W].
            target: their labels.
            more: (name, images, captions) of the methods, see `regaug.methods.Method.pictures`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, images, captions in [('batch', input, captions_of(target, self.names)), *more]:
            draw(images, captions, self.mean, self.std).save(self.folder / f'{phase}-{name}.png')


def create_pictures(args: Namespace, folder: str | Path, dataset: Any, data_config: dict[str, Any]) -> Pictures | None:
    """Where the pictures of `--save-images` go, None without; a dry run keeps them too."""
    if not args.save_images:
        return None
    classes = class_index(dataset) or {}
    names = [str(name) for name in sorted(classes, key=classes.get)] or None
    channels = data_config['input_size'][0]
    mean, std = (adapt_to_chs(data_config[key], channels) for key in ('mean', 'std'))
    return Pictures(Path(folder) / 'pictures', mean, std, names)
