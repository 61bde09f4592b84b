"""Options that say where the images come from."""

from regaug.options.option import Group, Option, flag

DATA = Option('data', None, None, 'folder of the data set, the same as --data-dir', nargs='?')

DATASET = Group(
    'Dataset parameters',
    (
        Option('--data-dir', None, None, 'folder that holds the data set'),
        Option(
            '--dataset',
            None,
            '',
            'kind and name of the data set (kind/name, for example regaug/digits); '
            'empty: a folder with one sub-folder per class',
        ),
        Option('--train-split', None, 'train', 'split to train on'),
        Option('--val-split', None, 'validation', 'split to evaluate on; empty: no evaluation'),
        Option('--train-num-samples', int, None, 'samples in the training split of an iterable data set'),
        Option('--val-num-samples', int, None, 'samples in the validation split of an iterable data set'),
        flag('--dataset-download', 'let a torch/, hfds/ or tfds/ data set download itself'),
        Option('--class-map', str, '', 'text file that maps class names to indices'),
        Option(
            '--input-img-mode',
            str,
            None,
            'mode the images are converted to, as PIL names it (default: RGB for three input channels, L otherwise)',
        ),
        Option('--input-key', str, None, 'key of the image in a sample of the data set'),
        Option('--target-key', str, None, 'key of the label in a sample of the data set'),
        flag('--dataset-trust-remote-code', 'let a Hugging Face data set run the code it comes with'),
    ),
)
