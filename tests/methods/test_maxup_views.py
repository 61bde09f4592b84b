"""MaxUp over views: the loader delivers several versions of each image, MaxUp keeps the worst."""

import itertools

import numpy as np
import pytest
import torch
from torchvision import transforms

from regaug.augment.mix import CutMix
from regaug.data.samples import Views
from regaug.methods.maxup import MaxUp, create_maxup
from regaug.training.criterion import create_criterion
from regaug.training.phases import phase_at
from tests.helpers.data import BYTES_CONFIG, MemoryDataset, as_bytes, make_train_data, noise_images, noise_set
from tests.helpers.maxup import LABELS, candidates_of, losses_of, rows_of
from tests.helpers.training import (
    CLASSES,
    assert_equal,
    make_model,
    make_task,
    set_selector,
)

AS_THEY_ARE = ('--hflip', 0, '--color-jitter', 0, '--scale', 1, 1, '--ratio', 1, 1)
VIEWS = ('--maxup', 3, '--maxup-aug', 'views', '--maxup-warmup-epochs', 0, '--epochs', 4, '--warmup-epochs', 0)


class CountingDataset(MemoryDataset):
    """Counts how often an image is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_an_image_is_read_once_and_each_view_is_made_of_the_image_itself():
    dataset = CountingDataset(noise_images(4), [3, 2, 1, 0])
    dataset.transform = transforms.ToTensor()
    views = Views(dataset, 5)
    seen = []
    views.transform = lambda image: seen.append(np.asarray(image)) or len(seen)
    versions, target = views[2]
    assert (versions, target, dataset.reads, len(views)) == ((1, 2, 3, 4, 5), 1, 1, 4)
    for image in seen:
        assert np.array_equal(image, noise_images(4)[2])


@pytest.mark.parametrize('workers', [0, 2])
def test_a_batch_has_the_views_of_its_images_version_by_version(workers):
    images = noise_set(12, classes=12)
    train_data, _ = make_train_data(
        images, *VIEWS, *AS_THEY_ARE, '--batch-size', 4, '--workers', workers, '--smoothing', 0, classes=12
    )
    labels = []
    for input, target in train_data.loader:
        assert input.shape == (12, 3, 32, 32)
        assert target.tolist() == target[:4].tolist() * 3
        assert np.array_equal(as_bytes(input), images.images[target.numpy()])
        labels += target[:4].tolist()
    assert sorted(labels) == list(range(12))


def test_views_of_an_image_are_augmented_independently():
    options = ('--hflip', 0.5, '--color-jitter', 0, '--pad-crop', 4, '--batch-size', 8, '--workers', 0)
    train_data, _ = make_train_data(noise_set(64), *VIEWS, *options, '--reprob', 0.5)
    equal = []
    for input, _ in train_data.loader:
        versions = input.tensor_split(3)
        equal += [
            torch.equal(one, two)
            for pair in itertools.combinations(versions, 2)
            for one, two in zip(*pair, strict=True)
        ]
    assert len(equal) == 64 * 3
    assert sum(equal) < 5


def numbered_images(count, side=40):
    """Images of one colour each, by which a sample is known whatever crop is taken: red is 4 * number + 3."""
    images = np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    images[..., 0] = (np.arange(count) * 4 + 3)[:, None, None]
    return images


@pytest.mark.parametrize('augmentation', ['views', 'views+cutout'])
def test_of_the_views_of_a_sample_its_own_worst_one_is_chosen(augmentation):
    dataset = MemoryDataset(numbered_images(16), np.arange(16))
    options = (*VIEWS, '--maxup-aug', augmentation, '--batch-size', 8, '--workers', 0, '--color-jitter', 0)
    train_data, args = make_train_data(dataset, *options, '--pad-crop', 4, classes=16)
    model = make_model(dtype=torch.float32)
    model.reset_classifier(16)
    phase = phase_at(0, args)
    task = make_task(model, create_criterion(phase))
    set_selector(task, create_maxup(phase, task, BYTES_CONFIG))
    picked = []
    for input, target in train_data.loader:
        candidates, (chosen, labels, metrics) = candidates_of(task, input, target, (0, 0, 0))
        assert len(candidates) == 3
        assert_equal(labels, target[:8])
        assert ((chosen[:, 0].amax(dim=(1, 2)) - 3) / 4).round().long().tolist() == labels.tolist()
        if augmentation == 'views':
            assert_equal([image for image, _ in candidates], list(input.tensor_split(3)))
        worst = losses_of(model, task.criterion, candidates).argmax(dim=0)
        assert_equal(chosen, rows_of(candidates, worst)[0])
        assert metrics['maxup_lambda'] == 1
        picked += worst.tolist()
    assert len(picked) == 16 and len(set(picked)) == 3


def test_views_may_be_mixed_each_with_views_of_its_version():
    input = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 3, 16, 16)  # 3 versions of 4 samples
    target = torch.arange(4).repeat(3)
    maxup = MaxUp([CutMix(alpha=1.0, prob=1.0, **LABELS)], num_copies=3, scorer=None, seed=1, views=True)
    for number, (mixed, soft, lam) in enumerate(maxup.candidates(input, target, np.random.default_rng(2))):
        assert mixed.shape == (4, 3, 16, 16) and soft.shape == (4, CLASSES) and lam.shape == (4,)
        assert set((mixed // 4).flatten().tolist()) == {number}
        own = (mixed[:, 0] == input[4 * number : 4 * number + 4, 0]).float().mean(dim=(1, 2))
        assert (own >= lam - 1e-6).all()
        assert own.min() < 1


def test_each_phase_delivers_as_many_views_as_it_needs():
    options = ('--maxup', 3, '--maxup-aug', 'views', '--maxup-warmup-epochs', 1, '--epochs', 3, '--warmup-epochs', 0)
    further = ('--refine-epochs', 1, '--batch-size', 4, '--workers', 0, '--pad-crop', 2)
    images = noise_set(8)
    train_data, args = make_train_data(images, *options, *further)
    sizes = []
    for epoch in range(4):
        train_data.use(phase_at(epoch, args))
        sizes.append([len(input) for input, _ in train_data.loader])
    assert sizes == [[4, 4], [12, 12], [12, 12], [4, 4]]


def test_policies_fade_in_every_view():
    """Over the last three of four epochs fewer and fewer views are changed by the policy."""
    options = (*VIEWS, *AS_THEY_ARE, '--aa', 'rand-m9-n4', '--refine-epochs', 1, '--refine-fade', 3)
    images = noise_set(60)
    originals = {image.tobytes() for image in images.images}
    train_data, args = make_train_data(images, *options, '--batch-size', 60, '--workers', 0)
    changed = []
    for epoch in range(4):
        train_data.use(phase_at(epoch, args))
        [(input, _)] = train_data.loader
        versions = as_bytes(input).reshape(3, 60, 32, 32, 3)
        changed.append([np.mean([image.tobytes() not in originals for image in images]) for images in versions])
    for version in range(3):
        shares = [epoch[version] for epoch in changed]
        expected = [shares[0] * intensity for intensity in (1, 0.75, 0.5, 0.25)]
        assert shares[0] > 0.5
        assert shares == pytest.approx(expected, abs=0.2)
    assert np.mean(changed, axis=1).tolist() == sorted(np.mean(changed, axis=1), reverse=True)
