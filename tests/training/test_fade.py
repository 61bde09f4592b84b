"""Fading: all that refinement switches off gets weaker, epoch by epoch."""

import pytest
from timm.data.transforms_factory import create_transform

from regaug.training.phases import phase_at
from tests.helpers.data import noise_set
from tests.helpers.training import train_args

OPTIONS = (
    *('--epochs', 4, '--warmup-epochs', 0, '--refine-epochs', 1, '--refine-fade', 3),
    *('--color-jitter', 0.4, '--grayscale-prob', 0.2, '--gaussian-blur-prob', 0.8, '--reprob', 0.5),
)


def test_jitter_grey_blur_and_erasing_fade():
    phases = [phase_at(epoch, train_args(*OPTIONS)).options for epoch in range(5)]
    for name, full in (('color_jitter', 0.4), ('grayscale_prob', 0.2), ('gaussian_blur_prob', 0.8), ('reprob', 0.5)):
        values = [getattr(options, name) for options in phases]
        assert values[:-1] == pytest.approx([full, 0.75 * full, 0.5 * full, 0.25 * full])
        assert not values[-1]


def test_manifold_mixups_alpha_fades_where_it_is_drawn_from():
    args = train_args(*OPTIONS, '--manifold-mixup', 2.0)
    alphas = [phase_at(epoch, args).options.manifold_mixup for epoch in range(5)]
    assert alphas == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
    assert [('manifold_mixup' in phase_at(epoch, args).methods) for epoch in range(5)] == [True] * 4 + [False]


def test_what_is_off_stays_off_and_the_transform_has_the_faded_strength():
    options = phase_at(2, train_args(*OPTIONS[:8], '--color-jitter', 0.4)).options
    assert options.grayscale_prob is None and options.gaussian_blur_prob is None
    pipeline = create_transform((3, 32, 32), is_training=True, color_jitter=options.color_jitter)
    [jitter] = [step for step in pipeline.transforms if type(step).__name__ == 'ColorJitter']
    assert jitter.brightness == pytest.approx((0.8, 1.2))
    assert len(noise_set(2)) == 2
