"""`--task multilabel` through train.py: plain, with MaxUp, GradAug and others, from the readers of timm."""

import io
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from tests.helpers.multilabel import AS_THEY_ARE, COUNTS, LABELS, quadrants
from tests.helpers.training import CLASSES, assert_same_training, read_checkpoint, read_summary

pytest_plugins = ['tests.helpers.multilabel_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's readers close no files
MAXUP = ('--maxup', 2, '--maxup-warmup-epochs', 0)
RUNS = {
    'plain': (),
    'multihot, smoothed, averaged': (
        *('--target-format', 'multihot', '--workers', 2, '--smoothing', 0.1),
        *('--model-ema', '--model-ema-decay', 0.5),
    ),
    'mixed by the loader': ('--mixup', 0.2, '--cutmix', 1.0, '--mixup-prob', 0.5),
    'mixed in the loop': ('--mixup', 0.2, '--no-prefetcher'),
    'MaxUp': (*MAXUP, '--cutmix', 1.0, '--maxup-score', 'excess'),
    'MaxUp of views': (*MAXUP, '--maxup-aug', 'views', '--color-jitter', 0.2),
    'GradAug': ('--gradaug', 2, '--gradaug-min-width', 0.5),
    'GradAug and MaxUp': ('--gradaug', 2, '--gradaug-targets', 'hard', *MAXUP, '--cutmix', 1.0),
    'UADA': ('--uada',),
    'Manifold Mixup': ('--manifold-mixup', 1.0),
}

MORE = ('mixed in the loop', 'MaxUp', 'MaxUp of views', 'GradAug', 'UADA', 'Manifold Mixup')


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[pytest.mark.slow] if name in MORE else []) for name in RUNS]
)
@pytest.mark.few(1)
def test_quadrants_are_learned_and_the_metrics_are_those_of_scikit_learn(train, factory, name):
    folder = train(*LABELS, '--epochs', 6, '--lr', 0.1, '--opt', 'momentum', *RUNS[name])
    row = read_summary(folder)[-1]
    for metric in ('loss', 'map', 'micro_f1', 'macro_f1', 'sample_f1'):
        assert float(row[f'eval_{metric}']) > 0
    assert 'eval_top1' not in row
    checkpoint = read_checkpoint(folder / 'last.pth.tar')
    assert checkpoint['metric'] == float(row['eval_map'])
    images, labels = quadrants('validation')
    model = timm.create_model('test_resnet', num_classes=CLASSES).eval()
    model.load_state_dict(checkpoint['state_dict_ema' if 'average' in name else 'state_dict'])
    with torch.no_grad():
        output = model(evaluated(images, model.pretrained_cfg))
    expected = 100 * average_precision_score(labels, output.double().numpy(), average='macro')
    assert float(row['eval_map']) == pytest.approx(expected, abs=0.5)
    assert float(row['eval_map']) > 70  # 40 % of the labels hold: a guess reaches about 45


def evaluated(images, cfg):
    """The images as timm evaluates them."""
    config = {key: cfg[key] for key in ('mean', 'std', 'interpolation', 'crop_pct')}
    transform = timm.data.create_transform(input_size=(3, 32, 32), **config)
    return torch.stack([transform(Image.open(io.BytesIO(image)).convert('RGB')) for image in images])


def test_the_options_of_labels_reach_timms_factory(train, factory):
    train(*LABELS, '--epochs', 1, '--target-key', 'tags', '--target-format', 'multihot')
    assert [call['split'] for call in factory] == ['train', 'validation']
    for call in factory:
        assert (call['target_key'], call['target_format']) == ('tags', 'multihot')
        assert call['target_transform'].num_classes == CLASSES
        assert call['target_transform'].dense


def test_a_run_of_several_labels_resumes(train, factory):
    exactly = (*LABELS, '--epochs', 2, '--exact-resume', '--cutmix', 1.0)
    whole = train(*exactly, experiment='whole')
    resumed = train(*exactly, '--resume', whole / 'checkpoint-0.pth.tar', experiment='resumed')
    assert_same_training(resumed, whole, from_epoch=1)


@pytest.mark.parametrize('key', ['tags', 'q0,q1,q2,q3', 'vector'])
def test_a_webdataset_is_trained_on(train, tmp_path, key):
    wds = pytest.importorskip('webdataset')
    for split in COUNTS:
        with wds.TarWriter(str(tmp_path / f'{split}.tar')) as tar:
            for index, (image, row) in enumerate(zip(*quadrants(split), strict=True)):
                fields = {f'q{label}': int(holds) for label, holds in enumerate(row)}
                fields |= {'tags': np.flatnonzero(row).tolist(), 'vector': row.astype(int).tolist()}
                tar.write({'__key__': f'{index:03d}', 'png': image, 'json': json.dumps(fields).encode()})
    options = ['--dataset', 'wds/quadrants', '--data-dir', tmp_path, '--task', 'multilabel', '--target-key', key]
    options += ['--train-split', 'train.tar|64', '--val-split', 'validation.tar|40', *AS_THEY_ARE, '--lr', 0.1]
    options += ['--target-format', 'multihot'] if key == 'vector' else []
    row = read_summary(train(*options, '--epochs', 6, '--opt', 'momentum', '--gradaug', 1))[-1]
    assert float(row['eval_map']) > 70


@pytest.mark.parametrize('dense', [False, True])
def test_a_hugging_face_data_set_is_trained_on(train, tmp_path, monkeypatch, dense):
    hf = pytest.importorskip('datasets')
    parts = {}
    for split in COUNTS:
        images, labels = quadrants(split)
        rows = labels.astype(int).tolist() if dense else [np.flatnonzero(row).tolist() for row in labels]
        parts[split] = hf.Dataset.from_dict({'image': [{'bytes': image} for image in images], 'label': rows})
        parts[split] = parts[split].cast_column('image', hf.Image())
    monkeypatch.setattr(hf, 'load_dataset', lambda name, split, **kwargs: parts[split])
    options = [*LABELS, '--target-format', 'multihot' if dense else 'indices', '--lr', 0.1, '--opt', 'momentum']
    row = read_summary(train(*options, '--epochs', 6, '--maxup', 2, '--cutmix', 1.0, '--maxup-warmup-epochs', 0))[-1]
    assert float(row['eval_map']) > 70
