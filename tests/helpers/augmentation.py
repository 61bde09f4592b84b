"""Augmentation with parameters as data, as its tests build and apply it."""

from regaug.augment.parameters import BASE, GROUPS, Augmentation

HEIGHT, WIDTH = 24, 40  # not square: rows and columns cannot be taken for each other
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_augmentation(groups=GROUPS, *, channels=3, **kwargs):
    return Augmentation(groups, **{'mean': MEAN[:channels], 'std': STD[:channels], 'cutout_size': 10, **kwargs})


def augment(augmentation, images, *candidates):
    """Normalised images of candidates that are augmented together, the first of which is the base."""
    names = dict(zip((BASE, *augmentation.groups), candidates))
    results, _ = augmentation.apply(images, names)
    assert list(results) == list(names) and len(names) == len(candidates)
    return list(results.values())
