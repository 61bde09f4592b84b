"""Data in COCO's format: what a json says, checked once; images with boxes, labels and masks; batches of them."""

import json
import logging
import random
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from regaug.data.workers import leave_signals_to_main
from regaug.errors import OptionError
from regaug.seeds import derived_seed

_logger = logging.getLogger('train')
_FINER = 8  # than the image are the outlines of masks
Target = dict[str, torch.Tensor]


class Split:
    """The images of a split and the objects on them.

    Objects whose box has no area or lies outside of the image are left out, and so are, where masks are wanted, those
    without polygons; both are counted in the log. Boxes are cut at the border of the image.

    Args:
        data_dir: folder with `<split>/` and `instances_<split>.json` or `annotations/instances_<split>.json`.
        option: the option that named the split, for messages.
        masks: objects need a mask.

    Attributes:
        images: the json's entries of images.
        objects: image id -> its objects, crowds left out: `box` (left, top, right, bottom in pixels of the file),
            `category_id`, `polygons`.
        ground_truth: the json without what was left out, for evaluation.
        categories: category id -> name, in ascending order.

    Raises:
        OptionError: there is no such file, it is not in COCO's format, names missing images or has no objects.
    """

    def __init__(self, data_dir: str, split: str, *, option: str, masks: bool):
        self.where = f'{option} {split}'
        self.folder = Path(data_dir) / split
        names = [f'{folder}instances_{split}.json' for folder in ('annotations/', '')]
        path = next((Path(data_dir) / name for name in names if (Path(data_dir) / name).is_file()), None)
        if path is None or not self.folder.is_dir():
            lacking = names[0] if path is None else f'folder {split}'
            raise OptionError(f'--data-dir {data_dir} {self.where}: there is no {lacking} in it.')
        try:
            self.ground_truth = json.loads(path.read_text())
            self.images = self.ground_truth['images']
            self.categories = {entry['id']: str(entry['name']) for entry in self.ground_truth['categories']}
            self.categories = dict(sorted(self.categories.items()))
            sizes = {entry['id']: (entry['width'], entry['height']) for entry in self.images}
            files = {self.folder / entry['file_name'] for entry in self.images}
            self._sort_objects(sizes, masks)
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, OptionError):
                raise
            reason = f'no {error}' if isinstance(error, KeyError) else str(error)
            raise OptionError(f'{self.where}: {path} is not in the format of COCO ({reason}).') from error
        missing = sorted(file.name for file in files if not file.is_file())
        if missing:
            count = len(missing)
            raise OptionError(f'{self.where}: {count} images of {path} are not there, the first is {missing[0]}.')
        if not any(self.objects.values()):
            raise OptionError(f'{self.where}: {path} has no annotations to use.')

    def _sort_objects(self, sizes: dict[Any, tuple[int, int]], masks: bool):
        self.objects: dict[Any, list[dict]] = {image: [] for image in sizes}
        kept, counts = [], {'a box outside of the image or without area': 0, 'no polygons': 0}
        for entry in self.ground_truth['annotations']:
            left, top, width, height = entry['bbox']
            limits = sizes[entry['image_id']]
            right, bottom = min(left + width, limits[0]), min(top + height, limits[1])
            left, top = max(left, 0), max(top, 0)
            polygons = entry.get('segmentation')
            polygons = [part for part in polygons if len(part) >= 6] if isinstance(polygons, list) else []
            if entry['category_id'] not in self.categories:
                raise KeyError(f'category {entry["category_id"]}')
            if not (right > left and bottom > top):  # of a number that is none, too
                counts['a box outside of the image or without area'] += 1
            elif masks and not polygons and not entry.get('iscrowd'):
                counts['no polygons'] += 1
            else:
                kept.append({'iscrowd': 0, 'area': width * height, **entry})
                if not entry.get('iscrowd'):
                    box = (left, top, right, bottom)
                    self.objects[entry['image_id']].append(
                        {'box': box, 'category_id': entry['category_id'], 'polygons': polygons}
                    )
        total = len(self.ground_truth['annotations'])
        for reason, count in counts.items():
            if count:
                _logger.warning(f'{self.where}: {count} of {total} objects are left out: {reason}.')
        self.ground_truth = {'info': {}, **self.ground_truth, 'annotations': kept}


class Detections(Dataset):
    """Images with their objects, of which each has a box, a label (1 for the first category) and maybe a mask.

    Args:
        seed: of the flips, which follow from seed, epoch and image alone; None for no flips and every image, else those
            with objects.

    Attributes:
        epoch: the running one.
    """

    def __init__(self, split: Split, *, masks: bool, seed: int | None = None):
        self.split, self.masks, self.seed, self.epoch = split, masks, seed, 0
        self.images = [entry for entry in split.images if seed is None or split.objects[entry['id']]]
        self.labels = {category: label for label, category in enumerate(split.categories, start=1)}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Target]:
        """Return the image (uint8 [3, H, W]) and its `boxes` [N, 4] in pixels, `labels` [N], `masks` [N, H, W]."""
        entry = self.images[index]
        path = self.split.folder / entry['file_name']
        try:
            with Image.open(path) as file:
                image = pil_to_tensor(file.convert('RGB'))
        except OSError as error:
            raise OptionError(f'{self.split.where}: {path} cannot be read ({error}).') from error
        height, width = image.shape[-2:]
        if (width, height) != (entry['width'], entry['height']):
            said = f'{entry["width"]}x{entry["height"]}'
            raise OptionError(f'{self.split.where}: {path} has {width}x{height} pixels, the json says {said}.')
        objects = self.split.objects[entry['id']]
        target = {
            'boxes': torch.tensor([part['box'] for part in objects], dtype=torch.float32).view(-1, 4),
            'labels': torch.tensor([self.labels[part['category_id']] for part in objects], dtype=torch.int64),
        }
        if self.masks:
            drawn = [torch.from_numpy(mask_of(part['polygons'], width, height)) for part in objects]
            target['masks'] = torch.stack([torch.empty(height, width, dtype=torch.uint8), *drawn])[1:]
        rng = random.Random(derived_seed('flip', self.seed, self.epoch, index))
        return flip(image, target) if self.seed is not None and rng.random() < 0.5 else (image, target)


def mask_of(polygons: Sequence[Sequence[float]], width: int, height: int) -> np.ndarray:
    """Draw polygons (x, y, x, y, ... in pixels, 0 at the border of the image) as a mask of 0 and 1, uint8 [H, W].

    A pixel belongs to it if its centre does. Pillow draws the outline too, so it draws a part of the image at a
    multiple of the size, where the outline is thin and centres are pixels of their own.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    for points in polygons:
        corners = np.reshape(points, (-1, 2))
        left, top = start = np.floor(corners.min(axis=0)).astype(int).clip(0)
        right, bottom = end = np.ceil(corners.max(axis=0)).astype(int).clip(max=(width, height))
        if (start >= end).any():  # outside of the image
            continue
        drawing = Image.new('L', tuple(_FINER * (end - start)))
        ImageDraw.Draw(drawing).polygon((_FINER * (corners - start)).ravel().tolist(), fill=1)
        mask[top:bottom, left:right] |= np.asarray(drawing)[_FINER // 2 :: _FINER, _FINER // 2 :: _FINER]
    return mask


def flip(image: torch.Tensor, target: Target) -> tuple[torch.Tensor, Target]:
    """Mirror an image and its objects from left to right."""
    boxes = target['boxes'].clone()
    boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    masks = {'masks': target['masks'].flip(-1)} if 'masks' in target else {}
    return image.flip(-1), {**target, 'boxes': boxes, **masks}


def load(dataset: Dataset, batches: Sequence[Sequence[int]], workers: int, device: torch.device) -> Iterator[tuple]:
    """Yield lists of images, in [0, 1], and of targets for the indices of each batch, on the device."""
    pinned = device.type == 'cuda'
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=list, pin_memory=pinned)
    leave_signals_to_main(loader)
    for samples in loader:
        images = [image.to(device, non_blocking=True).float() / 255 for image, _ in samples]
        targets = [{name: value.to(device, non_blocking=True) for name, value in part.items()} for _, part in samples]
        yield images, targets


class TrainBatches:
    """The training batches of this rank, as the engine takes them: the order follows from seed and epoch alone.

    What is left over at the end of an epoch comes into another one's batches.

    Raises:
        OptionError: there are fewer images than an update takes.
    """

    mixup_fn = sampler = batch_sampler = None

    def __init__(self, dataset: Detections, args: Namespace, device: torch.device):
        self.dataset, self.args, self.device = dataset, args, device
        if not len(self):
            raise OptionError(
                f'--batch-size {args.batch_size}: {args.world_size} processes take more than the '
                f'{len(dataset)} training images with objects.'
            )

    @property
    def loader(self) -> 'TrainBatches':
        return self

    def use(self, phase: Any):
        """Every phase has the same batches."""

    def set_epoch(self, epoch: int):
        self.dataset.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset) // (self.args.batch_size * self.args.world_size)

    def __iter__(self) -> Iterator[tuple]:
        size, rank, world_size = self.args.batch_size, self.args.rank, self.args.world_size
        rng = random.Random(derived_seed('order', self.args.seed, self.dataset.epoch))
        order = rng.sample(range(len(self.dataset)), len(self.dataset))
        starts = [(batch * world_size + rank) * size for batch in range(len(self))]
        batches = [order[start : start + size] for start in starts]
        return load(self.dataset, batches, self.args.workers, self.device)
