"""The options of validate.py: timm's, those of widths, and their checks."""

from argparse import Namespace
from pathlib import Path

from timm.models import list_models

from regaug.options.parser import Group, Option, flag, refuse_with, require, require_package
from regaug.options.timm import DATA, TIMM_TRAIN
from regaug.options.timm_checks import check_device, check_files, check_model_name, check_published_weights
from regaug.options.timm_data_checks import check_dataset, check_input, check_task

_AVERAGE = 'add precision, recall and F1, averaged in this way (needs scikit-learn)'
_TRAIN = {option.label: option for group in TIMM_TRAIN for option in group.options}


def _shared(flags: str) -> list[Option]:
    """Return rows that train.py has too."""
    return [_TRAIN[f'--{name}'] for name in flags.split()]


TIMM_VALIDATE = (
    DATA,
    Group(
        None,
        *_shared('data-dir dataset'),
        Option('--split', None, 'validation', 'split to evaluate on'),
        Option('--num-samples', int, None, 'samples in the split of an iterable data set', low=1),
        *_shared('dataset-download class-map input-key input-img-mode target-key target-format'),
        *_shared('dataset-trust-remote-code'),
        Option('--model -m', None, 'dpn92', 'model, or for one result each a wildcard, all, or a file of names'),
        *_shared('pretrained workers'),
        Option('-b --batch-size', int, 256, 'batch size', low=1),
        *_shared('img-size in-chans input-size'),
        flag('--use-train-size', "evaluate at the model's training size where its test size differs"),
        *_shared('crop-pct'),
        Option('--crop-mode', str, None, 'how the image is cropped', known=('', 'squash', 'border', 'center')),
        Option('--crop-border-pixels', int, None, 'pixels to resize beyond the crop', low=0),
        *_shared('mean std interpolation task num-classes gp'),
        Option('--log-freq', int, 10, 'batches between two lines of the log', low=1),
        Option('--checkpoint', str, '', 'checkpoint to evaluate; a folder: each checkpoint in it'),
        Option('--num-gpu', int, 1, 'GPUs to spread each batch over', low=1),
        flag('--test-pool', 'pool the predictions over a larger input'),
        *_shared('no-prefetcher pin-mem channels-last device amp amp-dtype model-dtype'),
        flag('--tf-preprocessing', 'prepare images by TensorFlow (for weights ported from it)'),
        flag('--use-ema', 'take the averaged weights of the checkpoint'),
        *_shared('fuser fast-norm'),
        flag('--reparam', 'merge the branches of models that can be re-parameterised'),
        *_shared('model-kwargs torchcompile-mode torchscript torchcompile'),
        flag('--aot-autograd', 'compile the model by AOT autograd'),
        Option('--results-file', str, '', 'file to write the results to'),
        Option('--results-format', str, 'csv', 'format of the results file', known=('csv', 'json')),
        Option('--real-labels', str, '', 'file of the re-assessed labels of ImageNet (ReaL) to evaluate against'),
        Option('--valid-labels', str, '', 'file of the class indices to evaluate, one a line, where some are missing'),
        flag('--retry', 'halve the batch size and try again when memory runs out'),
        *_shared('seed'),
        Option('--metrics-avg', str, None, _AVERAGE, choices=('micro', 'macro', 'weighted')),
        *_shared('multilabel-threshold naflex-loader naflex-max-seq-len'),
    ),
)

VALIDATE = Group(
    'regaug parameters',
    Option('--width', float, None, 'fractions of channels to evaluate at, a row each', nargs='+', above=0, high=1),
    Option('--calibrate-images', int, 5120, 'training images for batch-norm statistics below width 1', low=1),
    Option('--calibrate-split', None, 'train', 'split that these images come from'),
    switch='--width',
)


def check(args: Namespace):
    """Check validate.py's options."""
    check_device(args)
    check_evaluated_model(args)
    check_input(args)
    check_dataset(args)
    check_task(args, '--metrics-avg', '--real-labels', '--valid-labels')
    check_files(args, '--real-labels', '--valid-labels')
    require_package(args, '--metrics-avg', 'sklearn', 'scikit-learn')
    require_package(args, '--tf-preprocessing', 'tensorflow')
    refuse_with(args, '--width', ['--torchscript'], 'a scripted model cannot run at another width')
    refuse_with(args, '--width', ['--naflex-loader'], 'sub-networks take images, not patch sequences')


def check_evaluated_model(args: Namespace):
    """Check `--model` (one model, `all`, a wildcard or a file of names) and `--checkpoint` (a file or a folder)."""
    there = not args.checkpoint or Path(args.checkpoint).exists()
    require(args, '--checkpoint', there, 'there is no such file or folder')
    if args.model == 'all' or Path(args.model).is_file():
        return
    if set('*?[') & set(args.model):
        return require(args, '--model', list_models(args.model, pretrained=True), 'no pretrained model has such a name')
    check_model_name(args, '--model')
    check_published_weights(args, '--model', not args.checkpoint, 'give a --checkpoint')
