"""Networks of the papers that timm lacks; importing this package registers them with timm's registry."""

from regaug.models import wide_resnet as wide_resnet
