"""Options that say which network is trained, at which input size and how it is run."""

from regaug.options.option import Group, Option, flag

MODEL = Group(
    'Model parameters',
    (
        Option('--model', str, 'resnet50', 'name of the model, any of timm.list_models()'),
        flag('--pretrained', 'start from the published weights of the model'),
        Option(
            '--pretrained-path', str, None, 'file to take the pretrained weights from; its classifier is kept as it is'
        ),
        Option('--initial-checkpoint', str, '', 'start from the weights in this checkpoint'),
        Option(
            '--resume',
            str,
            '',
            'go on from this checkpoint: weights, optimiser, epoch; auto: from the newest '
            'good checkpoint in the folder of this experiment, or afresh where there is none',
        ),
        flag('--no-resume-opt', 'leave the optimiser state out when resuming'),
        Option('--num-classes', int, None, "number of classes (default: the model's own)"),
        Option('--gp', str, None, 'global pooling: fast, avg, max, avgmax, avgmaxc (default: the model decides)'),
        Option('--img-size', int, None, "side of the square input in pixels (default: the model's own)"),
        Option('--in-chans', int, None, 'input channels (default: 3)'),
        Option(
            '--input-size', int, None, 'input size as channels, height and width; --img-size is the short form', nargs=3
        ),
        Option('--crop-pct', float, None, 'fraction of the resized image kept by the centre crop in evaluation'),
        Option('--mean', float, None, 'mean of each channel, in [0, 1], subtracted from the images', nargs='+'),
        Option(
            '--std', float, None, 'standard deviation of each channel, in [0, 1], the images are divided by', nargs='+'
        ),
        Option('--interpolation', str, '', "resize interpolation in evaluation (default: the model's own)"),
        Option('-b --batch-size', int, 128, 'training batch size of each process'),
        Option('-vb --validation-batch-size', int, None, 'evaluation batch size (default: --batch-size)'),
        flag('--channels-last', 'use the channels_last memory format'),
        Option('--fuser', str, '', 'TorchScript fuser: te, old, nvfuser'),
        Option('--grad-accum-steps', int, 1, 'batches whose gradients are added up for one update'),
        flag('--grad-checkpointing', 'recompute activations in the backward pass to save memory'),
        flag('--fast-norm', 'let normalisation layers run in the autocast type'),
        Option('--model-kwargs', dict, {}, 'further arguments of the model, as key=value', nargs='*'),
        Option('--head-init-scale', float, None, 'factor for the initial weights of the classifier'),
        Option('--head-init-bias', float, None, 'initial value of the biases of the classifier'),
        Option('--torchcompile-mode', str, None, 'mode of torch.compile'),
        flag('--torchscript', 'script the whole model'),
        Option('--torchcompile', str, None, 'compile the model, by this backend', nargs='?', const='inductor'),
    ),
)
