"""regaug: timm's training script with four ways to regularise by augmentation."""

from regaug import models as models  # registers the networks of the papers with timm

__version__ = '0.1.0'
