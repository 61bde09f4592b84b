"""Random weights of residual branches: their distribution, and that forward and backward pass differ."""

import pytest
import torch

from regaug.models.shake import ShakeDrop, ShakeShake


def weights_of(module, *inputs):
    """Weight of the first input in the forward pass and in its gradient, for each image."""
    inputs = [x.requires_grad_() for x in inputs]
    output = module(*inputs)
    output.sum().backward()
    return output[:, 0, 0, 0].detach(), inputs[0].grad[:, 0, 0, 0]


def images(value, count=4000):
    return torch.full((count, 1, 1, 1), float(value))


def test_shake_shake_weighs_each_image_uniformly_and_anew_in_the_backward_pass():
    alpha, beta = weights_of(ShakeShake().train(), images(1), images(0))
    for weight in (alpha, beta):
        assert weight.min() >= 0 and weight.max() <= 1
        assert weight.mean().item() == pytest.approx(0.5, abs=0.02)
        assert weight.std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert torch.corrcoef(torch.stack([alpha, beta]))[0, 1].abs() < 0.05


def test_weights_of_the_two_branches_of_shake_shake_sum_to_one():
    first, second = images(1, 8).requires_grad_(), images(1, 8).requires_grad_()
    output = ShakeShake().train()(first, second)
    output.sum().backward()
    torch.testing.assert_close(output.detach(), images(1, 8))
    torch.testing.assert_close(first.grad + second.grad, images(1, 8))


def test_shake_shake_is_the_mean_in_evaluation():
    torch.testing.assert_close(ShakeShake().eval()(images(1, 3), images(4, 3)), images(2.5, 3))


@pytest.mark.parametrize('drop_prob', [0.0, 0.3, 1.0])
def test_shakedrop_decides_once_a_batch_how_often_it_is_told_to(drop_prob):
    module, kept = ShakeDrop(drop_prob).train(), 0
    for _ in range(400):
        forward, backward = weights_of(module, images(1, 4))
        assert forward.eq(1).all() == backward.eq(1).all()
        assert forward.eq(1).all() or not forward.eq(1).any()
        kept += int(forward.eq(1).all())
    assert kept / 400 == pytest.approx(1 - drop_prob, abs=0.08)


def test_shakedrop_draws_both_weights_of_each_image_uniformly():
    alpha, beta = weights_of(ShakeDrop(1.0).train(), images(1))
    assert alpha.mean().item() == pytest.approx(0, abs=0.04)
    assert alpha.std().item() == pytest.approx(2 * 12**-0.5, abs=0.02)
    assert beta.mean().item() == pytest.approx(0.5, abs=0.02)
    assert beta.min() >= 0 and -1 <= alpha.min() < -0.9


def test_shakedrop_has_its_expected_weight_in_evaluation():
    module = ShakeDrop(0.3)
    torch.testing.assert_close(module.eval()(images(1, 2)), images(0.7, 2))
    mean = sum(module.train()(images(1, 1)).mean() for _ in range(4000)) / 4000
    assert mean.item() == pytest.approx(0.7, abs=0.04)
