"""Networks of the papers that timm lacks; importing this package registers them with timm's registry."""

from regaug.models import preact_resnet as preact_resnet
from regaug.models import proxylessnas as proxylessnas
from regaug.models import pyramidnet as pyramidnet
from regaug.models import resnet as resnet
from regaug.models import shake_shake as shake_shake
from regaug.models import wide_resnet as wide_resnet
