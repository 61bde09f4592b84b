"""The moving average of the weights through train.py."""

import math

import pytest
import torch

from tests.helpers.training import assert_same_training, read_checkpoint, read_summary


@pytest.mark.few(1)
@pytest.mark.parametrize('loader', [(), ('--no-prefetcher',)])
def test_its_evaluation_follows_the_model_dtype(train, loader):
    """timm's script feeds it float32 images when there is no prefetcher, which a bfloat16 model cannot take."""
    folder = train('--model-dtype', 'bfloat16', '--model-ema', '--epochs', 1, '--labels-per-class', 8, *loader)
    [row] = read_summary(folder)
    assert math.isfinite(float(row['eval_loss']))
    average = read_checkpoint(folder / 'last.pth.tar')['state_dict_ema']
    assert average['conv1.0.weight'].dtype == torch.bfloat16


def test_an_average_in_bfloat16_resumes_exactly(train):
    """timm rounds it at random, by a generator that no checkpoint holds."""
    options = ('--model-dtype', 'bfloat16', '--model-ema', '--model-ema-decay', 0.9, '--exact-resume')
    whole = train(*options, experiment='whole')
    resumed = train(*options, '--resume', whole / 'checkpoint-0.pth.tar', experiment='resumed')
    assert_same_training(resumed, whole, from_epoch=1)
