"""Tiny-ImageNet as it is unpacked: 200 classes of 500 training and 50 validation images of 64x64 pixels.

Source: Y. Le and X. Yang, "Tiny ImageNet Visual Recognition Challenge" (Stanford CS231n, 2015). The training images are
in `train/<class>/images/`, the validation images in `val/images/` with their classes in `val/val_annotations.txt`,
which readers of class folders take for a single class `images`. The images of `test/` have no labels.
"""

from pathlib import Path
from typing import Any

from timm.data import ImageDataset
from timm.data.readers.reader import Reader

from regaug.data.splits import EVALUATION, TRAINING
from regaug.errors import OptionError

_ANNOTATIONS = Path('val', 'val_annotations.txt')
_FOLDERS = {**dict.fromkeys(TRAINING, 'train'), **dict.fromkeys(EVALUATION, 'val')}


def is_tiny_imagenet(root: str) -> bool:
    """Whether a folder holds Tiny-ImageNet in its own layout."""
    return Path(root, 'wnids.txt').is_file() and Path(root, _ANNOTATIONS).is_file()


class TinyImageNetReader(Reader):
    """Reader of timm's protocol.

    Attributes:
        class_to_idx: {class: index}, classes in alphabetical order as in timm's folder reader.
        samples: (path, label) of every image.
    """

    def __init__(self, root: str, folder: str):
        super().__init__()
        self.root = Path(root)
        classes = sorted(self.root.joinpath('wnids.txt').read_text().split())
        self.class_to_idx = {name: label for label, name in enumerate(classes)}
        found = self._training_images() if folder == 'train' else self._validation_images()
        self.samples = [(str(path), self.class_to_idx[name]) for path, name in found]
        if not self.samples:
            raise RuntimeError(f'Tiny-ImageNet: there is no image in {self.root / folder}')

    def _training_images(self) -> list[tuple[Path, str]]:
        return [
            (path, name)
            for name in self.class_to_idx
            for path in sorted(self.root.joinpath('train', name, 'images').glob('*.JPEG'))
        ]

    def _validation_images(self) -> list[tuple[Path, str]]:
        rows = [line.split('\t')[:2] for line in self.root.joinpath(_ANNOTATIONS).read_text().splitlines() if line]
        return [(self.root / 'val' / 'images' / file, name) for file, name in sorted(rows)]

    def __getitem__(self, index: Any):
        path, label = self.samples[index]
        return open(path, 'rb'), label

    def __len__(self):
        return len(self.samples)

    def _filename(self, index: Any, basename: bool = False, absolute: bool = False):
        path = Path(self.samples[index][0])
        return path.name if basename else str(path if absolute else path.relative_to(self.root))


def create_tiny_imagenet(root: str, split: str, *, input_img_mode: str = 'RGB') -> ImageDataset:
    """Builds one split as timm's `ImageDataset`.

    Args:
        root: Folder with `wnids.txt`, `train` and `val`.
        split: `train` or `validation`, or one of timm's other names for them.

    Raises:
        OptionError: There is no such split.
        RuntimeError: The split has no image.
    """
    if split not in _FOLDERS:
        raise OptionError(f'Split {split!r} of Tiny-ImageNet has no labels (--train-split, --val-split).')
    return ImageDataset(root=root, reader=TinyImageNetReader(root, _FOLDERS[split]), input_img_mode=input_img_mode)
