"""The table of methods: what the tests in `tests/training/test_methods.py` run of each. A new method is a row here."""

from dataclasses import dataclass, field

import yaml

from regaug import methods
from regaug.training.model import build_model
from regaug.training.phases import phase_at
from tests.helpers.training import CLASSES, train_args

# One epoch each: of a warm-up or before a method starts, of the main phase, faded, and of refinement.
PHASES = ('--epochs', 3, '--refine-epochs', 1, '--refine-fade', 1, '--refine-lr', 0.01)
NUM_EPOCHS, MAIN_EPOCH, REFINE_EPOCH = 4, 1, 3
INPUT_SIZE = (3, 32, 32)
INTENSIVE = ('--mixup', 0.8, '--cutmix', 1.0, '--aa', 'rand-m9', '--reprob', 1.0, '--workers', 1)  # timm's own


@dataclass(frozen=True)
class Row:
    """A method, or several, as the tests run it.

    Attributes:
        options: its own options, by the names that they have in a configuration file.
        off: those of its options that switch it off, with the values that do.
        common: options that plain training has as well.
        columns: by method, the columns of summary.csv that it adds, without the `train_` in front.
        console: what a line of the console has, as regular expressions.
        start: what the log has before the first update, as a regular expression.
    """

    options: dict
    off: dict
    common: tuple = ()
    columns: dict = field(default_factory=dict)
    console: tuple = ()
    start: str = ''

    @property
    def words(self) -> list[str]:
        """All its options as words of a command line."""
        words = [str(word) for word in self.common]
        for name, value in self.options.items():
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f'--{name.replace("_", "-")}', *map(str, values)]
        return words

    def write_config(self, path):
        """A configuration file that sets all its own options and switches it off."""
        path.write_text(yaml.safe_dump({**self.options, **self.off}))
        return path

    def build(self, rank=0, world_size=1, distributed=False):
        """(options, phase, model, methods) as train.py builds them for the main epoch, in float64.

        Without `distributed` a single process has the share of one of `world_size` ranks.
        """
        args = train_args('--num-classes', CLASSES, '--model', 'test_resnet', *PHASES, *self.words, rank=rank)
        args.model_dtype = 'float64'
        args.distributed, args.world_size = distributed, world_size
        model = build_model(args).double()
        config = {'input_size': INPUT_SIZE, 'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.25, 0.3)}
        return args, phase_at(MAIN_EPOCH, args), model, methods.create_methods(args, model, config)


def subnet_columns(count, names=('loss', 'agreement', 'width', 'size')):
    return [f'sub{index}_{name}' for index in range(1, count + 1) for name in names]


def maxup_columns(copies):
    shares = [f'maxup_share{copy}' for copy in range(1, copies + 1)]
    return ['maxup_passes', 'maxup_lambda', 'maxup_chosen_loss', 'maxup_mean_loss', *shares]


def uada_columns(*groups):
    return ['uada_passes', 'uada_gain', 'uada_moved', *(f'uada_moved_{group}' for group in groups)]


GRADAUG = {'gradaug': 2, 'gradaug_min_width': 0.5, 'gradaug_transforms': ['rotate', 'scale']}
GRADAUG_CONSOLE = tuple(rf'  Sub {name}: \S+ \S+  ' for name in ('loss', 'agreement', 'width', 'size'))
SEMI_COLUMNS = [*(f'ulb1_{name}' for name in ('loss', 'agreement', 'confidence', 'kept', 'accuracy'))]
SEMI_COLUMNS += ['ulb2_loss', 'ulb2_agreement']
MAXUP = {'maxup': 3, 'maxup_aug': 'cutmix+gauss', 'gauss_sigma': 0.1, 'maxup_warmup_epochs': 1}
MAXUP_CONSOLE = ('  Maxup passes: 3  ', r'  Maxup chosen loss: \S+  ', r'  Maxup share: \S+ \S+ \S+  ')
UADA = {'uada': True, 'uada_groups': ['crop', 'flip', 'policy', 'cutout'], 'cutout_size': 8}
UADA_CONSOLE = (r'  Uada passes: \S+  ', r'  Uada gain: \S+  ', r'  Uada moved flip: \S+  ')

METHODS = {
    'gradaug': Row(
        {**GRADAUG, 'gradaug_start_epoch': 1},
        {'gradaug': 0},
        ('--drop', 0.2),
        {'gradaug': subnet_columns(2)},
        GRADAUG_CONSOLE,
        'GradAug: an update costs about',
    ),
    'gradaug by depth': Row(
        {'gradaug': 1, 'gradaug_subnet': 'depth', 'gradaug_depth_rate': 0.5, 'gradaug_every': 2},
        {'gradaug': 0},
        ('--model', 'test_efficientnet'),
        {'gradaug': subnet_columns(1, ('loss', 'agreement', 'size'))},
        (r'  Sub loss: \S+  Sub agreement: \S+',),
        'GradAug: drop path in',
    ),
    'gradaug with mixing': Row(
        {'gradaug': 1, 'gradaug_targets': 'hard'},
        {'gradaug': 0},
        ('--mixup', 0.5, '--cutmix', 1.0),
        {'gradaug': subnet_columns(1)},
        (r'  Sub loss: \S+  Sub agreement: \S+',),
    ),
    'semi-supervised gradaug': Row(
        {**GRADAUG, 'unlabeled_split': 'train', 'p_cutoff': 0.1, 'ulb_warmup_updates': 2},
        {'gradaug': 0, 'unlabeled_split': None},
        ('--workers', 0),  # the ranks of a test may have no workers of their own
        {'gradaug': subnet_columns(2), 'semi': SEMI_COLUMNS},
        (*GRADAUG_CONSOLE, r'  (?i:ulb) loss: \S+ \S+  ', r'  (?i:ulb) confidence: \S+'),
        'GradAug-semi: .* unlabelled images',
    ),
    'maxup': Row(MAXUP, {'maxup': 0}, ('--cutmix', 1.0), {'maxup': maxup_columns(3)}, MAXUP_CONSOLE),
    'maxup of views': Row(
        {'maxup': 2, 'maxup_aug': 'views', 'maxup_warmup_epochs': 0},
        {'maxup': 0},
        ('--aa', 'rand-m5-mstd0.5', '--reprob', 0.5, '--workers', 1),
        {'maxup': maxup_columns(2)},
        ('  Maxup passes: 2  ',),
    ),
    'uada': Row(UADA, {'uada': False}, ('--pad-crop', 4), {'uada': uada_columns(*UADA['uada_groups'])}, UADA_CONSOLE),
    'manifold mixup': Row({'manifold_mixup': 1.0}, {'manifold_mixup': 0.0}, start='Manifold Mixup: at the input or'),
    'gradaug with maxup': Row(
        {**GRADAUG, **MAXUP},
        {'gradaug': 0, 'maxup': 0},
        ('--cutmix', 1.0),
        {'gradaug': subnet_columns(2), 'maxup': maxup_columns(3)},
        (*GRADAUG_CONSOLE, *MAXUP_CONSOLE),
    ),
    'gradaug with uada': Row(
        {**GRADAUG, 'uada': True},
        {'gradaug': 0, 'uada': False},
        (),
        {'gradaug': subnet_columns(2), 'uada': uada_columns('policy')},
        (*GRADAUG_CONSOLE, r'  Uada moved policy: \S+  '),
    ),
}
