"""Manifold Mixup: what is mixed, where, and with which labels."""

import pytest
import torch
from torch.nn import functional as F

from regaug.errors import OptionError
from regaug.methods.manifold import ManifoldMixup, create, find_stages, mix, mixed_after
from regaug.options import parse_train
from tests.helpers.training import CLASSES, make_batches, make_model, make_task, train_args

STAGES = ['act1', 'layer1', 'layer2', 'layer3', 'layer4']


def make_mixup(stages=STAGES, alpha=1.0, smoothing=0.0, seed=0):
    return ManifoldMixup(stages, alpha=alpha, seed=seed, num_classes=CLASSES, smoothing=smoothing)


def test_features_after_a_stage_equal_those_of_a_forward_pass_cut_there_by_hand():
    model = make_model().eval()
    [(input, _)] = make_batches(1)
    permutation = torch.tensor([2, 0, 3, 1])
    with mixed_after(model.layer2, 0.3, permutation):
        output = model(input)
    features = model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(input))))))
    features = 0.3 * features + 0.7 * features[permutation]
    torch.testing.assert_close(output, model.forward_head(model.layer4(model.layer3(features))))
    assert not torch.equal(model(input), output)  # the hook is gone


def test_soft_targets_are_those_of_label_smoothing_mixed():
    target, permutation = torch.tensor([0, 3, 1]), torch.tensor([1, 2, 0])
    soft = make_mixup(smoothing=0.2).mix_target(target, 0.25, permutation)
    smooth = F.one_hot(target, CLASSES) * 0.8 + 0.2 / CLASSES
    torch.testing.assert_close(soft, 0.25 * smooth + 0.75 * smooth[permutation])


def test_draws_depend_on_their_keys_alone_and_reach_every_place():
    mixup = make_mixup()
    draws = [mixup.draw(8, num_updates, 0, 0) for num_updates in range(200)]
    assert {stage for stage, _, _ in draws} == {None, *STAGES}
    torch.manual_seed(7)
    again = [mixup.draw(8, num_updates, 0, 0) for num_updates in range(200)]
    for (stage, ratio, permutation), (other_stage, other_ratio, other) in zip(draws, again, strict=True):
        assert (stage, ratio) == (other_stage, other_ratio) and torch.equal(permutation, other)
    assert mixup.draw(8, 0, 1, 0)[1] != draws[0][1]  # another rank
    ratios = torch.tensor([ratio for _, ratio, _ in draws])
    assert 0.4 < ratios.mean() < 0.6 and ratios.std() == pytest.approx((1 / 12) ** 0.5, abs=0.05)  # Beta(1, 1)


def test_the_task_trains_on_the_mixture_it_draws():
    model = make_model()
    mixup = make_mixup()
    soft_loss = lambda output, target: -(target * output.log_softmax(-1)).sum(-1).mean()  # noqa: E731
    task = make_task(model, soft_loss, methods=[mixup])
    [(input, target)] = make_batches(1)
    for num_updates in range(8):  # several places, the input among them
        task.begin_update(num_updates)
        [(_, term)] = task.loss_terms(input, target)
        result = term()
        stage, ratio, permutation = mixup.draw(len(target), num_updates, 0, 0)
        module = model.get_submodule(stage) if stage else None
        with mixed_after(module, ratio, permutation):
            output = model(input if stage else mix(input, ratio, permutation))
        log_probabilities = output.log_softmax(-1)
        own = -log_probabilities.gather(1, target[:, None]).mean()
        partners = -log_probabilities.gather(1, target[permutation][:, None]).mean()
        torch.testing.assert_close(result['loss'], ratio * own + (1 - ratio) * partners)


def test_stages_are_those_that_run_as_modules():
    assert find_stages(make_model(), (3, 32, 32)) == STAGES
    assert len(find_stages(make_model('test_vit', img_size=32), (3, 32, 32))) > 0


def test_a_model_without_stages_is_refused():
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


def test_a_run_mixes_in_the_main_phase_only(train, caplog):
    caplog.set_level('INFO')
    train('--manifold-mixup', 1.0, '--refine-epochs', 1, '--epochs', 1)
    assert any('Phase refine' in record.message and '--manifold-mixup' in record.message for record in caplog.records)
