"""Re-estimated batch-norm statistics: the mean over batches that nothing random has touched."""

import copy

import timm
import torch
from torch import nn

from regaug.slimmable import calibrate
from tests.helpers.slimmable_oracle import make_generic


def droppy_model():
    """A network in which dropout, drop path and batch-norm stand in each other's way."""
    model = make_generic(timm.create_model('test_efficientnet', num_classes=4)).double()
    timm_model = timm.create_model('test_efficientnet', num_classes=4, drop_rate=0.5, drop_path_rate=0.5).double()
    timm_model.load_state_dict(model.state_dict())
    inner = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Dropout(0.5), nn.BatchNorm2d(3)).double()
    return nn.Sequential(inner, timm_model)


def test_calibration_sees_no_dropout_and_leaves_modes_and_everything_else_alone():
    model, batches = droppy_model().train(), [torch.randn(8, 3, 34, 34, dtype=torch.float64) for _ in range(3)]
    model[1].bn1.eval()  # frozen, say
    modes = [part.training for part in model.modules()]
    parameters = [parameter.clone() for parameter in model.parameters()]
    states = []
    for seed in (0, 1):
        calibrated = copy.deepcopy(model)
        torch.manual_seed(seed)
        assert calibrate(calibrated, batches) == 24
        states.append(calibrated.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert [part.training for part in calibrated.modules()] == modes
    assert all(map(torch.equal, calibrated.parameters(), parameters))

    with torch.no_grad():
        features = [model[0][0](batch).transpose(0, 1).flatten(1) for batch in batches]
    mean = torch.stack([part.mean(dim=1) for part in features]).mean(dim=0)
    variance = torch.stack([part.var(dim=1) for part in features]).mean(dim=0)
    torch.testing.assert_close(states[0]['0.2.running_mean'], mean)
    torch.testing.assert_close(states[0]['0.2.running_var'], variance)
    assert states[0]['0.2.num_batches_tracked'] == 3
