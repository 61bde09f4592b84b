"""Options of augmentation, loss and regularisation."""

from regaug.options.option import Group, Option, flag

AUGMENTATION = Group(
    'Augmentation and regularization parameters',
    (
        flag('--no-aug', 'train on images prepared as for evaluation'),
        Option(
            '--train-crop-mode',
            str,
            None,
            'crop in training: rrc (random resized crop, the default), rkrc or '
            'rkrr (resize keeping the aspect ratio, then centre or random crop)',
        ),
        Option(
            '--scale', float, [0.08, 1.0], 'range of the fraction of the image area that a random crop keeps', nargs='+'
        ),
        Option('--ratio', float, [3 / 4, 4 / 3], 'range of the aspect ratio of random crops', nargs='+'),
        Option('--hflip', float, 0.5, 'probability of a horizontal flip'),
        Option('--vflip', float, 0.0, 'probability of a vertical flip'),
        Option('--color-jitter', float, 0.4, 'strength of the colour jitter', nullable=True),
        Option('--color-jitter-prob', float, None, 'probability of the colour jitter (default: always)'),
        Option('--grayscale-prob', float, None, 'probability of turning an image grey'),
        Option('--gaussian-blur-prob', float, None, 'probability of blurring an image'),
        Option(
            '--aa',
            str,
            None,
            'augmentation policy: RandAugment (rand-m9-mstd0.5), AutoAugment (original, v0), '
            'AugMix (augmix-m5-w4-d2), TrivialAugment-like (3a), with parameters as timm writes them; of torchvision '
            'AutoAugment (tv-cifar10, tv-svhn, tv-imagenet) and TrivialAugment (trivial)',
        ),
        Option('--aug-repeats', float, 0, 'copies of each image in a distributed epoch'),
        Option(
            '--aug-splits',
            int,
            0,
            'views of each image in a batch, one clean and the others augmented (0, or 2 and more)',
        ),
        flag('--jsd-loss', 'Jensen-Shannon consistency between the views of --aug-splits, beside cross-entropy'),
        flag('--bce-loss', 'binary cross-entropy per class'),
        flag('--bce-sum', 'sum binary cross-entropy over the classes instead of averaging'),
        Option(
            '--bce-target-thresh',
            float,
            None,
            'soft targets above this count as 1, others as 0, in binary cross-entropy',
        ),
        Option('--bce-pos-weight', float, None, 'weight of positive classes in binary cross-entropy'),
        Option('--reprob', float, 0.0, 'probability of erasing a random part of an image'),
        Option(
            '--remode', str, 'pixel', 'filling of erased parts: const (zeros), rand (one random colour), pixel (noise)'
        ),
        Option('--recount', int, 1, 'parts to erase'),
        flag('--resplit', 'keep the first view of --aug-splits free of erasing'),
        Option('--mixup', float, 0.0, "alpha of Mixup's Beta distribution, 0: off"),
        Option('--cutmix', float, 0.0, "alpha of CutMix's Beta distribution, 0: off"),
        Option(
            '--cutmix-minmax',
            float,
            None,
            'range of the side of the CutMix box, as fractions of the image; takes the place of --cutmix',
            nargs='+',
        ),
        Option('--mixup-prob', float, 1.0, 'probability of mixing at all'),
        Option('--mixup-switch-prob', float, 0.5, 'probability of CutMix where both it and Mixup are on'),
        Option('--mixup-mode', str, 'batch', 'unit that shares one set of parameters: batch, pair, elem'),
        Option('--mixup-off-epoch', int, 0, 'epoch from which on nothing is mixed, 0: mixed to the end'),
        Option('--smoothing', float, 0.1, 'label smoothing'),
        Option(
            '--train-interpolation', str, 'random', 'resize interpolation in training: random, bilinear, bicubic, ...'
        ),
        Option('--drop', float, 0.0, 'dropout rate'),
        Option('--drop-connect', float, None, 'old name of --drop-path'),
        Option('--drop-path', float, None, 'stochastic depth rate'),
        Option('--drop-block', float, None, 'DropBlock rate'),
    ),
)
