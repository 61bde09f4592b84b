"""The options of timm's training script."""

from argparse import Namespace

from regaug.options.parser import Group, Option, flag

_MIXING = '--mixup --cutmix --cutmix-minmax'
_BINARY = '--bce-loss --task=multilabel'
_METRIC = 'ranks checkpoints: top1, top5, loss; multilabel: map (unless given), micro_f1, macro_f1, sample_f1, loss'
_SOFT = f'--smoothing {_MIXING} --manifold-mixup --task=multilabel'  # timm takes cross-entropy of plain labels
_YES = 'probability from which on a label counts as a yes in F1'
_MOVING = '--train-size-schedule=progressive'
_SCALES = ('none', 'sqrt', 'linear')

DATA = Group(None, Option('data', None, None, 'folder of the data set, the same as --data-dir', nargs='?'))

KD = Group(
    None,
    Option('--kd-model-name', str, None, 'distil from this pretrained timm model (the teacher)'),
    Option('--kd-distill-type', str, 'logit', 'what the student imitates', choices=('logit', 'feature', 'token')),
    Option('--kd-loss-type', str, 'kl', 'loss of logit distillation', known=('kl',)),
    Option('--distill-loss-weight', float, None, 'weight of distillation (default: 1, or 1 - the task loss)', low=0),
    Option('--task-loss-weight', float, None, 'weight of the classification loss (default: 1)', low=0),
    Option('--kd-temperature', float, 4.0, 'softmax temperature of the distillation loss', above=0),
    Option('--kd-student-feature-dim', int, None, "length of the student's features (default: found out)", low=1),
    Option('--kd-teacher-feature-dim', int, None, "length of the teacher's features (default: found out)", low=1),
    Option('--kd-token-distill-type', str, 'soft', 'all the teacher says, or its top class', choices=('soft', 'hard')),
    switch='--kd-model-name',
)

DATASET = Group(
    'Dataset parameters',
    Option('--data-dir', None, None, 'folder that holds the data set'),
    Option('--dataset', None, '', 'kind/name, as in regaug/digits; empty: a folder that holds one for each class'),
    Option('--train-split', None, 'train', 'split to train on'),
    Option('--val-split', None, 'validation', 'split to evaluate on; empty: no evaluation'),
    Option('--train-num-samples', int, None, 'samples in the training split of an iterable data set', low=1),
    Option('--val-num-samples', int, None, 'samples in the validation split of an iterable data set', low=1),
    flag('--dataset-download', 'let a torch/, hfds/ or tfds/ data set download itself'),
    Option('--class-map', str, '', 'text file that maps class names to indices'),
    Option('--input-img-mode', str, None, 'PIL mode of the images (default: RGB for three input channels, else L)'),
    Option('--input-key', str, None, 'key of the image in a sample of the data set'),
    Option('--target-key', str, None, 'key of the label in a sample; several, a,b,c, are one yes or no each'),
    Option('--target-format', str, None, 'form of several labels (default: indices)', choices=('indices', 'multihot')),
    flag('--dataset-trust-remote-code', 'let a Hugging Face data set run the code it comes with'),
)

MODEL = Group(
    'Model parameters',
    Option('--model', str, 'resnet50', 'name of the model, any of timm.list_models()'),
    flag('--pretrained', 'start from the published weights of the model'),
    Option('--pretrained-path', str, None, 'file to take the pretrained weights from; its classifier is kept as it is'),
    Option('--initial-checkpoint', str, '', 'start from the weights in this checkpoint'),
    Option('--resume', str, '', 'checkpoint to go on from; auto: from the newest good checkpoint', once=True),
    flag('--no-resume-opt', 'leave the optimiser state out when resuming', needs='--resume', once=True),
    Option('--task', str, 'classification', 'one label an image, or any', choices=('classification', 'multilabel')),
    Option('--num-classes', int, None, "number of classes (default: the model's own)", low=1),
    Option('--gp', str, None, 'global pooling: fast, avg, max, avgmax, avgmaxc (default: the model decides)'),
    Option('--img-size', int, None, "side of the square input in pixels (default: the model's own)", low=1),
    Option('--in-chans', int, None, 'input channels (default: 3)', low=1),
    Option('--input-size', int, None, 'channels, height and width; --img-size is the short form', nargs=3, low=1),
    Option('--crop-pct', float, None, 'fraction of the resized image kept by the centre crop in evaluation', low=0),
    Option('--mean', float, None, 'mean of each channel, in [0, 1], subtracted from the images', nargs='+'),
    Option('--std', float, None, 'deviation of each channel, in [0, 1], to divide the images by', nargs='+', above=0),
    Option('--interpolation', str, '', "resize interpolation in evaluation (default: the model's own)"),
    Option('-b --batch-size', int, 128, 'training batch size of each process', low=1),
    Option('-vb --validation-batch-size', int, None, 'evaluation batch size (default: --batch-size)', low=0),
    flag('--channels-last', 'use the channels_last memory format'),
    Option('--fuser', str, '', 'TorchScript fuser', known=('', 'te', 'old', 'legacy', 'nvfuser', 'nvf')),
    Option('--grad-accum-steps', int, 1, 'batches whose gradients are added up for one update', low=1),
    flag('--grad-checkpointing', 'recompute activations in the backward pass to save memory'),
    flag('--fast-norm', 'let normalisation layers run in the autocast type'),
    Option('--model-kwargs', dict, {}, 'further arguments of the model, as key=value', nargs='*'),
    Option('--head-init-scale', float, None, 'factor for the initial weights of the classifier'),
    Option('--head-init-bias', float, None, 'initial value of the biases of the classifier'),
    Option('--torchcompile-mode', str, None, 'mode of torch.compile', needs='--torchcompile'),
    flag('--torchscript', 'script the whole model'),
    Option('--torchcompile', str, None, 'compile the model, by this backend', nargs='?', const='inductor'),
)

DEVICE = Group(
    'Device parameters',
    Option('--device', str, 'cuda', 'device to run on: cpu, cuda, cuda:1, mps, ...'),
    flag('--amp', 'mixed precision by autocast'),
    Option('--amp-dtype', str, 'float16', 'number format under --amp', known=('float16', 'bfloat16'), needs='--amp'),
    Option('--model-dtype', str, None, 'type of the weights (no --amp)', known=('float32', 'float16', 'bfloat16')),
    flag('--no-ddp-bb', 'do not broadcast buffers from rank 0 at each forward pass'),
    flag('--synchronize-step', 'wait for the device at the end of each update'),
    Option('--local_rank', int, 0, 'local rank, where the launcher gives it as an argument'),
    Option('--device-modules', str, None, 'Python modules to import for further device backends', nargs='+'),
)

OPTIMIZER = Group(
    'Optimizer parameters',
    Option('--opt', str, 'sgd', 'name of the optimiser, any of timm.optim.list_optimizers()'),
    Option('--opt-eps', float, None, "epsilon of the optimiser (default: the optimiser's own)", low=0),
    Option('--opt-betas', float, None, "betas of the optimiser (default: the optimiser's own)", nargs='+'),
    Option('--momentum', float, 0.9, 'momentum, where the optimiser has one', low=0),
    Option('--weight-decay', float, 2e-5, 'weight decay', low=0),
    Option('--clip-grad', float, None, 'limit for gradients (default: none)', above=0),
    Option('--clip-mode', str, 'norm', 'what is limited', known=('norm', 'value', 'agc'), needs='--clip-grad'),
    Option('--layer-decay', float, None, 'learning rate factor from each layer to the one before it', low=0),
    Option('--layer-decay-min-scale', float, 0, "lower bound of the layers' factors", low=0),
    Option('--layer-decay-no-opt-scale', float, None, 'layers with a smaller factor are not trained at all'),
    Option('--opt-kwargs', dict, {}, 'further arguments of the optimiser, as key=value', nargs='*'),
)

SCHEDULE = Group(
    'Learning rate schedule parameters',
    Option('--sched', str, 'cosine', 'cosine, tanh, poly, step, multistep, plateau, wsd, rsqrt, constant or none'),
    flag('--sched-on-updates', 'move the schedule at every update, not at every epoch'),
    Option('--lr', float, None, 'peak learning rate; given, it is used as it is', low=0),
    Option('--lr-base', float, 0.1, 'without --lr: learning rate for a batch of --lr-base-size images', low=0),
    Option('--lr-base-size', int, 256, 'batch size that --lr-base is meant for', low=1),
    Option('--lr-base-scale', str, '', 'growth with the batch (default: by optimiser)', known=('', 'linear', 'sqrt')),
    Option('--lr-noise', float, None, 'span of noisy learning rate, as fractions of the epochs', nargs='+', low=0),
    Option('--lr-noise-pct', float, 0.67, 'largest relative noise on the learning rate', needs='--lr-noise'),
    Option('--lr-noise-std', float, 1.0, 'standard deviation of the noise', low=0, needs='--lr-noise'),
    Option('--lr-cycle-mul', float, 1.0, 'factor on the length of each further cycle', low=0),
    Option('--lr-cycle-decay', float, 0.5, 'factor on the learning rate of each further cycle', low=0),
    Option('--lr-cycle-limit', int, 1, 'number of cycles', low=0),
    Option('--lr-k-decay', float, 1.0, 'exponent on the time in cosine and poly schedules'),
    Option('--warmup-lr', float, 1e-5, 'learning rate at the start of the warm-up', low=0),
    Option('--min-lr', float, 0, 'learning rate at the end of cyclic schedules', low=0),
    Option('--epochs', int, 300, 'epochs of the schedule', low=0),
    Option('--epoch-repeats', float, 0.0, 'passes over the data set in one epoch, 0 meaning one', low=0),
    Option('--start-epoch', int, None, 'epoch to start at, whatever a checkpoint says', low=0, once=True),
    Option('--decay-milestones', int, [90, 180, 270], 'epochs at which multistep decays', nargs='+', low=0),
    Option('--decay-epochs', float, 90, 'epochs between two decays of a step schedule', low=0),
    Option('--warmup-epochs', int, 5, 'epochs of warm-up', low=0),
    flag('--warmup-prefix', 'put the warm-up before the schedule, not in place of its start'),
    Option('--cooldown-epochs', int, 0, 'epochs at the lowest learning rate after the schedule', low=0),
    Option('--patience-epochs', int, 10, 'epochs without progress before a plateau schedule decays', low=0),
    Option('--decay-rate --dr', float, 0.1, 'factor of each decay', low=0),
)

AUGMENTATION = Group(
    'Augmentation and regularization parameters',
    flag('--no-aug', 'train on images prepared as for evaluation'),
    Option('--train-crop-mode', str, None, 'resized or ratio-keeping crop', known=('', 'rrc', 'rkrc', 'rkrr')),
    Option('--scale', float, [0.08, 1.0], 'range of the fraction of the image area that a crop keeps', nargs='+'),
    Option('--ratio', float, [3 / 4, 4 / 3], 'range of the aspect ratio of random crops', nargs='+', above=0),
    Option('--hflip', float, 0.5, 'probability of a horizontal flip', low=0, high=1),
    Option('--vflip', float, 0.0, 'probability of a vertical flip', low=0, high=1),
    Option('--color-jitter', float, 0.4, 'strength of the colour jitter', low=0, nullable=True),
    Option('--color-jitter-prob', float, None, 'probability of the colour jitter (default: always)', low=0, high=1),
    Option('--grayscale-prob', float, None, 'probability of turning an image grey', low=0, high=1),
    Option('--gaussian-blur-prob', float, None, 'probability of blurring an image', low=0, high=1),
    Option(
        '--aa',
        str,
        None,
        'augmentation policy: rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original, v0, 3a, tv-cifar10, trivial, ...',
    ),
    Option('--aug-repeats', float, 0, 'copies of each image in a distributed epoch', low=0),
    Option('--aug-splits', int, 0, 'views of each image in a batch, the first one clean (0, or 2 and more)', low=0),
    flag('--jsd-loss', 'Jensen-Shannon consistency between the views of --aug-splits, beside cross-entropy'),
    flag('--bce-loss', 'binary cross-entropy per class', needs=_SOFT),
    flag('--bce-sum', 'sum binary cross-entropy over the classes instead of averaging', needs=_BINARY),
    Option('--bce-target-thresh', float, None, 'soft targets above this count as 1, others as 0', needs=_BINARY),
    Option('--bce-pos-weight', float, None, 'weight of positive classes', low=0, needs=_BINARY),
    Option('--reprob', float, 0.0, 'probability of erasing a random part of an image', low=0, high=1),
    Option('--remode', str, 'pixel', 'filling of erased parts', known=('const', 'rand', 'pixel', ''), needs='--reprob'),
    Option('--recount', int, 1, 'parts to erase', low=0, needs='--reprob'),
    flag('--resplit', 'keep the first view of --aug-splits free of erasing'),
    Option('--mixup', float, 0.0, "alpha of Mixup's Beta distribution, 0: off", low=0),
    Option('--cutmix', float, 0.0, "alpha of CutMix's Beta distribution, 0: off", low=0),
    Option('--cutmix-minmax', float, None, 'range of the side of the box, for --cutmix', nargs='+', low=0, high=1),
    Option('--mixup-prob', float, 1.0, 'probability of mixing at all', low=0, high=1, needs=_MIXING),
    Option('--mixup-switch-prob', float, 0.5, 'probability of CutMix beside Mixup', low=0, high=1, needs=_MIXING),
    Option('--mixup-mode', str, 'batch', 'unit that shares one set of parameters: batch, pair, elem', needs=_MIXING),
    Option('--mixup-off-epoch', int, 0, 'epoch from which on nothing is mixed, 0: never', low=0, needs=_MIXING),
    Option('--smoothing', float, 0.1, 'label smoothing; unless given, 0 with --task multilabel', low=0, below=1),
    Option('--train-interpolation', str, 'random', 'resize interpolation: random, bilinear, bicubic, ...'),
    Option('--drop', float, 0.0, 'dropout rate', low=0, high=1),
    Option('--drop-connect', float, None, 'old name of --drop-path', low=0, high=1),
    Option('--drop-path', float, None, 'stochastic depth rate', low=0, high=1),
    Option('--drop-block', float, None, 'DropBlock rate', low=0, high=1),
)

NORM = Group(
    'Batch norm parameters',
    Option('--bn-momentum', float, None, "momentum of batch-norm (default: the model's own)", low=0, high=1),
    Option('--bn-eps', float, None, "epsilon of batch-norm (default: the model's own)", low=0),
    flag('--sync-bn', 'batch-norm over all processes'),
    Option('--dist-bn', str, 'reduce', 'statistics of the ranks (reduce: mean)', known=('', 'reduce', 'broadcast')),
    flag('--split-bn', 'separate batch-norm for each view of --aug-splits'),
)

EMA = Group(
    'Model exponential moving average parameters',
    flag('--model-ema', 'keep and evaluate a moving average of the weights'),
    flag('--model-ema-force-cpu', 'keep the average on the CPU; it is then not evaluated'),
    Option('--model-ema-decay', float, 0.9998, 'decay of the average at each update', low=0, high=1),
    flag('--model-ema-warmup', 'let the decay grow from small values at the start'),
    switch='--model-ema',
)

MISC = Group(
    'Miscellaneous parameters',
    Option('--seed', int, 42, 'random seed', low=0, high=2**32 - 1),  # NumPy takes no larger one
    Option('--worker-seeding', str, 'all', 'generators seeded in a worker (part: not NumPy)', known=('all', 'part')),
    Option('--log-interval', int, 50, 'updates between two lines of the log', low=1),
    Option('--val-interval', int, 1, 'epochs between two evaluations', low=1),
    Option('--recovery-interval', int, 0, 'updates between two recovery checkpoints, 0: none', low=0),
    Option('--checkpoint-hist', int, 10, 'checkpoints to keep', low=1),
    Option('-j --workers', int, 4, 'loader processes of each process', low=0),
    flag('--save-images', 'save pictures of batches: at each log interval, and with what methods do at each phase'),
    flag('--pin-mem', 'pin host memory in the loader'),
    flag('--no-prefetcher', 'normalise and move batches without the prefetching loader'),
    Option('--output', str, '', 'folder that holds the folders of experiments (default: output/train)'),
    Option('--experiment', str, '', 'name of this experiment and of its folder (default: time, model, size)'),
    Option('--eval-metric', str, 'top1', _METRIC),
    Option('--multilabel-threshold', float, 0.5, _YES, above=0, below=1, needs='--task=multilabel'),
    Option('--tta', int, 0, 'test-time augmentation: views of each image that evaluation averages over', low=0),
    flag('--use-multi-epochs-loader', 'keep one loader iterator over all epochs'),
    flag('--log-wandb', 'log to Weights & Biases'),
    Option('--wandb-project', str, None, 'project on Weights & Biases', needs='--log-wandb'),
    Option('--wandb-tags', str, [], 'tags on Weights & Biases', nargs='+', needs='--log-wandb'),
    Option('--wandb-resume-id', str, '', 'id of the Weights & Biases run to go on with', once=True),
    Option('--train-img-sizes', int, None, 'sides to train at, one drawn for each batch', nargs='+', low=1),
    Option('--train-batch-sizes', int, None, 'batch size of each size (default: --batch-size)', nargs='+', low=1),
    Option('--train-size-probs', float, None, 'weight of each of --train-img-sizes (default: equal)', nargs='+', low=0),
    Option('--train-size-schedule', str, 'constant', 'how the weights move', choices=('constant', 'progressive')),
    Option('--train-size-schedule-spread', float, 0.65, 'width of its window, in sizes', low=0, needs=_MOVING),
    Option('--train-size-random-mix', float, 0.1, 'share drawn from all sizes', low=0, high=1, needs=_MOVING),
    Option('--train-batches-per-epoch --train-steps-per-epoch', int, None, 'batches of one epoch', low=1),
    Option('--variable-batch-loss-scale', str, 'none', 'loss by batch', choices=_SCALES, needs='--train-img-sizes'),
)

NAFLEX = Group(
    'Miscellaneous parameters',
    flag('--naflex-loader', 'load images at their own aspect ratio as patch sequences (NaFlex)'),
    Option('--naflex-train-seq-lens', int, [128, 256, 576, 784, 1024], 'lengths to train at', nargs='+', low=1),
    Option('--naflex-max-seq-len', int, 576, 'sequence length of evaluation and of the nominal batch size', low=1),
    Option('--naflex-patch-sizes', int, None, 'patch sizes to train at', nargs='+', low=1),
    Option('--naflex-patch-size-probs', float, None, 'weight of each of --naflex-patch-sizes', nargs='+', low=0),
    Option('--naflex-loss-scale', str, 'linear', 'how the loss of a batch follows its size', choices=_SCALES),
    flag('--naflex-patchify-channels-first', 'order the values of a patch by channel, then by pixel'),
    switch='--naflex-loader',
)

TIMM_TRAIN = (DATA, KD, DATASET, MODEL, DEVICE, OPTIMIZER, SCHEDULE, AUGMENTATION, NORM, EMA, MISC, NAFLEX)


def resolve(args: Namespace, chosen: dict):
    """Set the defaults of timm's that follow the task."""
    if args.task == 'multilabel':
        args.smoothing = chosen.get('smoothing', 0.0)
        args.eval_metric = chosen.get('eval_metric', 'map')
