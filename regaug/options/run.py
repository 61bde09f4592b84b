"""Options of regaug that belong to no method."""

from argparse import Namespace

from regaug.options.parser import Group, Option, flag, refuse_with, require, shown, warn
from regaug.options.timm import AUGMENTATION
from regaug.options.timm_data_checks import refuse_stream

_CUTOUT = '--maxup-aug=cutout --uada-groups=cutout'
_CROP = {option.dest: option.default for option in AUGMENTATION.options if option.label in ('--scale', '--ratio')}

TRAIN = Group(
    'regaug parameters',
    Option('--pad-crop', int, 0, 'pad by so many pixels and crop at random, for the resized crop; 0: off', low=0),
    Option('--pad-mode', str, 'reflect', 'filling of the padding', choices=('reflect', 'constant'), needs='--pad-crop'),
    Option('--labels-per-class', int, None, 'train on this many images of each class (default: on all)', low=1),
    Option('--label-split', int, 0, 'which of the reproducible subsets --labels-per-class takes', low=0),
    Option('--updates-per-epoch', int, None, 'updates in an epoch; the images are repeated (default: one pass)', low=1),
    flag('--freeze-bn', 'keep statistics and parameters of batch-norm as they are, for fine-tuning'),
    Option('--cutout-size', int, 16, "side in pixels of Cutout's square", low=1, needs=_CUTOUT),
    flag('--exact-resume', 'a stopped and resumed run gives the numbers of an uninterrupted one, to the bit on a CPU'),
    flag('--overwrite', 'start afresh in the folder of an old run, whose files are removed first', once=True),
    flag('--dry-run', 'build all, run two updates and two evaluation batches, write nothing but --save-images'),
    Option('--max-bad-updates', int, 10, 'stop after so many updates in a row that are not finite; 0: never', low=0),
)


def resolve(args: Namespace, chosen: dict):
    """Tell which options of the resized crop are without effect, and when there can be nothing to resume."""
    if args.resume == 'auto' and not args.experiment:
        warn('--resume auto finds nothing without --experiment: the default name has the time in it.')
    for name, default in _CROP.items():  # a run's args.yaml has the defaults
        if args.pad_crop and chosen.get(name, default) != default:
            warn(f'{shown(args, f"--{name}")} has no effect with {shown(args, "--pad-crop")}, which keeps the size.')


def check(args: Namespace):
    """Refuse what these options cannot be combined with."""
    others = ['--no-aug', '--train-crop-mode', '--train-img-sizes', '--naflex-loader']
    refuse_with(args, '--pad-crop', others, 'it decides the crop itself, at one training size')
    afresh = not args.overwrite or args.resume != 'auto'
    require(args, '--overwrite', afresh, 'does not go with --resume auto (it removes what that goes on from)')
    refuse_stream(args, '--labels-per-class', 'a subset is made of indices, which a stream has not')
    single = not args.labels_per_class or args.task != 'multilabel'
    require(args, '--labels-per-class', single, 'does not go with --task multilabel (images have no one class)')
    chooses = args.labels_per_class or not args.label_split
    require(args, '--label-split', chooses, 'chooses among the subsets of --labels-per-class, which is not given')
    refuse_stream(args, '--updates-per-epoch', 'a stream is not repeated by index')
    others = ['--train-img-sizes', '--aug-repeats', '--use-multi-epochs-loader', '--naflex-loader']
    refuse_with(args, '--updates-per-epoch', others, 'it brings an order of the images of its own')
    refuse_with(args, '--torchscript', ['--freeze-bn'], 'a scripted model cannot be changed')
    refuse_stream(args, '--exact-resume', 'the place in a stream is not stored')
    refuse_with(args, '--exact-resume', ['--use-multi-epochs-loader'], 'its workers live on from epoch to epoch')
    seeded = args.opt.rpartition('_')[2] not in ('adahessian', 'kron', 'kronw')
    stored = seeded or not args.exact_resume
    require(args, '--exact-resume', stored, f'does not go with {shown(args, "--opt")} (its random state is not stored)')
    shared = args.dist_bn or not args.exact_resume
    reason = 'each process has batch-norm statistics of its own, and those of one are stored'
    require(args, '--exact-resume', shared, f"does not go with --dist-bn '' ({reason})")
    stored = args.sched != 'plateau' or not args.exact_resume
    require(args, '--exact-resume', stored, f'does not go with {shown(args, "--sched")} (its state is not stored)')
