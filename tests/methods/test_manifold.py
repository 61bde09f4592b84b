"""Manifold Mixup: what is mixed, where, and with which labels."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from regaug.augment.mix import blend
from regaug.errors import OptionError
from regaug.methods.manifold import ManifoldMixup, create, find_layers, mixed_after
from regaug.options import parse_train
from tests.helpers.training import CLASSES, make_batches, make_model, make_task, train_args

LAYERS = ['act1', 'layer1', 'layer2', 'layer3', 'layer4']


def make_mixup(layers=LAYERS, alpha=1.0, smoothing=0.0, seed=0):
    return ManifoldMixup(layers, alpha=alpha, seed=seed, num_classes=CLASSES, smoothing=smoothing)


def test_features_after_a_layer_equal_those_of_a_forward_pass_cut_there_by_hand():
    model = make_model().eval()
    [(input, _)] = make_batches(1)
    permutation = torch.tensor([2, 0, 3, 1])
    with mixed_after(model.layer2, permutation, 0.3):
        output = model(input)
    features = model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(input))))))
    features = 0.3 * features + 0.7 * features[permutation]
    torch.testing.assert_close(output, model.forward_head(model.layer4(model.layer3(features))))
    assert not torch.equal(model(input), output)  # the hook is gone


def test_soft_targets_are_those_of_label_smoothing_mixed():
    mixup, target = make_mixup(smoothing=0.2), torch.tensor([0, 3, 1])
    smooth = F.one_hot(target, CLASSES) * 0.8 + 0.2 / CLASSES
    context = SimpleNamespace(key=(5, 0, 0), network=make_model())
    for given in (target, smooth):  # which may be soft already
        [(_, term)] = mixup.loss_terms([('full', dict)], torch.zeros(3, 3, 32, 32), given, context)
        _, lam, permutation = mixup.draw(3, *context.key)
        torch.testing.assert_close(term()['target'], lam * smooth + (1 - lam) * smooth[permutation])


def test_draws_depend_on_their_keys_alone_and_reach_every_layer():
    mixup = make_mixup()
    draws = [mixup.draw(8, num_updates, 0, 0) for num_updates in range(200)]
    assert {layer for layer, _, _ in draws} == {None, *LAYERS}
    torch.manual_seed(7)
    again = [mixup.draw(8, num_updates, 0, 0) for num_updates in range(200)]
    for (layer, lam, permutation), (other_layer, other_lam, other) in zip(draws, again, strict=True):
        assert (layer, lam) == (other_layer, other_lam) and torch.equal(permutation, other)
    assert mixup.draw(8, 0, 1, 0)[1] != draws[0][1]  # another rank
    lam = torch.tensor([lam for _, lam, _ in draws])
    assert 0.4 < lam.mean() < 0.6 and lam.std() == pytest.approx((1 / 12) ** 0.5, abs=0.05)  # Beta(1, 1)


def test_the_task_trains_on_the_mixture_it_draws():
    model = make_model()
    mixup = make_mixup()
    soft_loss = lambda output, target: -(target * output.log_softmax(-1)).sum(-1).mean()  # noqa: E731
    task = make_task(model, soft_loss, methods=[mixup])
    [(input, target)] = make_batches(1)
    for num_updates in range(8):  # several layers, the input among them
        task.begin_update(num_updates)
        [(_, term)] = task.loss_terms(input, target)
        result = term()
        layer, lam, permutation = mixup.draw(len(target), num_updates, 0, 0)
        module = model.get_submodule(layer) if layer else None
        with mixed_after(module, permutation, lam):
            output = model(input if layer else blend(input, permutation, lam))
        log_probabilities = output.log_softmax(-1)
        own = -log_probabilities.gather(1, target[:, None]).mean()
        partners = -log_probabilities.gather(1, target[permutation][:, None]).mean()
        torch.testing.assert_close(result['loss'], lam * own + (1 - lam) * partners)


def test_layers_are_those_that_run_as_modules():
    assert find_layers(make_model(), (3, 32, 32)) == LAYERS
    assert len(find_layers(make_model('test_vit', img_size=32), (3, 32, 32))) > 0


def test_a_model_without_layers_is_refused():
    model = make_model()
    model.feature_info = []
    args = train_args('--manifold-mixup', 1.0)
    with pytest.raises(OptionError, match='--manifold-mixup 1'):
        create(args, model, {'input_size': (3, 32, 32)})


@pytest.mark.parametrize('other', ['--gradaug 3', '--torchcompile', '--grad-checkpointing', '--kd-model-name resnet18'])
def test_what_cannot_follow_the_mixture_is_refused(other):
    argv = ['--dataset', 'regaug/digits', '--device', 'cpu', '--manifold-mixup', '0.5', *other.split()]
    with pytest.raises(OptionError, match=r'--manifold-mixup 0\.5') as error:
        parse_train(argv)
    assert other.split()[0] in str(error.value)
