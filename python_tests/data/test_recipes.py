import math

import pytest
import torch

from s3h_ext.data.views.colour import ColorJitter
from s3h_ext.data.views.policies import AutoAugment, RandAugment
from s3h_ext.data.views.recipes import MAX_STREAMS, RECIPES, Recipe, get_recipe
from s3h_ext.ops.augment import Operation
from s3h_ext.ops.view_constraints import Centre, PadCrop, RandomResizedCrop

from .sources import describe

VIEWS = 4000
PARTS = ("box", "flip", "fallback", "colour", "operations", "magnitudes", "hole", "key")


def assert_same(first, second):
    for part in PARTS:
        a, b = getattr(first, part), getattr(second, part)
        assert (a is None) == (b is None), part
        assert a is None or torch.equal(a, b), part


# Draws of runs that were made with the first release: they must not change.
RELEASED = {
    "crop-flip": {
        (32, 32): [[-1, 2], [4, 1], [-4, -3], [-2, -1], [4, -1]],
        (20, 47): [[-1, 2], [4, 1], [-4, -3], [-2, -1], [4, -1]],
    },
    "supcon": {
        (32, 32): [
            *([4, 5, 21, 25], [2, 1, 30, 30], [0, 0, 32, 29]),
            *([5, 5, 16, 19], [6, 5, 26, 21]),
        ],
        (20, 47): [
            *([0, 17, 20, 24], [5, 20, 15, 15], [0, 6, 15, 15]),
            *([1, 11, 15, 18], [5, 12, 15, 19]),
        ],
    },
}
RELEASED_GREEN = [
    *(0.139024, 0.924948, -0.19347, -0.139495),
    *(0.065319, 0.942751, -0.042637, 0.140568),
    *(0.192261, 1.331133, -0.176632, -0.00798),
    *(0.0, 1.0, 0.0, 0.0),
    *(0.081404, 0.601749, -0.01121, 0.130659),
]


@pytest.mark.parametrize("size", [(32, 32), (20, 47)])
@pytest.mark.parametrize("name", RELEASED)
def test_draws_are_those_of_the_first_release(name, size):
    address = {"seed": 5, "epoch": 2, "stream": 1}
    address["index"] = torch.tensor([0, 1, 77, 9999, 1 << 33])
    address["view"] = torch.tensor([0, 3, 1, 2, 5])
    spec = describe(name, size=size, **address)
    boxes = RELEASED[name][size]
    assert spec.box[:, : len(boxes[0])].tolist() == boxes
    assert spec.flip.tolist() == [True, False, True, False, True]
    if name == "supcon":
        green = spec.colour[:, 1].flatten()
        assert torch.allclose(green, torch.tensor(RELEASED_GREEN), atol=1e-6)
    else:
        assert spec.box[:, 2:].tolist() == [list(size)] * 5


def test_flip_rate():
    flips = describe("crop-flip").flip.float()
    assert abs(flips.mean() - 0.5) < 6 / math.sqrt(VIEWS) / 2
    assert not describe("crop").flip.any()


def test_slots_are_shared_between_recipes():
    plain = describe("crop-flip")
    for name in ("crop-flip-jitter-gray", "autoaugment+cutout", "randaugment"):
        other = describe(name)
        assert torch.equal(plain.box, other.box)
        assert torch.equal(plain.flip, other.flip)


@pytest.mark.parametrize("name", RECIPES)
def test_crops_are_described_one_by_one(name):
    recipe = get_recipe(name)
    index, view = torch.arange(20), torch.arange(3)[:, None]
    grid = describe(recipe, index=index, view=view, stream=3)
    assert grid.flip.shape == (3, 20)
    assert grid.box.shape == (3, 20, 4)
    part = grid.narrow(1, 5, 9).flatten()
    index, view = index[5:9].repeat(3), torch.arange(3).repeat_interleave(4)
    assert_same(part, describe(recipe, index=index, view=view, stream=3))
    order = torch.tensor([11, 0, 7])
    picked = describe(recipe, index=index[order], view=view[order], stream=3)
    assert_same(part.select(order), picked)


@pytest.mark.parametrize("name", ["supcon", "autoaugment+cutout", "montage-2x2"])
@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"epoch": 1}, {"view": 1}, {"stream": 1}]
)
def test_every_part_of_the_address_counts(name, change):
    base, other = describe(name, 200), describe(name, 200, **change)
    for part in PARTS:
        a, b = getattr(base, part), getattr(other, part)
        if a is not None and part != "fallback":
            assert not torch.equal(a, b), part


def test_supcon_promises():
    recipe = get_recipe("supcon")
    assert recipe.crop == RandomResizedCrop((0.2, 1.0), (3 / 4, 4 / 3))
    assert recipe.jitter == ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.8)
    assert (recipe.flip, recipe.grey) == (0.5, 0.2)
    spec = describe(recipe)
    assert spec.resized
    area = spec.box[:, 2] * spec.box[:, 3] / 1024
    # Rounding moves each side by half a pixel at most.
    assert area.min() > 0.2 * 0.93
    assert area.max() <= 1


def test_autoaugment_and_cutout_promises():
    recipe = get_recipe("autoaugment+cutout")
    assert recipe.crop == PadCrop(4)
    assert isinstance(recipe.policy, AutoAugment)
    spec = describe(recipe)
    assert not spec.resized
    assert spec.operations.shape == spec.magnitudes.shape == (VIEWS, 2)
    assert (spec.hole[:, 2:] == 16).all()
    # A centre is any pixel of the view.
    for axis in (0, 1):
        counts = torch.bincount(spec.hole[:, axis] + 8, minlength=32)
        assert len(counts) == 32
        chi_square = ((counts - VIEWS / 32) ** 2 / (VIEWS / 32)).sum()
        # 31 degrees of freedom: deviation 7.9.
        assert chi_square < 31 + 6 * 7.9


def test_policies_and_crops_share_no_draw():
    spec = describe("autoaugment+cutout")
    # A fifth of the numbers: correlation of independent draws is below 6 / sqrt(n).
    for a in (spec.box[:, 0], spec.flip):
        for b in (spec.hole[:, 0], spec.operations[:, 0] == Operation.EQUALIZE):
            pair = torch.stack([a.double(), b.double()])
            assert abs(torch.corrcoef(pair)[0, 1]) < 6 / math.sqrt(VIEWS)


def test_randaugment_promises():
    assert get_recipe("randaugment").policy == RandAugment(2, 10)
    assert describe("randaugment").operations.shape == (VIEWS, 2)


def test_montage_crops_stay_in_their_region():
    recipe = get_recipe("montage-2x2")
    assert recipe.crops == 4
    assert recipe.crop_size(32, 48) == (16, 24)
    spec = describe(recipe, index=torch.arange(500), view=torch.arange(8)[:, None])
    top, left, height, width = spec.box.unbind(-1)
    # Four corners of 80 %: 26 of 32 pixels.
    for crop in range(8):
        row, column = crop % 4 // 2, crop % 2
        for start, size, last in ((top, height, row), (left, width, column)):
            assert (start[crop] >= 6 * last).all()
            assert (start[crop] + size[crop] <= 26 + 6 * last).all()
            # The region is used up to its ends.
            assert start[crop].min() == 6 * last
            assert (start[crop] + size[crop]).max() == 26 + 6 * last
    area = (height * width) / 26**2
    assert area.min() > 0.2 * 0.9
    assert len(spec.key.unique()) == 4000
    assert spec.key.min() >= 0
    assert spec.key.max() < 1


def test_evaluation_promises():
    recipe = get_recipe("evaluation")
    assert recipe.crop == Centre(224 / 256)
    assert recipe.view_size(300, 400) == (224, 224)
    spec = describe(recipe, 2, size=(256, 512))
    assert spec.box.tolist() == [[16, 144, 224, 224]] * 2
    assert not spec.flip.any()


def test_named_recipes():
    assert RECIPES["none"] == Recipe()
    assert RECIPES["crop"].flip == 0
    assert RECIPES["crop-gray"].flip == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Recipe(cutout=-1), "cutout"),
        (lambda: Recipe(out_size=(0, 4)), "out_size"),
        (lambda: describe("crop", 1, stream=MAX_STREAMS), "stream"),
        (lambda: get_recipe("crop-grey"), "did you mean 'crop-gray'"),
        (lambda: get_recipe("montage-2x2").view_size(32, 31), "even .*, got 32 x 31"),
    ],
)
def test_wrong_arguments(call, said):
    with pytest.raises(ValueError, match=said):
        call()
