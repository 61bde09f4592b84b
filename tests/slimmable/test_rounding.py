"""How many channels a width keeps."""

import pytest

from regaug.slimmable import kept_units


@pytest.mark.parametrize(
    'units, unit_size, width, divisor, kept',
    [
        (64, 1, 0.9, 8, 56),  # 7.2 steps of 8
        (64, 1, 0.9, 1, 58),  # 57.6
        (20, 1, 0.875, 1, 18),  # 17.5: half up
        (12, 1, 0.5, 8, 6),  # a step of 8 exceeds half of 12
        (16, 1, 0.1, 8, 8),  # never less than one step
        (3, 1, 0.01, 1, 1),
        (16, 4, 0.9, 8, 14),  # groups of four channels: two make up the divisor
        (6, 64, 0.9, 8, 5),  # heads of 64: every single one does
        (20, 1, 1.0, 8, 20),
    ],
)
def test_kept_units_are_rounded_half_up_to_the_divisor(units, unit_size, width, divisor, kept):
    assert kept_units(units, unit_size, width, divisor) == kept


def test_default_divisor_keeps_seven_eighths_of_a_64_channel_layer_at_width_09():
    assert kept_units(64, 1, 0.9, 8) / 64 == 0.875


def test_divisor_1_differs_from_the_released_code_in_24_percent_of_a_resnet50s_channel_counts():
    """It rounds the inner widths of blocks, and the stem's, in units of a quarter, then cuts them to whole channels."""
    inner, outer = [64, 64, 64], [2048]  # of the stem: its outputs, inputs of the first block and of its shortcut
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        inner += [planes] * 4 * blocks  # two convolutions' outputs, two convolutions' inputs
        outer += [4 * planes] * (blocks + 1)  # outputs of blocks and of the shortcut
        outer += [4 * planes] * (blocks - 1) + ([2 * planes] * 2 if planes > 64 else [])  # inputs of the same
    assert len(inner + outer) == 53 * 2  # as many as inputs and outputs of 53 convolutions and inputs of the classifier
    different = []
    for width in (0.9 + 0.1 * i / 2999 for i in range(3000)):
        theirs = [int(round(4 * count * width) / 4) for count in inner] + [int(count * width + 0.5) for count in outer]
        ours = [kept_units(count, 1, width, 1) for count in inner + outer]
        assert all(mine - other in (0, 1) for mine, other in zip(ours, theirs, strict=True))
        different.append(sum(mine != other for mine, other in zip(ours, theirs, strict=True)) / len(ours))
    assert sum(different) / len(different) == pytest.approx(0.24, abs=0.005)
