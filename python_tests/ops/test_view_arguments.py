"""What rendering refuses."""

from dataclasses import replace

import pytest
import torch

from python_tests.ops.test_views import MEAN, STD, draw_images, draw_patches, flat
from s3h_ext.ops import render_views
from s3h_ext.ops.plain.views import render_views as render_views_plain


def test_values_out_of_range_are_named():
    images = draw_images(3)
    patches = draw_patches(images, 5)
    rect = torch.tensor([0, 0, 8, 8]).repeat(5, 1)
    views = torch.arange(5)

    def changed(tensor, place, value):
        tensor = tensor.clone()
        tensor[place] = value
        return tensor

    far = 2**62
    for wrong, match in (
        (
            {"image": changed(patches.image, 3, 3)},
            r"image\[3\]: expected 0 \.\. 2, got 3",
        ),
        ({"image": changed(patches.image, 0, -1)}, r"image\[0\]: .* got -1"),
        ({"box": changed(patches.box, (1, 2), 0)}, r"box\[1\]: expected sides of 1"),
        ({"box": changed(patches.box, (4, 3), 65537)}, r"box\[4\]: .* 65536"),
        ({"box": changed(patches.box, (2, 0), far)}, r"box\[2\]: "),
        ({"box": changed(patches.box, (2, 1), -far)}, r"box\[2\]: "),
        ({"rect": changed(rect, (2, 1), 33)}, r"rect\[2\]: .* inside 32 x 40"),
        ({"rect": changed(rect, (2, 2), 0)}, r"rect\[2\]: "),
        ({"rect": changed(rect, (2, 3), far)}, r"rect\[2\]: "),
        ({"view": changed(views, 3, 5), "views": 5}, r"view\[3\]: .* got 5"),
        ({"view": changed(views, 3, -1), "views": 5}, r"view\[3\]: .* got -1"),
    ):
        bad = replace(patches, **wrong)
        with pytest.raises(ValueError, match=r"^patches\." + match):
            render_views(images, bad, out_size=(32, 40), mean=MEAN, std=STD)
        with pytest.raises(ValueError, match=match):
            render_views_plain(*flat(images, bad))


def test_wrong_arguments():
    images = draw_images(3)
    patches = draw_patches(images, 5)

    def refused(error, match, images=images, patches=patches, **more):
        more = {"out_size": 32, "mean": MEAN, "std": STD} | more
        with pytest.raises(error, match=match):
            render_views(images, patches, **more)

    refused(TypeError, "images: expected uint8", images.float())
    refused(ValueError, r"images: expected \[N, H, W, C\]", images[0])
    refused(
        ValueError, r"images\[1\]: .* got \[2, 2\]", [images[0], images[0, :2, :2, 0]]
    )
    refused(ValueError, "mean: expected 1 or 3 values", mean=(0, 0), std=(1, 1))
    refused(ValueError, "std: expected 3 positive", std=(1, 1, 0))
    refused(ValueError, "std: expected 3 positive", std=(1,))
    refused(TypeError, "dtype", dtype=torch.float64)
    refused(ValueError, "out_size", out_size=(0, 3))
    refused(ValueError, "patches.views", patches=replace(patches, views=4))
    refused(ValueError, "patches.fill", patches=replace(patches, fill=torch.inf))
    refused(
        ValueError,
        r"patches.image: expected \[P\]",
        patches=replace(patches, image=patches.image[None]),
    )
    refused(
        TypeError,
        "patches.image: expected torch.int64",
        patches=replace(patches, image=patches.image.int()),
    )
    refused(
        ValueError,
        r"patches.box: expected shape \[5, 4\], got \[4, 4\]",
        patches=replace(patches, box=patches.box[1:]),
    )
    refused(TypeError, "patches.flip", patches=replace(patches, flip=patches.image))
    refused(
        ValueError,
        r"patches.colour: expected shape \[5, 3, 4\]",
        patches=replace(patches, colour=torch.zeros(5, 1, 2)),
    )
    refused(
        ValueError,
        "patches.box: expected it on cpu, got meta",
        patches=replace(patches, box=patches.box.to("meta")),
    )
    refused(
        ValueError, r"erase: expected shape \[5, 4\]", erase=torch.zeros(4, 4).long()
    )
