"""Distillation: the teacher sees images as it was trained on them, and one that is untrained is told."""

import pytest
import timm
import torch
from timm import create_model

from regaug.device import Precision
from regaug.training.task import create_task, fit_teacher
from tests.helpers.training import CLASSES, CPU, train_args


@pytest.fixture
def distil(monkeypatch):
    """A task of distillation from an untrained network, as train.py makes it: for its options and input."""

    def distil(*options, channels=3, mean=0.3, std=0.2, teacher_mean=(0.4, 0.5, 0.6), teacher_classes=CLASSES):
        def untrained(model_name, pretrained=False, **kwargs):
            model = create_model(model_name, **kwargs)
            model.pretrained_cfg |= {'mean': teacher_mean, 'std': (0.1, 0.2, 0.3), 'num_classes': teacher_classes}
            return model

        monkeypatch.setattr(timm.task.distillation, 'create_model', untrained)
        args = train_args('--num-classes', CLASSES, '--kd-model-name', 'test_efficientnet', *options)
        model = create_model('test_resnet', num_classes=CLASSES, in_chans=channels)
        task = create_task(args, model, torch.nn.CrossEntropyLoss(), device=CPU, precision=Precision(args, CPU))
        config = {'input_size': (channels, 32, 32), 'mean': (mean,) * channels, 'std': (std,) * channels}
        fit_teacher(args, task, config)
        return task

    return distil


@pytest.mark.parametrize('kind', ['logit', 'feature'])
@pytest.mark.parametrize('channels', [1, 3])
def test_the_teachers_images_are_normalised_as_it_knows_them(distil, kind, channels):
    task = distil('--kd-distill-type', kind, channels=channels)
    pixels = torch.rand(2, channels, 32, 32)
    seen = []
    task.teacher.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    forward = task.teacher.model.forward_features
    task.teacher.model.forward_features = lambda input: (seen.append(input), forward(input))[1]
    task((pixels - 0.3) / 0.2, torch.tensor([0, 1]))
    mean, std = ((0.5,), (0.2,)) if channels == 1 else ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    expected = (pixels - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('kind', 'classes', 'warnings'), [('logit', 7, 1), ('logit', CLASSES, 0), ('feature', 7, 0)])
def test_a_teacher_whose_classifier_is_untrained_is_told(distil, caplog, kind, classes, warnings):
    distil('--kd-distill-type', kind, teacher_classes=classes)
    found = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert len(found) == warnings
    assert all('--kd-model-name test_efficientnet: its weights are for 7 classes' in text for text in found)
