"""Files about labels: the outputs to keep, and the re-assessed labels of ImageNet."""

from timm.data import RealLabelsImagenet
from torch.utils.data import Dataset

from regaug.errors import OptionError, one_line


def read_valid_labels(path: str, num_classes: int) -> list[int]:
    """Read the class indices of `--valid-labels`, one a line.

    Args:
        path: Text file.
        num_classes: Outputs of the model.

    Returns:
        Indices in [0, num_classes).

    Raises:
        OptionError: The file cannot be read, or a line is no index of an output, or one of an earlier line.
    """
    try:
        with open(path) as file:
            labels = [int(line) for line in file if line.strip()]
    except OSError as error:
        raise OptionError(f'--valid-labels {path}: {error}') from error
    except ValueError as error:
        raise OptionError(f'--valid-labels {path}: expected a class index a line ({one_line(error)}).') from error
    wrong = [label for label in labels if not 0 <= label < num_classes]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise OptionError(f'--valid-labels {path}: class index {twice[0]} is there more than once.')
    if wrong or not labels:
        what = f'class index {wrong[0]} is not one of the {num_classes} outputs' if wrong else 'the file is empty'
        raise OptionError(f'--valid-labels {path}: {what}.')
    return labels


def read_real_labels(path: str, dataset: Dataset, split: str) -> list[set[int]]:
    """Read the re-assessed labels of `--real-labels` (arXiv 2006.07159).

    Args:
        path: JSON file.
        dataset: The images.
        split: Its name, for messages.

    Returns:
        A set of class indices for each image of the data set.

    Raises:
        OptionError: The file cannot be read, or does not belong to these images.
    """
    if not hasattr(dataset, 'filenames'):
        raise OptionError(f'--real-labels {path}: go by the names of the images, which {type(dataset).__name__} lacks.')
    try:
        real = RealLabelsImagenet(dataset.filenames(basename=True), real_json=path)
    except (OSError, ValueError) as error:
        raise OptionError(f'--real-labels {path}: {error}') from error
    except AssertionError:
        raise OptionError(
            f'--real-labels {path}: the file and --split {split} have different numbers of images '
            f'({len(dataset)} in the split).'
        ) from None
    foreign = next((name for name in real.filenames if name not in real.real_labels), None)
    if foreign:
        raise OptionError(f'--real-labels {path}: {foreign} is not named as the validation images of ImageNet are.')
    return [set(real.real_labels[name]) for name in real.filenames]
