"""Options of validate.py; timm lists them without a heading."""

from regaug.options.option import Group, Option, flag

VALIDATION = Group(
    None,
    (
        Option('--data-dir', None, None, 'folder that holds the data set'),
        Option(
            '--dataset',
            None,
            '',
            'kind and name of the data set (kind/name); empty: a folder with one sub-folder per class',
        ),
        Option('--split', None, 'validation', 'split to evaluate on'),
        Option('--num-samples', int, None, 'samples in the split of an iterable data set'),
        flag('--dataset-download', 'let a torch/, hfds/ or tfds/ data set download itself'),
        Option('--class-map', str, '', 'text file that maps class names to indices'),
        Option('--input-key', str, None, 'key of the image in a sample of the data set'),
        Option(
            '--input-img-mode',
            str,
            None,
            'mode the images are converted to, as PIL names it (default: RGB for three input channels, L otherwise)',
        ),
        Option('--target-key', str, None, 'key of the label in a sample of the data set'),
        flag('--dataset-trust-remote-code', 'let a Hugging Face data set run the code it comes with'),
        Option(
            '--model -m',
            None,
            'dpn92',
            'name of the model, a wildcard, all, or a file of names: several mean one result for each',
        ),
        flag('--pretrained', 'use the published weights of the model'),
        Option('-j --workers', int, 4, 'loader processes'),
        Option('-b --batch-size', int, 256, 'batch size'),
        Option('--img-size', int, None, "side of the square input in pixels (default: the model's own)"),
        Option('--in-chans', int, None, 'input channels (default: 3)'),
        Option(
            '--input-size', int, None, 'input size as channels, height and width; --img-size is the short form', nargs=3
        ),
        flag('--use-train-size', "evaluate at the model's training size where its test size differs"),
        Option('--crop-pct', float, None, 'fraction of the resized image kept by the crop'),
        Option('--crop-mode', str, None, 'crop: squash, border or center'),
        Option('--crop-border-pixels', int, None, 'pixels to resize beyond the crop'),
        Option('--mean', float, None, 'mean of each channel, in [0, 1], subtracted from the images', nargs='+'),
        Option(
            '--std', float, None, 'standard deviation of each channel, in [0, 1], the images are divided by', nargs='+'
        ),
        Option('--interpolation', str, '', "resize interpolation (default: the model's own)"),
        Option('--num-classes', int, None, "number of classes (default: the model's own)"),
        Option('--gp', str, None, 'global pooling: fast, avg, max, avgmax, avgmaxc (default: the model decides)'),
        Option('--log-freq', int, 10, 'batches between two lines of the log'),
        Option('--checkpoint', str, '', 'checkpoint to evaluate; a folder: each checkpoint in it'),
        Option('--num-gpu', int, 1, 'GPUs to spread each batch over'),
        flag('--test-pool', 'pool the predictions over a larger input'),
        flag('--no-prefetcher', 'normalise and move batches without the prefetching loader'),
        flag('--pin-mem', 'pin host memory in the loader'),
        flag('--channels-last', 'use the channels_last memory format'),
        Option('--device', str, 'cuda', 'device to evaluate on: cpu, cuda, cuda:1, mps, ...'),
        flag('--amp', 'mixed precision by autocast'),
        Option('--amp-dtype', str, 'float16', 'number format under --amp: float16 or bfloat16'),
        Option('--model-dtype', str, None, 'number format of the weights themselves, in place of --amp'),
        flag('--tf-preprocessing', 'prepare images by TensorFlow (for weights ported from it)'),
        flag('--use-ema', 'take the averaged weights of the checkpoint'),
        Option('--fuser', str, '', 'TorchScript fuser: te, old, nvfuser'),
        flag('--fast-norm', 'let normalisation layers run in the autocast type'),
        flag('--reparam', 'merge the branches of models that can be re-parameterised'),
        Option('--model-kwargs', dict, {}, 'further arguments of the model, as key=value', nargs='*'),
        Option('--torchcompile-mode', str, None, 'mode of torch.compile'),
        flag('--torchscript', 'script the whole model'),
        Option('--torchcompile', str, None, 'compile the model, by this backend', nargs='?', const='inductor'),
        flag('--aot-autograd', 'compile the model by AOT autograd'),
        Option('--results-file', str, '', 'file to write the results to'),
        Option('--results-format', str, 'csv', 'format of the results file: csv or json'),
        Option('--real-labels', str, '', 'file of the re-assessed labels of ImageNet (ReaL) to evaluate against'),
        Option(
            '--valid-labels',
            str,
            '',
            'file of the class indices to evaluate, one a line, for sets that have only some of the classes',
        ),
        flag('--retry', 'halve the batch size and try again when memory runs out'),
        Option('--seed', int, 42, 'random seed'),
        Option(
            '--metrics-avg',
            str,
            None,
            'add precision, recall and F1, averaged in this way (needs scikit-learn)',
            choices=('micro', 'macro', 'weighted'),
        ),
        flag('--naflex-loader', 'load images at their own aspect ratio as patch sequences (NaFlex)'),
        Option('--naflex-max-seq-len', int, 576, 'sequence length of NaFlex batches'),
    ),
)

WIDTHS = Group(
    'regaug parameters',
    (
        Option(
            '--width', float, None, 'fractions of channels to evaluate the model at, one result row each', nargs='+'
        ),
        Option(
            '--calibrate-images',
            int,
            5120,
            'training images that re-estimate the batch-norm statistics of each width below 1',
        ),
        Option('--calibrate-split', None, 'train', 'split that these images come from'),
    ),
)
