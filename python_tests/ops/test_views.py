"""View rendering against cutting, padding and resizing one patch after the other."""

import doctest
from dataclasses import replace

import pytest
import torch

from s3h_ext.ops import Patches, render_views
from s3h_ext.ops import views as views_module
from s3h_ext.ops.reference_views import render_views_plain, render_views_reference

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
# The weights of a resize have 14 bits, so a sum of a few dozen differs by less.
GREY_LEVEL = 1 / 255
CLOSE = 0.1 * GREY_LEVEL


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_images(count, height=32, width=32, channels=3, seed=0):
    shape = (count, height, width, channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def draw_ragged(count, channels=3, seed=0):
    sizes = torch.randint(1, 90, (count, 2), generator=generator(seed)).tolist()
    sizes[0], sizes[1] = (1, 70), (70, 1)
    return [
        draw_images(1, height, width, channels, seed + number)[0]
        for number, (height, width) in enumerate(sizes)
    ]


def draw_boxes(images, index, seed=0):
    """Boxes of every kind: inside, leaving the image, whole, a pixel, outside."""
    source = generator(seed)
    rows = []
    for number, which in enumerate(index.tolist()):
        height, width = images[which].shape[:2]
        box = [0, 0, height, width]
        if number % 5 != 0:
            reach = 1 if number % 5 < 4 else 3
            h = int(torch.randint(1, reach * height + 1, (), generator=source))
            w = int(torch.randint(1, reach * width + 1, (), generator=source))
            slack = 0 if number % 5 < 3 else 10
            top, left = (
                int(
                    torch.randint(
                        -slack, max(a, -slack) + 1 + slack, (), generator=source
                    )
                )
                for a in (height - h, width - w)
            )
            box = [top, left, h, w]
        rows.append(box)
    return torch.tensor(rows).view(-1, 4)


def draw_patches(images, count, seed=0, **more):
    index = torch.randint(0, len(images), (count,), generator=generator(seed + 1))
    flip = torch.rand(count, generator=generator(seed + 2)) < 0.5
    return Patches(index, draw_boxes(images, index, seed + 3), flip, **more)


def draw_colour(count, channels=3, seed=0):
    matrix = torch.randn(count, channels, channels + 1, generator=generator(seed)) * 0.3
    matrix[:, :, :-1] += torch.eye(channels)
    return matrix


def in_unit(views):
    """Undoes MEAN and STD."""
    channels = views.shape[1]
    mean, std = (torch.tensor(x[:channels]).view(-1, 1, 1) for x in (MEAN, STD))
    return views.double() * std + mean


def check(images, patches, out_size, erase=None, tolerance=CLOSE):
    channels = images[0].shape[-1]
    more = {"mean": MEAN[:channels], "std": STD[:channels], "erase": erase}
    ours = render_views(images, patches, out_size=out_size, **more)
    right = render_views_reference(images, patches, out_size=out_size, **more)
    assert ours.shape == right.shape
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(in_unit(ours), in_unit(right), rtol=0, atol=tolerance)
    return ours


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("out_size", [(32, 32), (7, 19), (1, 1), (65, 50)])
def test_resize_against_interpolate(channels, out_size):
    images = draw_ragged(25, channels)
    check(images, draw_patches(images, 120), out_size)
    stack = draw_images(9, 40, 33, channels)
    check(stack, draw_patches(stack, 60), out_size)


def test_examples():
    assert doctest.testmod(views_module).failed == 0
