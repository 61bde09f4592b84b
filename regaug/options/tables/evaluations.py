"""Options of the evaluations beyond accuracy."""

from regaug.options.option import Group, Option, flag

CALIBRATION = Group(
    'Calibration parameters',
    (flag('--ece', 'add the negative log-likelihood and the calibration error (15 bins) to each row'),),
)
ATTACKS = Group(
    'Attack parameters',
    (
        Option(
            '--attack', str, None, 'measure the accuracy under an attack that sees the network', choices=('fgsm', 'pgd')
        ),
        Option(
            '--attack-eps',
            float,
            None,
            'largest changes of a pixel, one row each (default: fgsm 0.05 0.1 0.15 0.2 0.25, pgd 4/255)',
            nargs='+',
        ),
        Option(
            '--attack-space',
            str,
            None,
            'where these changes are measured: normalised images, or pixels from 0 to 1 (default: fgsm normalized, '
            'pgd pixel)',
            choices=('normalized', 'pixel'),
        ),
        Option('--attack-steps', int, 10, 'steps of pgd'),
        Option('--attack-step-size', float, None, 'change at each step of pgd (default: a quarter of the largest)'),
        Option('--attack-restarts', int, 1, 'random starts of pgd; an image must withstand all of them'),
    ),
)
CORRUPTIONS = Group(
    'Corruption parameters',
    (
        Option(
            '--imagenet-c',
            str,
            None,
            'folder of corrupted images to evaluate on: <type>/<severity>/<class>/*, or <type>.npy and labels.npy',
        ),
        Option('--corruptions', str, None, 'types to evaluate (default: all there are)', nargs='+'),
        Option('--severities', int, None, 'severities to evaluate, of 1 to 5 (default: all there are)', nargs='+'),
        flag('--corruption-resize', 'resize the corrupted images to the input of the model, in place of a plain crop'),
    ),
)
SMOOTHING = Group(
    'Certification parameters',
    (
        Option(
            '--certify',
            float,
            None,
            'certify by randomised smoothing with Gaussian noise of this deviation, in [0, 1] pixels',
        ),
        Option('--certify-n', int, 100_000, 'noisy copies of an image that estimate the probability of its class'),
        Option('--certify-n0', int, 100, 'noisy copies of an image that choose its class'),
        Option('--certify-alpha', float, 0.001, 'probability that a certificate is wrong'),
        Option('--certify-skip', int, 20, 'certify every so many-th image'),
        Option('--certify-file', str, '', 'file of one line an image, continued if it is there'),
    ),
)
PICTURES = Group(
    'Class activation map and spectrum parameters',
    (
        Option('--cam', str, None, 'folder for pictures of class activation maps, one row of networks an image'),
        Option('--cam-images', int, 8, 'images to draw, taken evenly from the split'),
        Option('--cam-baseline', str, '', 'checkpoint of the same model to draw beside'),
        Option('--spectrum', str, None, 'folder for the singular values of the penultimate features'),
    ),
)
RISK = Group(
    'Risk parameters',
    (
        Option(
            '--risk',
            str,
            None,
            'args.yaml of a training run: loss on its training images, clean, cropped and flipped, and augmented',
        ),
    ),
)
EXPORT = Group(
    'Export parameters',
    (
        Option(
            '--export',
            str,
            None,
            'folder for each network as a program of its own (torch.export; ONNX where installed)',
        ),
    ),
)
RESULTS = Group(
    'Logging parameters',
    (
        flag('--log-wandb', 'log the table of results to Weights & Biases'),
        Option('--wandb-project', str, None, 'project on Weights & Biases'),
    ),
)
EVALUATIONS = (CALIBRATION, ATTACKS, CORRUPTIONS, SMOOTHING, PICTURES, RISK, EXPORT, RESULTS)
