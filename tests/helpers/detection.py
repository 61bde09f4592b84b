"""Small data in COCO's format, of coloured rectangles, and quick detectors for them."""

import json

import numpy as np
import torch
from PIL import Image

from regaug.detection import parse
from regaug.detection.__main__ import main
from regaug.detection.data import Detections, Split
from regaug.detection.model import create_detector, create_gradaug

COLOURS = {7: (255, 0, 0), 3: (0, 0, 255)}  # by category id; label 1 is that of category 3
MAPS = 24
QUICK = {
    'box_batch_size_per_image': 8,
    'rpn_batch_size_per_image': 16,
    'rpn_pre_nms_top_n_train': 20,
    'rpn_post_nms_top_n_train': 10,
    'rpn_pre_nms_top_n_test': 20,
    'rpn_post_nms_top_n_test': 10,
    'box_detections_per_img': 4,
}


def rectangle(box):
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def annotation(number, image, category, box, **more):
    """An entry of COCO's format for a box of left, top, right and bottom."""
    left, top, right, bottom = box
    size = [right - left, bottom - top]
    entry = {'id': number, 'image_id': image, 'category_id': category, 'bbox': [left, top, *size], 'iscrowd': 0}
    return {**entry, 'area': size[0] * size[1], 'segmentation': [rectangle(box)], **more}


def write_split(root, split, boxes, size=(80, 64)):
    """Draw images and write their json.

    Args:
        boxes: for each image a list of (category id, box).
        size: width and height of the images.
    """
    (root / split).mkdir(parents=True)
    content = {'images': [], 'annotations': [], 'categories': [{'id': 7, 'name': 'red'}, {'id': 3, 'name': 'blue'}]}
    for image, objects in enumerate(boxes, start=100):
        pixels = np.full((size[1], size[0], 3), 40, np.uint8)
        for category, box in objects:
            left, top, right, bottom = box
            pixels[top:bottom, left:right] = COLOURS[category]
            number = len(content['annotations']) + 1
            content['annotations'].append(annotation(number, image, category, box))
        Image.fromarray(pixels).save(root / split / f'{image}.png')
        content['images'].append({'id': image, 'file_name': f'{image}.png', 'width': size[0], 'height': size[1]})
    (root / f'instances_{split}.json').write_text(json.dumps(content))
    return content


def random_boxes(count, seed):
    """Boxes that do not overlap: a red one on the left half of each image, a blue one on the right half."""
    rng = np.random.default_rng(seed)

    def box(start):
        left, top = start + rng.integers(0, 12), rng.integers(0, 24)
        return [int(value) for value in (left, top, left + rng.integers(12, 28), top + rng.integers(12, 40))]

    return [[(7, box(0)), (3, box(40))] for _ in range(count)]


def detection_argv(folder, *options):
    """Command line of a quick run; `options` come last and win."""
    quick = ['--data-dir', folder, '--backbone', 'test_resnet', '--size', 64, '--workers', 0, '--device', 'cpu']
    quick += ['--batch-size', 2, '--epochs', 2, '--warmup-updates', 2, '--lr', 0.01]
    return [str(part) for part in (*quick, '--detector-kwargs', *pairs(QUICK), *options)]


def pairs(values):
    return [f'{key}={value}' for key, value in values.items()]


def detection_args(folder, *options, rank=0, world_size=1):
    args = parse(detection_argv(folder, *options))
    args.rank, args.world_size, args.distributed = rank, world_size, world_size > 1
    return args


def run_detection(folder, output, *options, experiment='run', status=0):
    """Run `python -m regaug.detection` in this process; returns the folder of the experiment."""
    places = ['--output', output, '--experiment', experiment]
    assert main(detection_argv(folder, *places, *options)) == status
    return output / experiment


def make_detector(folder, *options, dtype=torch.float64):
    """(args, detector in train mode, GradAug or None) for these options."""
    args = detection_args(folder, *options)
    detector = create_detector(args, num_classes=3)
    gradaug = create_gradaug(args, detector)[0] if args.gradaug else None
    return args, detector.to(dtype).train(), gradaug


def make_batch(folder, count=2, *, masks=True, dtype=torch.float64):
    """The first images of the training split, in [0, 1], and their targets."""
    dataset = Detections(Split(folder, 'train2017', option='--train-split', masks=masks), masks=masks)
    images, targets = zip(*(dataset[index] for index in range(count)), strict=True)
    targets = [{**target, 'boxes': target['boxes'].to(dtype)} for target in targets]
    return [image.to(dtype) / 255 for image in images], targets
