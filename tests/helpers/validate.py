"""What the tests of validate.py share: sizes, models, and evaluation written without timm's loaders."""

import math
import warnings

import numpy as np
import timm
import torch
from PIL import Image

import validate
from regaug.options import parse_validate

NUM_CLASSES, PER_CLASS, SIDE = 10, 4, 40
PIXELS, CROP_PCT = 32, 0.95  # input of the model
COLUMNS = ['model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation']


@torch.no_grad()
def top_k(output, labels, k):
    """Percentage of images whose label is among the k largest outputs, counted one by one."""
    best = output.argsort(dim=1, descending=True)[:, :k].tolist()
    hits = [label in row for row, label in zip(best, labels.tolist(), strict=True)]
    return round(100 * sum(hits) / len(hits), 4)


def prepare_images(folder, split):
    """The images of a split as the model gets them [N, 3, 32, 32] and their labels [N], prepared without timm."""
    paths = sorted(folder.glob(f'{split}/*/*.JPEG'))
    scaled = math.floor(PIXELS / CROP_PCT)
    first = (scaled - PIXELS) // 2
    box = (first, first, first + PIXELS, first + PIXELS)
    arrays = [np.asarray(Image.open(path).resize((scaled, scaled), Image.BILINEAR).crop(box)) for path in paths]
    return normalise(arrays), torch.arange(NUM_CLASSES).repeat_interleave(PER_CLASS)


def normalise(arrays):
    """Bytes of N images [H, W, 3] as the models of this test want them, float32 [N, 3, H, W] in [-1, 1]."""
    return (torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5


def make_model(images, seed, num_classes=NUM_CLASSES, name='test_resnet', **kwargs):
    """A model with random weights whose batch-norm fits the images, so that it does not predict one class only."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=num_classes, **kwargs)
    with torch.no_grad():
        for _ in range(30):
            model(images[0])
    return model.eval()


def validate_args(argv):
    """Options of validate.py for a quick run of one process on the CPU."""
    common = ['--model', 'test_resnet', '--num-classes', NUM_CLASSES, '--img-size', PIXELS, '--device', 'cpu', '-j', 0]
    args = parse_validate([str(item) for item in (*common, *argv)])
    args.distributed, args.world_size, args.rank, args.local_rank = False, 1, 0, 0
    args.several_networks = len(args.width or ()) > 1
    return args


def validate_rank(argv, rank, world_size):
    """The rows of validate.py in one of several processes, which belong to a process group already."""
    args = validate_args(argv)
    args.distributed, args.world_size, args.rank = world_size > 1, world_size, rank
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'unclosed file', ResourceWarning)
        return validate.validate(args)


def save_grey_model(folder):
    """Weights of a network of one channel, as a file."""
    torch.manual_seed(7)
    path = folder / 'grey.pth'
    torch.save(timm.create_model('test_resnet', num_classes=NUM_CLASSES, in_chans=1).state_dict(), path)
    return path
