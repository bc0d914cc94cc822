import numpy as np
import pytest
import torch

from s3h_ext.data import Stream
from s3h_ext.data.views.recipes import RECIPES, get_recipe
from s3h_ext.data.views.timm_randaugment import TimmRandAugment, parse_randaugment
from s3h_ext.ops.augment import Operation

from .sources import describe, noisy_images, source_of_arrays, uniforms

VIEWS = 20000


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("rand", TimmRandAugment()),
        ("rand-m9-n3-mstd0.5", TimmRandAugment(3, 9, 0.5)),
        ("rand-n2-m10-mstd0.5", TimmRandAugment(2, 10, 0.5)),
        ("rand-m9-mstd0.5-inc1", TimmRandAugment(2, 9, 0.5, increasing=True)),
        ("rand-inc0-mmax20-m15-p0.7", TimmRandAugment(2, 15, 0, 20, False, 0.7)),
        ("rand-mstd101", TimmRandAugment(deviation=101)),
        ("rand-mstdinf", TimmRandAugment(deviation=float("inf"))),
    ],
)
def test_strings_as_timms_users_type_them(text, policy):
    assert parse_randaugment(text) == policy


@pytest.mark.parametrize(
    "text",
    [
        *("rand-", "rand-m", "rand-m9-m8", "rand-w0", "rand-n0", "rand-n17"),
        *("rand-n1.5", "rand-m-1", "rand-m101", "rand-inc2", "rand-p1.1", "rand-mmax0"),
        *("rand-x3", "rand-minf", "rand-m1e3", "rand-n2 -m3", "rand-mstd0.5x"),
    ],
)
def test_strings_that_are_none_name_the_option(text):
    with pytest.raises(ValueError, match="contrast_recipe: expected"):
        get_recipe(f"crop-flip+{text}", "contrast_recipe")


FACTORS = (
    *(Operation.COLOUR, Operation.CONTRAST),
    *(Operation.BRIGHTNESS, Operation.SHARPNESS),
)
UNGRADED = (Operation.AUTO_CONTRAST, Operation.EQUALIZE, Operation.INVERT)
# As timm's documentation has them: the ends at level 0 and 10.
PLAIN = {
    Operation.ROTATE: (0, 30),
    Operation.POSTERIZE: (0, 4),
    Operation.SOLARIZE: (0, 256),
    Operation.SOLARIZE_ADD: (0, 110),
    **dict.fromkeys(FACTORS, (0.1, 1.9)),
    Operation.SHEAR_X: (0, 0.3),
    Operation.SHEAR_Y: (0, 0.3),
    Operation.TRANSLATE_X: (0, 0.45 * 48),
    Operation.TRANSLATE_Y: (0, 0.45 * 32),
    **dict.fromkeys(UNGRADED, (0, 0)),
}
INCREASING = PLAIN | {
    Operation.POSTERIZE: (4, 0),
    Operation.SOLARIZE: (256, 0),
    **dict.fromkeys(FACTORS, (1, 0.1)),
}
WHOLE = [*PLAIN][1:4]
SIGNED = [Operation.ROTATE, *[*PLAIN][8:12]]


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("level", [0, 3, 10])
def test_magnitudes_are_timms(increasing, level):
    policy = parse_randaugment(f"rand-n1-m{level}-p1-inc{int(increasing)}")
    operations, magnitudes = policy.describe(uniforms(4), 32, 48)
    table = INCREASING if increasing else PLAIN
    assert {*operations.unique().tolist()} == {*map(int, table)}
    for operation, (first, last) in table.items():
        values = set(magnitudes[operations == operation].tolist())
        value = first + (last - first) * level / 10
        if operation in WHOLE:
            value = first + np.trunc((last - first) * level / 10)
        expected = {value}
        if operation in SIGNED:
            expected = {value, -value}
        if increasing and operation in FACTORS:
            expected = {value, 2 - value}
        assert np.allclose(sorted(values), sorted({*expected})), operation


def test_operations_are_drawn_evenly_and_applied_by_their_probability():
    operations, _ = parse_randaugment("rand-n3-p0.5").describe(uniforms(12), 32, 32)
    assert operations.shape == (VIEWS, 3)
    for place in range(3):
        counts = torch.bincount(operations[:, place])
        none, counts = counts[0], counts[counts > 0][1:]
        assert abs(none / VIEWS - 0.5) < 6 * (0.25 / VIEWS) ** 0.5
        expected = VIEWS / 30
        assert len(counts) == 15
        # 14 degrees of freedom: deviation 5.3.
        assert ((counts - expected) ** 2 / expected).sum() < 14 + 6 * 5.3


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [
        ("rand-m5-mstd0.5", 5, 0.5),
        ("rand-m5-mstd101", 2.5, 5 / 12**0.5),
        ("rand-m5", 5, 0),
    ],
)
def test_magnitudes_are_spread(text, mean, deviation):
    drawn = parse_randaugment(text)._magnitudes(uniforms(1).flatten())
    assert abs(drawn.mean() - mean) < 6 * deviation / VIEWS**0.5 + 1e-9
    assert abs(drawn.std() - deviation) < 0.03 * deviation + 1e-9
    assert torch.equal(drawn * 1024, (drawn * 1024).round())


def test_magnitudes_stay_between_0_and_the_greatest():
    for text, greatest in (("rand-m10-mstd9", 10), ("rand-m10-mstd9-mmax14", 14)):
        drawn = parse_randaugment(text)._magnitudes(uniforms(1).flatten())
        assert (drawn.min(), drawn.max()) == (0, greatest)
    ends = torch.tensor([0.0, 1 - 2**-24]).double()
    assert parse_randaugment("rand-mstd1")._magnitudes(ends).tolist() == [
        pytest.approx(10 - 5.42, abs=0.02),
        10,
    ]


def test_what_is_added_to_a_recipe():
    recipe = get_recipe("supcon+blur+solarize0.25")
    assert (recipe.blur, recipe.solarize, recipe.cutout) == (0.5, 0.25, 0)
    assert recipe.jitter == RECIPES["supcon"].jitter
    assert get_recipe("crop+rand-m3+cutout8").cutout == 8
    assert get_recipe("autoaugment+cutout+blur0.1").blur == 0.1
    for name, said in {
        "supcon+blurs": "expected behind 'supcon' 'rand-...', 'blur'",
        "supcon+blur+blur": "each once",
        "supcon+cutout1.5": "got 'cutout1.5'",
        "randaugment+rand-m3": "got 'rand-m3'",
        "supcn+blur": "did you mean 'supcon'",
        "supcon+blur1.5": "blur: expected a probability in",
        "supcon+": "got ''",
    }.items():
        with pytest.raises(ValueError, match="recipe: ") as error:
            get_recipe(name)
        assert said in str(error.value)


def test_blur_and_solarise_come_by_their_probabilities():
    spec = describe("crop-flip+blur+solarize")
    blurred = spec.operations[:, 0] == Operation.BLUR
    inverted = spec.operations[:, 1] == Operation.SOLARIZE
    assert {*spec.operations[:, 0].tolist()} == {0, Operation.BLUR}
    assert abs(blurred.double().mean() - 0.5) < 0.05
    assert abs(inverted.double().mean() - 0.2) < 0.04
    deviations = spec.magnitudes[:, 0]
    assert 0.1 <= deviations.min() < 0.11
    assert 1.99 < deviations.max() < 2
    assert (spec.magnitudes[:, 1] == 128).all()
    # Independent of each other.
    assert abs((blurred & inverted).double().mean() - 0.1) < 0.03


def test_what_is_added_leaves_crops_and_other_operations_alone():
    plain, more = (describe(f"crop-flip+rand-m9{m}") for m in ("", "+blur"))
    assert torch.equal(plain.box, more.box)
    assert torch.equal(plain.flip, more.flip)
    assert torch.equal(plain.operations, more.operations[:, :2])
    assert torch.equal(plain.magnitudes, more.magnitudes[:, :2])


def test_views_of_a_stream():
    name = "crop-flip+rand-n2-m10-mstd0.5+blur1+solarize"
    streams = {"a": Stream(recipe=name, views=2)}
    source = source_of_arrays(noisy_images(32, 32), streams, epochs=2)
    steps, tail = list(source.epoch(1)), source.epoch(1, start_step=2)
    assert torch.equal(steps[2]["a"].images, next(tail)["a"].images)
    assert not torch.equal(steps[2]["a"].images[0], steps[2]["a"].images[1])
