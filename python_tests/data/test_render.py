import doctest

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from s3h_ext.data import render as render_module
from s3h_ext.data.recipes import RECIPES, ResizedCrop, ViewSpec, get_recipe
from s3h_ext.data.render import Renderer, render
from s3h_ext.ops.philox import philox_uniform

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def random_images(count, height=32, width=32, channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(
        0,
        256,
        (count, height, width, channels),
        dtype=torch.uint8,
        generator=generator,
    )


def describe(name, count, height=32, width=32):
    recipe = get_recipe(name)
    uniforms = philox_uniform(
        seed=0, epoch=0, index=torch.arange(count), view=0, draws=recipe.draws
    )
    return recipe.describe(uniforms, height, width)


def sliced_crops(images, views):
    """Pads, slices and mirrors one image after the other."""
    result = []
    for image, box, flip in zip(images.numpy(), views.box, views.flip, strict=True):
        top, left, height, width = box.tolist()
        padded = np.pad(image, ((32, 32), (32, 32), (0, 0)))
        crop = padded[32 + top : 32 + top + height, 32 + left : 32 + left + width]
        result.append(crop[:, ::-1] if flip else crop)
    return torch.from_numpy(np.stack(result))


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 9)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["none", "crop", "crop-flip"])
def test_crops_against_slicing(name, channels, size):
    images = random_images(300, *size, channels)
    views = describe(name, 300, *size)
    mean, std = MEAN[:channels], STD[:channels]
    rendered = render(images, views, mean=mean, std=std)
    crops = sliced_crops(images, views).permute(0, 3, 1, 2).double() / 255
    expected = (crops - torch.tensor(mean).double().view(-1, 1, 1)) / torch.tensor(
        std
    ).double().view(-1, 1, 1)
    assert rendered.shape == (300, channels, *size)
    assert rendered.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(rendered.double(), expected, atol=2e-6)


def test_every_shift_and_flip_is_exact():
    shifts = torch.cartesian_prod(torch.arange(-4, 5), torch.arange(-4, 5))
    shifts = shifts.repeat(2, 1)
    count = len(shifts)
    box = torch.cat([shifts, torch.full((count, 2), 32)], dim=1)
    flip = torch.arange(count) < count // 2
    views = ViewSpec(box, flip, None, resized=False)
    images = random_images(count)
    rendered = (render(images, views, **PLAIN) * 255).round().to(torch.uint8)
    assert torch.equal(rendered.permute(0, 2, 3, 1), sliced_crops(images, views))


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (20, 33)])
def test_resized_crops_against_interpolate_on_the_crop(size):
    images = random_images(200, *size)
    crop = ResizedCrop((0.05, 1.0))
    uniforms = philox_uniform(
        seed=2, epoch=0, index=torch.arange(200), view=0, draws=32
    )
    box = crop.boxes(uniforms.double(), *size)
    box[0] = torch.tensor([0, 0, *size])
    box[1] = torch.tensor([3, 5, 1, 1])
    flip = uniforms[:, 0] < 0.5
    views = ViewSpec(box, flip, None, resized=True)
    rendered = render(images, views, **PLAIN)
    for row in range(200):
        top, left, height, width = box[row].tolist()
        patch = images[row, top : top + height, left : left + width]
        patch = patch.permute(2, 0, 1)[None].double() / 255
        expected = F.interpolate(patch, size=size, mode="bilinear", antialias=True)[0]
        if flip[row]:
            expected = expected.flip(-1)
        assert torch.allclose(rendered[row].double(), expected, atol=2e-6)


def test_whole_box_resized_is_the_image():
    images = random_images(4)
    views = describe("none", 4)
    resized = ViewSpec(views.box, views.flip, None, resized=True)
    assert torch.equal(render(images, resized, **PLAIN), render(images, views, **PLAIN))


def test_colour_then_clamp_then_normalise():
    images = random_images(50)
    views = describe("crop-flip-jitter-gray", 50)
    rendered = render(images, views, mean=MEAN, std=STD)
    crops = sliced_crops(images, views).double() / 255
    colour = views.colour.double()
    mixed = torch.einsum("nhwc,ndc->ndhw", crops, colour[..., :3])
    mixed = (mixed + colour[:, :, 3, None, None]).clamp(0, 1)
    mean, std = (torch.tensor(x).double().view(3, 1, 1) for x in (MEAN, STD))
    assert torch.allclose(rendered.double(), (mixed - mean) / std, atol=1e-5)
    # The clamp matters in this sample.
    assert (mixed == 0).any()
    assert (mixed == 1).any()


def test_greyscale_makes_channels_equal():
    views = describe("crop-gray", 200)
    rendered = render(random_images(200), views, **PLAIN)
    grey = (views.colour[:, 0] == views.colour[:, 1]).all(dim=-1)
    assert grey.any()
    assert torch.equal(rendered[grey, 0], rendered[grey, 1])
    assert torch.equal(rendered[grey, 0], rendered[grey, 2])
    coloured = rendered[~grey]
    assert (coloured[:, 0] != coloured[:, 1]).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_view_does_not_depend_on_its_batch(name):
    images = random_images(20)
    renderer = Renderer(images, mean=MEAN, std=STD)
    source = torch.arange(300) % 20
    views = describe(name, 300)
    whole = renderer(source, views)
    for start, stop in ((0, 1), (120, 140), (299, 300), (7, 290)):
        part = renderer(source[start:stop], views.narrow(0, start, stop))
        assert torch.equal(part, whole[start:stop])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_the_rounded_float32(dtype):
    images = random_images(10)
    views = describe("supcon", 10)
    exact = render(images, views, mean=MEAN, std=STD)
    rounded = render(images, views, mean=MEAN, std=STD, dtype=dtype)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, exact.to(dtype))
    assert rounded.is_contiguous(memory_format=torch.channels_last)


def test_autocast_changes_nothing():
    images = random_images(10)
    for name in RECIPES:
        views = describe(name, 10)
        plain = render(images, views, mean=MEAN, std=STD)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(render(images, views, mean=MEAN, std=STD), plain)


def test_no_views():
    views = describe("supcon", 3).narrow(0, 0, 0)
    renderer = Renderer(random_images(3), mean=MEAN, std=STD)
    assert len(renderer) == 3
    assert renderer(torch.arange(0), views).shape == (0, 3, 32, 32)


def test_wrong_arguments():
    images = random_images(2)
    for wrong in (images.float(), images[0]):
        with pytest.raises(ValueError, match="images"):
            Renderer(wrong, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="channels"):
        Renderer(random_images(2, channels=4), mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="mean, std"):
        Renderer(images, mean=MEAN[:2], std=STD)
    with pytest.raises(ValueError, match="std"):
        Renderer(images, mean=MEAN, std=(1, 1, 0))
    with pytest.raises(ValueError, match="dtype"):
        Renderer(images, mean=MEAN, std=STD, dtype=torch.uint8)
    grey = Renderer(random_images(2, channels=1), mean=(0,), std=(1,))
    with pytest.raises(ValueError, match="3 channels"):
        grey(torch.arange(2), describe("crop-gray", 2))


def test_examples():
    assert doctest.testmod(render_module).failed == 0
