import doctest
import math

import numpy as np
import pytest
import torch

from s3h_ext.data import recipes
from s3h_ext.data.recipes import (
    RECIPES,
    ColorJitter,
    PadCrop,
    Recipe,
    ResizedCrop,
    colour_matrix,
    get_recipe,
)
from s3h_ext.ops.philox import philox_uniform

VIEWS = 4000


def uniforms(draws, count=VIEWS, view=0):
    return philox_uniform(
        seed=0, epoch=0, index=torch.arange(count), view=view, draws=draws
    )


def test_pad_crop_boxes_are_uniform_shifts():
    spec = Recipe(crop=PadCrop(4)).describe(uniforms(4), 32, 32)
    assert not spec.resized
    assert (spec.box[:, 2:] == 32).all()
    for corner in (spec.box[:, 0], spec.box[:, 1]):
        counts = torch.bincount(corner + 4, minlength=9)
        assert len(counts) == 9
        expected = VIEWS / 9
        chi_square = ((counts - expected) ** 2 / expected).sum()
        # 8 degrees of freedom: deviation 4.
        assert chi_square < 8 + 6 * 4


@pytest.mark.parametrize("padding", [0, 1, 4, 31])
def test_pad_crop_stays_in_range_at_the_ends(padding):
    ends = torch.tensor([0.0, 1 - 2**-24])[:, None].expand(2, 4)
    box = PadCrop(padding).boxes(ends.double(), 32, 32)
    assert box[0, :2].tolist() == [-padding, -padding]
    assert box[1, :2].tolist() == [padding, padding]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (20, 47), (64, 9)])
def test_resized_crop_boxes_keep_their_constraint(height, width):
    crop = ResizedCrop(scale=(0.2, 1.0))
    recipe = Recipe(crop=crop)
    spec = recipe.describe(uniforms(recipe.draws), height, width)
    assert spec.resized
    top, left, h, w = spec.box.unbind(-1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    # Rounding moves each side by half a pixel at most.
    assert (((w + 0.5) / (h - 0.5)) >= 3 / 4).all()
    assert (((w - 0.5) / (h + 0.5)) <= 4 / 3).all()
    if height == width:
        assert ((h + 0.5) * (w + 0.5) >= 0.2 * height * width).all()
        assert len(torch.unique(h)) > 10
        assert len(torch.unique(top)) > 10


def test_resized_crop_ratio_is_symmetric():
    recipe = Recipe(crop=ResizedCrop(scale=(0.2, 0.5)))
    _, _, h, w = recipe.describe(uniforms(recipe.draws), 256, 256).box.unbind(-1)
    logarithm = (w / h).log()
    assert abs(logarithm.mean()) < 0.01
    # Log-uniform over log(3/4) .. log(4/3).
    assert math.isclose(
        logarithm.std(), 2 * math.log(4 / 3) / math.sqrt(12), rel_tol=0.03
    )
    area = (w * h) / 256**2
    assert math.isclose(area.mean(), 0.35, rel_tol=0.02)


def test_resized_crop_takes_the_first_try_that_fits():
    draws = torch.full((1, 16), 0.5)
    crop = ResizedCrop(scale=(0.25, 1.0), tries=2)
    # The whole area at ratio 4/3 does not fit; a quarter of it at ratio 1 does.
    draws[0, 12:] = torch.tensor([1.0, 1.0, 0.0, 0.5])
    assert crop.boxes(draws.double(), 32, 32).tolist() == [[8, 8, 16, 16]]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(32, 32, [0, 0, 32, 32]), (64, 30, [12, 0, 40, 30]), (30, 64, [0, 12, 30, 40])],
)
def test_resized_crop_fallback(height, width, expected):
    crop = ResizedCrop(scale=(1.0, 1.0), tries=1)
    draws = torch.full((1, 14), 1.0, dtype=torch.float64)
    assert crop.boxes(draws, height, width).tolist() == [expected]


def test_polynomial_exponential():
    x = torch.linspace(-1.16, 1.16, 1001, dtype=torch.float64)
    assert torch.allclose(recipes._exp(x), x.exp(), rtol=1e-14, atol=0)


def test_flip_and_grey_rates():
    spec = get_recipe("crop-flip-gray").describe(uniforms(4), 32, 32)
    deviation = 6 / math.sqrt(VIEWS) / 2
    assert abs(spec.flip.float().mean() - 0.5) < deviation
    grey = (spec.colour[:, 0] == spec.colour[:, 1]).all(dim=-1)
    assert abs(grey.float().mean() - 0.2) < deviation
    luma = torch.tensor([0.299, 0.587, 0.114, 0.0])
    assert torch.equal(spec.colour[grey], luma.expand(int(grey.sum()), 3, 4))
    identity = torch.eye(3, 4)
    assert torch.equal(
        spec.colour[~grey], identity.expand(VIEWS - int(grey.sum()), 3, 4)
    )


def test_jitter_is_off_one_time_in_five():
    recipe = Recipe(jitter=ColorJitter())
    colour = recipe.describe(uniforms(9), 32, 32).colour
    off = (colour == torch.eye(3, 4)).flatten(1).all(dim=1)
    assert abs(off.float().mean() - 0.2) < 6 / math.sqrt(VIEWS) / 2


def test_slots_are_shared_between_recipes():
    draws = uniforms(32)
    plain = get_recipe("crop-flip").describe(draws, 32, 32)
    jitter = get_recipe("crop-flip-jitter-gray").describe(draws, 32, 32)
    assert torch.equal(plain.box, jitter.box)
    assert torch.equal(plain.flip, jitter.flip)


@pytest.mark.parametrize("name", RECIPES)
def test_draws_are_enough_and_all_needed(name):
    recipe = get_recipe(name)
    whole = recipe.describe(uniforms(40, count=200), 32, 32)
    exact = recipe.describe(uniforms(recipe.draws, count=200), 32, 32)
    assert torch.equal(whole.box, exact.box)
    assert torch.equal(whole.flip, exact.flip)
    if whole.colour is not None:
        assert torch.equal(whole.colour, exact.colour)
    if recipe.draws:
        with pytest.raises(ValueError, match="uniforms"):
            recipe.describe(uniforms(recipe.draws - 1), 32, 32)


def test_views_are_described_one_by_one():
    recipe = get_recipe("supcon")
    draws = uniforms(recipe.draws, count=60).reshape(3, 20, -1)
    grid = recipe.describe(draws, 32, 32)
    part = grid.narrow(1, 5, 9).flatten()
    alone = recipe.describe(draws[:, 5:9].reshape(12, -1), 32, 32)
    assert torch.equal(part.box, alone.box)
    assert torch.equal(part.flip, alone.flip)
    assert torch.equal(part.colour, alone.colour)


def test_named_recipes():
    assert RECIPES["none"] == Recipe()
    assert RECIPES["crop"].flip == 0
    assert RECIPES["crop-gray"].flip == 0
    assert RECIPES["supcon"].crop == ResizedCrop((0.2, 1.0))
    with pytest.raises(ValueError, match="did you mean 'crop-gray'"):
        get_recipe("crop-grey")


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale": (0, 1)},
        {"scale": (0.5, 0.2)},
        {"scale": (0.5, 1.5)},
        {"ratio": (0.01, 1)},
        {"ratio": (2, 1)},
        {"tries": 0},
    ],
)
def test_wrong_resized_crop(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ResizedCrop(**arguments)


LUMA = np.array([0.299, 0.587, 0.114])
YIQ = np.array(
    [
        LUMA,
        [0.595716, -0.274453, -0.321263],
        [0.211456, -0.522591, 0.311135],
    ]
)


def direct_colour(pixel, brightness, contrast, saturation, angle):
    """The four operations one after the other, as they are defined."""
    pixel = brightness * pixel
    pixel = contrast * (pixel - 0.5) + 0.5
    grey = LUMA @ pixel
    pixel = grey + saturation * (pixel - grey)
    y, i, q = YIQ @ pixel
    turned = [
        y,
        i * math.cos(angle) - q * math.sin(angle),
        i * math.sin(angle) + q * math.cos(angle),
    ]
    return np.linalg.solve(YIQ, turned)


def as_matrix(*factors):
    return colour_matrix(*(torch.tensor(x, dtype=torch.float64) for x in factors))


@pytest.mark.parametrize(
    "factors",
    [
        (1.0, 1.0, 1.0, 0.0),
        (0.6, 1.0, 1.0, 0.0),
        (1.0, 1.4, 1.0, 0.0),
        (1.0, 1.0, 0.0, 0.0),
        (1.0, 1.0, 1.6, 0.0),
        (1.0, 1.0, 1.0, 0.6),
        (1.0, 1.0, 1.0, -2.5),
        (1.3, 0.7, 1.2, 0.4),
        (0.8, 1.3, 0.0, 0.5),
    ],
)
def test_colour_matrix_against_the_direct_formulas(factors):
    matrix = as_matrix(*factors).double().numpy()
    for pixel in np.random.RandomState(0).rand(20, 3):
        expected = direct_colour(pixel, *factors)
        assert np.allclose(matrix[:, :3] @ pixel + matrix[:, 3], expected, atol=2e-6)


def test_colour_matrix_identity_is_exact():
    assert torch.equal(as_matrix(1.0, 1.0, 1.0, 0.0), torch.eye(3, 4))


def test_hue_keeps_luma_and_greys():
    matrix = as_matrix(1.0, 1.0, 1.0, 0.9).double()
    luma = torch.from_numpy(LUMA)
    assert torch.allclose(luma @ matrix[:, :3], luma, atol=1e-6)
    assert torch.allclose(matrix[:, :3].sum(dim=1), torch.ones(3).double(), atol=1e-6)


def test_jitter_factors_stay_in_range():
    recipe = Recipe(jitter=ColorJitter(0.4, 0.0, 0.0, 0.0, probability=1.0))
    gain = recipe.describe(uniforms(9), 32, 32).colour[:, 0, 0]
    assert gain.min() >= 0.6
    assert gain.max() <= 1.4
    assert gain.min() < 0.61
    assert gain.max() > 1.39


def test_examples():
    assert doctest.testmod(recipes).failed == 0
