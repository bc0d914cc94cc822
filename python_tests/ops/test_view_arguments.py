"""What rendering refuses."""

from dataclasses import replace

import pytest
import torch

from python_tests.ops.test_views import MEAN, STD, draw_images, draw_patches, flat
from s3h_ext.ops import render_views
from s3h_ext.ops.plain.views import render_views as render_views_plain

IMAGES = draw_images(3)
PATCHES = draw_patches(IMAGES, 5)
RECT, VIEWS, FAR = torch.tensor([0, 0, 8, 8]).repeat(5, 1), torch.arange(5), 2**62


@pytest.mark.parametrize(
    ("field", "tensor", "place", "value", "match"),
    [
        ("image", PATCHES.image, 3, 3, r"image\[3\]: expected 0 \.\. 2, got 3"),
        ("image", PATCHES.image, 0, -1, r"image\[0\]: .* got -1"),
        ("box", PATCHES.box, (1, 2), 0, r"box\[1\]: expected sides of 1"),
        ("box", PATCHES.box, (4, 3), 65537, r"box\[4\]: .* 65536"),
        ("box", PATCHES.box, (2, 0), FAR, r"box\[2\]: "),
        ("box", PATCHES.box, (2, 1), -FAR, r"box\[2\]: "),
        ("rect", RECT, (2, 1), 33, r"rect\[2\]: .* inside 32 x 40"),
        ("rect", RECT, (2, 2), 0, r"rect\[2\]: "),
        ("rect", RECT, (2, 3), FAR, r"rect\[2\]: "),
        ("view", VIEWS, 3, 5, r"view\[3\]: .* got 5"),
        ("view", VIEWS, 3, -1, r"view\[3\]: .* got -1"),
    ],
)
def test_values_out_of_range_are_named(field, tensor, place, value, match):
    tensor = tensor.clone()
    tensor[place] = value
    more = {"views": 5} if field == "view" else {}
    bad = replace(PATCHES, **{field: tensor}, **more)
    with pytest.raises(ValueError, match=r"^patches\." + match):
        render_views(IMAGES, bad, out_size=(32, 40), mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=match):
        render_views_plain(*flat(IMAGES, bad))


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (TypeError, "images: expected uint8", {"images": IMAGES.float()}),
        (ValueError, r"images: expected \[N, H, W, C\]", {"images": IMAGES[0]}),
        (
            ValueError,
            r"images\[1\]: .* got \[2, 2\]",
            {"images": [IMAGES[0], IMAGES[0, :2, :2, 0]]},
        ),
        (ValueError, "mean: expected 1 or 3 values", {"mean": (0, 0), "std": (1, 1)}),
        (ValueError, "std: expected 3 positive", {"std": (1, 1, 0)}),
        (ValueError, "std: expected 3 positive", {"std": (1,)}),
        (TypeError, "dtype", {"dtype": torch.float64}),
        (ValueError, "out_size", {"out_size": (0, 3)}),
        (ValueError, r"erase: expected shape \[5, 4\]", {"erase": RECT[:4]}),
    ],
)
def test_wrong_arguments(error, match, change):
    given = {"images": IMAGES, "out_size": 32, "mean": MEAN, "std": STD} | change
    with pytest.raises(error, match=match):
        render_views(patches=PATCHES, **given)


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (ValueError, "views", {"views": 4}),
        (ValueError, "fill", {"fill": torch.inf}),
        (ValueError, r"image: expected \[P\]", {"image": PATCHES.image[None]}),
        (TypeError, "image: expected torch.int64", {"image": PATCHES.image.int()}),
        (
            ValueError,
            r"box: expected shape \[5, 4\], got \[4, 4\]",
            {"box": PATCHES.box[1:]},
        ),
        (TypeError, "flip", {"flip": PATCHES.image}),
        (
            ValueError,
            r"colour: expected shape \[5, 3, 4\]",
            {"colour": torch.zeros(5, 1, 2)},
        ),
        (ValueError, "box: expected it on cpu, got meta", {"box": RECT.to("meta")}),
    ],
)
def test_wrong_patches(error, match, change):
    bad = replace(PATCHES, **change)
    with pytest.raises(error, match=rf"patches\.{match}"):
        render_views(IMAGES, bad, out_size=32, mean=MEAN, std=STD)
