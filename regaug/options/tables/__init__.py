"""timm's options and ours, one table a group."""

from regaug.options.option import Group
from regaug.options.tables.augmentation import AUGMENTATION
from regaug.options.tables.dataset import DATA, DATASET
from regaug.options.tables.device import DEVICE
from regaug.options.tables.distillation import DISTILLATION
from regaug.options.tables.evaluations import EVALUATIONS
from regaug.options.tables.gradaug import GRADAUG
from regaug.options.tables.maxup import MAXUP
from regaug.options.tables.misc import MISC
from regaug.options.tables.model import MODEL
from regaug.options.tables.norm_ema import BATCH_NORM, MODEL_EMA
from regaug.options.tables.optimizer import OPTIMIZER
from regaug.options.tables.refine import REFINE
from regaug.options.tables.regaug import REGAUG
from regaug.options.tables.schedule import SCHEDULE
from regaug.options.tables.uada import UADA
from regaug.options.tables.validation import VALIDATION, WIDTHS

TIMM_TRAIN = (
    Group(None, (DATA,)),
    DISTILLATION,
    DATASET,
    MODEL,
    DEVICE,
    OPTIMIZER,
    SCHEDULE,
    AUGMENTATION,
    BATCH_NORM,
    MODEL_EMA,
    MISC,
)
OWN_TRAIN = (REGAUG, GRADAUG, MAXUP, REFINE, UADA)
TIMM_VALIDATE = (Group(None, (DATA,)), VALIDATION)
OWN_VALIDATE = (WIDTHS, *EVALUATIONS)

TRAIN = TIMM_TRAIN + OWN_TRAIN
VALIDATE = TIMM_VALIDATE + OWN_VALIDATE
