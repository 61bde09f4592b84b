"""Options of MaxUp, and of what it augments with."""

from regaug.options.option import Group, Option, flag

MAXUP = Group(
    'MaxUp parameters',
    (
        Option('--maxup', int, 0, 'train on the worst of this many augmented copies of each sample; 0: off'),
        Option(
            '--maxup-aug',
            str,
            None,
            'what makes the copies differ: cutmix, mixup, cutout, gauss, views (the transforms of the loader), or '
            'several, as in cutmix+gauss (default: mixup with --mixup alone, else cutmix, with alpha 1 if there is '
            'no --cutmix)',
        ),
        Option(
            '--maxup-warmup-epochs',
            int,
            None,
            'first epochs with one copy, the plain augmentation (default: 5, or 0 for pretrained weights)',
        ),
        Option(
            '--maxup-score',
            str,
            'loss',
            'rank the copies by their loss, or by its excess over the entropy of the mixed label',
            choices=('loss', 'excess'),
        ),
        Option('--cutout-size', int, 16, 'side in pixels of the square that Cutout erases (MaxUp and UADA)'),
        Option('--gauss-sigma', float, 0.1, 'deviation of the Gaussian noise, for pixels from 0 to 1'),
        flag('--freeze-bn', 'keep statistics and parameters of batch-norm as they are, for fine-tuning'),
    ),
)
