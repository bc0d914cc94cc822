from collections import Counter

import numpy as np
import pytest
import torch

from s3h_ext.data.views.policies import CIFAR10_POLICY, AutoAugment, RandAugment
from s3h_ext.ops.augment import Operation

from .sources import uniforms

VIEWS = 20000


# What the levels stand for, as ranges of ten values.
RANGES = {
    Operation.SHEAR_Y_CUBIC: np.linspace(0, 0.3, 10),
    Operation.TRANSLATE_X: np.linspace(0, 150 / 331, 10) * 48,
    Operation.TRANSLATE_Y: np.linspace(0, 150 / 331, 10) * 32,
    Operation.ROTATE: np.linspace(0, 30, 10),
    Operation.COLOUR: np.linspace(0, 0.9, 10),
    Operation.CONTRAST: np.linspace(0, 0.9, 10),
    Operation.BRIGHTNESS: np.linspace(0, 0.9, 10),
    Operation.SHARPNESS: np.linspace(0, 0.9, 10),
    Operation.POSTERIZE: np.round(np.linspace(8, 4, 10)),
    Operation.SOLARIZE: np.linspace(256, 0, 10),
}
FACTORS = list(RANGES)[4:8]
SIGNED = [*list(RANGES)[:3], *FACTORS]


# As the appendix of the paper prints them: operation, probability in tenths, level.
PRINTED = """
Invert 1 7 Contrast 2 6, Rotate 7 2 TranslateX 3 9, Sharpness 8 1 Sharpness 9 3,
ShearY 5 8 TranslateY 7 9, AutoContrast 5 8 Equalize 9 2, ShearY 2 7 Posterize 3 7,
Color 4 3 Brightness 6 7, Sharpness 3 9 Brightness 7 9, Equalize 6 5 Equalize 5 1,
Contrast 6 7 Sharpness 6 5, Color 7 7 TranslateX 5 8, Equalize 3 7 AutoContrast 4 8,
TranslateY 4 3 Sharpness 2 6, Brightness 9 6 Color 2 8, Solarize 5 2 Invert 0 3,
Equalize 2 0 AutoContrast 6 0, Equalize 2 8 Equalize 6 4, Color 9 9 Equalize 6 6,
AutoContrast 8 4 Solarize 2 8, Brightness 1 3 Color 7 0, Solarize 4 5 AutoContrast 9 3,
TranslateY 9 9 TranslateY 7 9, AutoContrast 9 2 Solarize 8 3, Equalize 8 8 Invert 1 3,
TranslateY 7 9 AutoContrast 9 1
"""


def test_the_table_is_the_papers():
    words = [part.split() for part in PRINTED.split(",")]
    assert len(words) == len(CIFAR10_POLICY) == 25
    for pair, (name, p, level, name2, p2, level2) in zip(
        CIFAR10_POLICY, words, strict=True
    ):
        for step, (title, tenths, number) in zip(
            pair, ((name, p, level), (name2, p2, level2)), strict=True
        ):
            ours = step[1].name.removesuffix("_CUBIC").replace("_", "").lower()
            assert ours == title.lower().replace("color", "colour")
            assert step[0] == int(tenths) / 10
            assert step[2] == int(number)


@pytest.mark.parametrize("number", range(25))
def test_sub_policies_mean_what_the_table_says(number):
    for signs in ((0.0, 0.0), (0.0, 0.9), (0.9, 0.0)):
        draws = torch.tensor([[(number + 0.5) / 25, 0.0, 0.0, *signs]]).double()
        operations, magnitudes = AutoAugment().describe(draws, 32, 48)
        for place, (probability, operation, level) in enumerate(CIFAR10_POLICY[number]):
            if probability == 0:
                assert operations[0, place] == Operation.NONE
                continue
            assert operations[0, place] == operation
            if operation not in RANGES:
                continue
            value = RANGES[operation][level]
            if operation in SIGNED:
                value = value if signs[place] else -value
            if operation in FACTORS:
                value += 1
            assert np.isclose(float(magnitudes[0, place]), value, atol=1e-12)


def test_operations_come_by_their_probabilities():
    operations, _ = AutoAugment().describe(uniforms(5), 32, 32)
    counts = Counter(operations.flatten().tolist())
    expected = Counter()
    for pair in CIFAR10_POLICY:
        for probability, operation, _ in pair:
            expected[int(operation)] += probability / 25
    for operation, rate in expected.items():
        deviation = 6 * (rate / VIEWS) ** 0.5
        assert abs(counts[operation] / VIEWS - rate) < deviation, Operation(operation)
    assert counts.keys() - {0} == {key for key, rate in expected.items() if rate}


def test_sub_policies_are_drawn_evenly_at_the_ends_too():
    ends = torch.tensor([[0.0] * 5, [1 - 2**-24] + [0.0] * 4]).double()
    operations, _ = AutoAugment().describe(ends, 32, 32)
    assert operations.tolist() == [
        [Operation.INVERT, Operation.CONTRAST],
        [Operation.TRANSLATE_Y, Operation.AUTO_CONTRAST],
    ]


def test_randaugment_draws_fourteen_operations_evenly():
    operations, magnitudes = RandAugment(3, 30).describe(uniforms(6), 32, 48)
    assert operations.shape == magnitudes.shape == (VIEWS, 3)
    for place in range(3):
        counts = torch.bincount(operations[:, place])
        counts = counts[counts > 0]
        assert len(counts) == 14
        chi_square = ((counts - VIEWS / 14) ** 2 / (VIEWS / 14)).sum()
        # 13 degrees of freedom: deviation 5.1.
        assert chi_square < 13 + 6 * 5.1
    greatest = {
        Operation.SHEAR_X: (-0.3, 0.3),
        Operation.SHEAR_Y: (-0.3, 0.3),
        Operation.TRANSLATE_X: (-150 / 331 * 48, 150 / 331 * 48),
        Operation.TRANSLATE_Y: (-150 / 331 * 32, 150 / 331 * 32),
        Operation.ROTATE: (-30, 30),
        **dict.fromkeys(FACTORS, (0.1, 1.9)),
        Operation.POSTERIZE: (4, 4),
        Operation.SOLARIZE: (0, 0),
    }
    for operation, ends in greatest.items():
        values = magnitudes[operations == operation].unique().tolist()
        assert np.allclose(values, sorted(set(ends)), atol=1e-12), operation


def test_randaugment_of_no_magnitude_changes_nothing_by_size():
    operations, magnitudes = RandAugment(1, 0).describe(uniforms(2), 32, 32)
    neutral = {Operation.SOLARIZE: 256.0, Operation.POSTERIZE: 8.0}
    neutral |= dict.fromkeys(FACTORS, 1.0)
    for operation in Operation:
        values = magnitudes[operations == operation]
        assert (values == neutral.get(operation, 0.0)).all()


@pytest.mark.parametrize(
    ("name", "value"), [("count", 0), ("magnitude", -1), ("magnitude", 31)]
)
def test_wrong_randaugment(name, value):
    with pytest.raises(ValueError, match=name):
        RandAugment(**{name: value})
