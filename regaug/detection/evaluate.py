"""Average precision by pycocotools where it is installed, and pictures of what a detector finds."""

import contextlib
import importlib.util
import io
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from regaug.detection.data import Detections, Split, Target, load

SHOWN = 8  # images of a picture
_SURE = 0.5  # score from which on predictions are drawn
_COLOURS = ('red', 'lime', 'blue', 'yellow', 'magenta', 'cyan', 'orange', 'purple')


def can_measure() -> bool:
    """Whether pycocotools is installed."""
    return importlib.util.find_spec('pycocotools') is not None


@torch.inference_mode()
def predict(
    detector: nn.Module,
    dataset: Detections,
    indices: Sequence[int],
    args: Namespace,
    *,
    device: torch.device,
    precision: Any,
    keep: int = 0,
) -> tuple[list[dict], list[tuple]]:
    """Run a detector in evaluation mode.

    Args:
        indices: which images.
        keep: how many images to give back for a picture.

    Returns:
        (results, kept): entries in COCO's format, masks only where pycocotools can pack them; (image, target,
        prediction) of the first images.
    """
    size = args.validation_batch_size or args.batch_size
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    results, kept, position = [], [], 0
    detector.eval()
    for images, targets in load(dataset, batches, args.workers, device):
        with precision.autocast():
            predictions = detector(images)
        for image, target, prediction in zip(images, targets, predictions, strict=True):
            prediction = {name: value.float().cpu() for name, value in prediction.items()}
            if can_measure():
                results += as_results(prediction, dataset.images[indices[position]]['id'], dataset.split)
            if len(kept) < keep:
                kept.append((image.cpu(), {name: value.cpu() for name, value in target.items()}, prediction))
            position += 1
    return results, kept


def as_results(prediction: Target, image_id: Any, split: Split) -> list[dict]:
    """Write the prediction for one image in COCO's format of results."""
    from pycocotools import mask

    categories = list(split.categories)
    found = []
    for index, (left, top, right, bottom) in enumerate(prediction['boxes'].tolist()):
        entry = {
            'image_id': image_id,
            'category_id': categories[int(prediction['labels'][index]) - 1],
            'bbox': [left, top, right - left, bottom - top],
            'score': float(prediction['scores'][index]),
        }
        if 'masks' in prediction:
            pixels = prediction['masks'][index, 0].numpy() >= 0.5
            entry['segmentation'] = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
        found.append(entry)
    return found


def over_ranks(results: list[dict], distributed: bool) -> list[dict]:
    """Results of all ranks."""
    if not distributed:
        return results
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, results)
    return [entry for part in parts for entry in part]


def average_precision(results: list[dict], split: Split, image_ids: Sequence, *, masks: bool) -> dict[str, float]:
    """COCO's average precision in per cent: over IoU from 0.5 to 0.95, at 0.5 and at 0.75.

    Args:
        image_ids: of the images that were looked at.
        masks: measure masks too.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    metrics = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = split.ground_truth
        truth.createIndex()
        for name, kind in (('box', 'bbox'), ('mask', 'segm'))[: 1 + masks]:
            stats = [0.0, 0.0, 0.0]
            if results:
                evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in results]), kind)
                evaluation.params.imgIds = list(image_ids)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                stats = evaluation.stats
            for suffix, value in zip(('', '50', '75'), stats):
                metrics[f'{name}_ap{suffix}'] = 100 * float(value)
    return metrics


def save_picture(path: Path, kept: Sequence[tuple], names: Sequence[str]):
    """Write a picture: in each row an image with its ground truth, and with the predictions of a score above 0.5.

    Args:
        kept: (image in [0, 1], target, prediction) of each row.
        names: of the labels, from 1.
    """
    rows = []
    for image, target, prediction in kept:
        sure = prediction['scores'] >= _SURE
        found = {name: value[sure] for name, value in prediction.items()}
        scores = [f'{names[int(label) - 1]} {score:.2f}' for label, score in zip(found['labels'], found['scores'])]
        truth = draw_objects(image, target, [names[label - 1] for label in target['labels'].tolist()])
        rows.append(torch.cat([truth, draw_objects(image, found, scores)], dim=2))
    height, width = (sum(row.shape[1] for row in rows), max(row.shape[2] for row in rows))
    picture, top = torch.full((3, height, width), 255, dtype=torch.uint8), 0
    for row in rows:
        picture[:, top : top + row.shape[1], : row.shape[2]] = row
        top += row.shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.tmp')
    to_pil_image(picture).save(temporary, 'PNG')
    os.replace(temporary, path)


def draw_objects(image: torch.Tensor, objects: Target, captions: Sequence[str]) -> torch.Tensor:
    """Draw boxes and masks with captions on a copy of an image; uint8 [3, H, W]."""
    drawn = (image * 255).round().byte()
    colours = [_COLOURS[int(label) % len(_COLOURS)] for label in objects['labels']]
    if not colours:
        return drawn
    if 'masks' in objects:
        masks = objects['masks'].reshape(-1, *image.shape[-2:]) >= 0.5
        drawn = draw_segmentation_masks(drawn, masks, alpha=0.4, colors=colours)
    return draw_bounding_boxes(drawn, objects['boxes'], labels=list(captions), colors=colours)
