"""Makes corrupted images in the layout of ImageNet-C, by the optional package imagecorruptions-imaug.

Each image is resized to a short side of 256, cropped to 224 at the centre, corrupted, and stored as JPEG of quality 85.
What is random about an image depends on its name, the type, the severity and the seed alone, so that any number of
processes, and a run that goes on where another ended, make the same files. They are not bit for bit those of the
original: the package differs from it in details (frost).
"""

import importlib.util
import logging
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import CenterCrop, Compose, Resize

from regaug.errors import OptionError
from regaug.evaluators.corruptions import ALEXNET, SEVERITIES, TYPES
from regaug.evaluators.progress import Progress
from regaug.options.parser import Group, Option, Parser, check_values
from regaug.seeds import derived_seed

_logger = logging.getLogger('validate')
QUALITY = 85
_PREPARE = Compose([Resize(256), CenterCrop(224)])
SUFFIXES = ('.jpeg', '.jpg', '.png')
OPTIONS = Group(
    None,
    Option('source', str, None, 'folder of images, one sub-folder per class'),
    Option('destination', str, None, 'folder to make <type>/<severity>/<class>/ in'),
    Option('--corruptions', str, list(ALEXNET), 'types to make', nargs='+', choices=TYPES),
    Option('--severities', int, list(SEVERITIES), 'severities to make', nargs='+', choices=SEVERITIES),
    Option('--per-class', int, None, 'images of each class (default: all)', low=1),
    Option('--seed', int, 42, 'seed of what is random', low=0),
    Option('-j --workers', int, os.cpu_count(), 'processes', low=1),
)


def prepare(path: Path) -> Image.Image:
    """Read an image, resize its short side to 256, crop 224x224 at the centre."""
    with Image.open(path) as image:
        return _PREPARE(image.convert('RGB'))


def corrupt(image: Image.Image, name: str, severity: int, seed: int) -> Image.Image:
    """Corrupt an image, the same for the same seed."""
    from imagecorruptions import corrupt  # optional, and slow to import

    seed %= 2**32
    np.random.seed(seed)
    own_generator = {'seed': seed} if name in ('impulse_noise', 'glass_blur') else {}
    return Image.fromarray(corrupt(np.asarray(image), severity, name, **own_generator))


def make_all(job: tuple[Path, Path, Path, Sequence[str], Sequence[int], int]) -> int:
    """Make the corrupted versions of one image that are not there yet.

    Args:
        job: The image, the folder of all images, the folder to write to, types, severities and seed.

    Returns:
        How many were made.
    """
    path, source, destination, types, severities, seed = job
    image, made = None, 0
    relative = path.relative_to(source)
    for name in types:
        for severity in severities:
            target = (destination / name / str(severity) / relative).with_suffix('.JPEG')
            if target.exists():
                continue
            if image is None:
                image = prepare(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_suffix(f'.{os.getpid()}.tmp')
            key = derived_seed('corrupt', seed, relative.as_posix(), name, severity)
            corrupt(image, name, severity, key).save(temporary, 'JPEG', quality=QUALITY)
            os.replace(temporary, target)
            made += 1
    return made


def find_images(source: Path, per_class: int | None) -> list[Path]:
    """The images of a folder with one sub-folder per class, by name.

    Raises:
        OptionError: There are none, or one cannot be read.
    """
    if not source.is_dir():
        raise OptionError(f'SRC {source}: there is no such folder.')
    images = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        images += sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)[:per_class]
    if not images:
        raise OptionError(f'SRC {source}: there is no <class>/*.JPEG in it.')
    try:
        prepare(images[0])
    except (UnidentifiedImageError, OSError) as error:
        raise OptionError(f'SRC {images[0]}: {error}') from error
    return images


def main(argv: Sequence[str] | None = None):
    """Make corrupted images as the command line asks.

    Raises:
        OptionError: An option that cannot be used, no images, or the package is missing.
    """
    parser = Parser([OPTIONS], prog='python -m regaug.evaluators.corruptions', description='Make corrupted images.')
    args = parser.parse_args(argv)
    check_values(args, [OPTIONS])
    source, destination = Path(args.source), Path(args.destination)
    if importlib.util.find_spec('imagecorruptions') is None:
        raise OptionError('corrupting images needs a package: pip install imagecorruptions-imaug')
    images = find_images(source, args.per_class)
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f'DST {destination}: {error}') from error
    jobs = [(path, source, destination, args.corruptions, args.severities, args.seed) for path in images]
    progress = Progress('Images', len(jobs), max(1, len(jobs) // 20))
    made = 0
    # Not forked: OpenCV and numba keep threads of their own.
    with multiprocessing.get_context('spawn').Pool(args.workers) as pool:
        for count in pool.imap(make_all, jobs):
            made += count
            progress.step(1)
    _logger.info(f'{made} images made from {len(images)}; the others were there.')
