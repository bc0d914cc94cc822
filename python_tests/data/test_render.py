import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.overrides import TorchFunctionMode

from s3h_ext.data.views import render as render_module
from s3h_ext.data.views.policies import AutoAugment, RandAugment
from s3h_ext.data.views.recipes import RECIPES, ColorJitter, Recipe, get_recipe
from s3h_ext.data.views.render import Renderer, render_crops
from s3h_ext.ops.augment import augment_images
from s3h_ext.ops.plain.views import render_views as render_views_plain
from s3h_ext.ops.view_constraints import PadCrop, RandomResizedCrop

from .sources import describe

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def random_images(count, height=32, width=32, channels=3):
    generator, shape = (
        torch.Generator().manual_seed(1),
        (count, height, width, channels),
    )
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def render(images, recipe, crops, source=None, **arguments):
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    renderer = Renderer(images, **(PLAIN | arguments))
    return renderer(
        torch.arange(len(images)) if source is None else source, crops, recipe
    )


def levels(views):
    """Views in [0, 1] as bytes, [M, H, W, C]."""
    return (views * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def sliced_crops(images, crops):
    """Pads, slices and mirrors one image after the other."""
    result = []
    for image, box, flip in zip(images.numpy(), crops.box, crops.flip, strict=True):
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
    crops = describe(name, 300, size)
    mean, std = MEAN[:channels], STD[:channels]
    rendered = render(images, name, crops, mean=mean, std=std)
    expected = sliced_crops(images, crops).permute(0, 3, 1, 2).double() / 255
    expected -= torch.tensor(mean).double().view(-1, 1, 1)
    expected /= torch.tensor(std).double().view(-1, 1, 1)
    assert rendered.shape == (300, channels, *size)
    assert rendered.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(rendered.double(), expected, atol=2e-6)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 9), (20, 33)])
@pytest.mark.parametrize(
    ("name", "channels"),
    [(name, channels) for name in ("none", "crop", "crop-flip") for channels in (1, 3)]
    + [(name, 3) for name in ("crop-flip-jitter-gray", "supcon", "randaugment")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plain_form_renders_what_the_kernel_renders(
    name, channels, size, dtype, monkeypatch
):
    images = random_images(20, *size, channels)
    source = torch.arange(100) % 20
    crops = describe(name, 100, size, index=source, view=torch.arange(100) // 20)
    arguments = {"mean": MEAN[:channels], "std": STD[:channels], "dtype": dtype}
    expected = render(images, name, crops, source, **arguments)

    def plain(images, patches, *, out_size, mean, std, dtype=torch.float32):
        fields = (patches.flip, patches.colour, patches.affine, patches.view)
        pixels = render_views_plain(
            *([images], patches.image, patches.box, *fields, patches.rect, None),
            *(patches.count(), *out_size, mean, std, patches.fill, patches.nearest),
            dtype,
        )
        return pixels.permute(0, 3, 1, 2)

    monkeypatch.setattr(render_module, "render_views", plain)
    found = render(images, name, crops, source, **arguments)
    assert found.dtype == dtype
    assert found.shape == expected.shape == (100, channels, *size)
    assert found.is_contiguous(memory_format=torch.channels_last)
    # The kernel's weights have 16 bits or more; bfloat16 has steps of 1/128 near 2.
    atol = 6e-4 if dtype == torch.float32 else 2**-6
    assert torch.allclose(found.float(), expected.float(), atol=atol)


def test_resized_crops_against_interpolate_on_the_crop():
    images = random_images(100)
    recipe = Recipe(crop=RandomResizedCrop((0.05, 1.0)), flip=0.5, out_size=(20, 24))
    crops = describe(recipe, 100)
    rendered = render(images, recipe, crops)
    assert rendered.shape == (100, 3, 20, 24)
    for row in range(100):
        top, left, height, width = crops.box[row].tolist()
        patch = images[row, top : top + height, left : left + width]
        patch = patch.permute(2, 0, 1)[None].double() / 255
        how = {"mode": "bilinear", "antialias": True}
        (expected,) = F.interpolate(patch, size=(20, 24), **how)
        if crops.flip[row]:
            expected = expected.flip(-1)
        # A fiftieth of a grey level: the kernel's weights have 16 bits or more.
        assert torch.allclose(rendered[row].double(), expected, atol=0.02 / 255)


def test_colour_then_clamp_then_normalise():
    images = random_images(50)
    name = "crop-flip-jitter-gray"
    crops = describe(name, 50)
    rendered = render(images, name, crops, mean=MEAN, std=STD)
    pixels = sliced_crops(images, crops).double() / 255
    colour = crops.colour.double()
    mixed = torch.einsum("nhwc,ndc->ndhw", pixels, colour[..., :3])
    mixed = (mixed + colour[:, :, 3, None, None]).clamp(0, 1)
    mean, std = (torch.tensor(x).double().view(3, 1, 1) for x in (MEAN, STD))
    assert torch.allclose(rendered.double(), (mixed - mean) / std, atol=1e-5)
    # The clamp matters in this sample.
    assert (mixed == 0).any()
    assert (mixed == 1).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["autoaugment+cutout", "randaugment"])
def test_policies_work_on_the_bytes_of_the_crop(name, channels):
    images = random_images(200, channels=channels)
    crops = describe(name, 200)
    plain = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    rendered = levels(render(images, name, crops, **plain))
    steps = (crops.operations, crops.magnitudes)
    expected = augment_images(sliced_crops(images, crops), *steps, fill=128)
    if crops.hole is not None:
        for row, (top, left, height, width) in enumerate(crops.hole.tolist()):
            rows = slice(max(top, 0), top + height)
            expected[row, rows, max(left, 0) : left + width] = 0
    assert torch.equal(rendered, expected)


def test_cutout_is_black_before_the_normalisation():
    images = torch.full((50, 32, 32, 3), 255, dtype=torch.uint8)
    recipe = Recipe(cutout=16)
    crops = describe(recipe, 50)
    rendered = render(images, recipe, crops, mean=MEAN, std=STD)
    black = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])
    for row, (top, left, _, _) in enumerate(crops.hole.tolist()):
        y, x = torch.arange(32)[:, None], torch.arange(32)
        inside = (y >= top) & (y < top + 16) & (x >= left) & (x < left + 16)
        # The centre is a pixel of the view, so a quarter is cut at the least.
        assert 64 <= int(inside.sum()) <= 256
        pixels = rendered[row].permute(1, 2, 0)
        assert torch.allclose(pixels[inside], black, atol=1e-6)
        assert (pixels[~inside] > 0).all()


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(crop=RandomResizedCrop(), flip=0.5, policy=RandAugment(2, 15)),
        Recipe(crop=PadCrop(), jitter=ColorJitter(), policy=AutoAugment(), cutout=8),
    ],
)
def test_policies_after_resizing_and_colour(recipe):
    images = random_images(60)
    crops = describe(recipe, 60)
    before = Recipe(recipe.crop, recipe.flip, recipe.jitter)
    seen = render(images, before, describe(before, 60), std=(1 / 255,) * 3)
    steps = (crops.operations, crops.magnitudes)
    seen = seen.round().to(torch.uint8).permute(0, 2, 3, 1)
    expected = augment_images(seen, *steps, holes=crops.hole)
    assert torch.equal(levels(render(images, recipe, crops)), expected)


def test_montage_puts_crops_into_their_quadrants():
    size = (24, 32)
    # One grey level for each image, so that a quadrant says whose it is.
    images = torch.arange(10, 210, 10, dtype=torch.uint8)
    images = images.view(20, 1, 1, 1).repeat(1, *size, 3)
    recipe = Recipe(crop=RandomResizedCrop(), montage=True)
    source = torch.randperm(20)
    crops = describe(recipe, 20, size, index=source)
    rendered = levels(render(images, recipe, crops, source))
    assert rendered.shape == (5, *size, 3)
    quadrants = rendered.view(5, 2, 12, 2, 16, 3).transpose(2, 3).reshape(5, 4, -1)
    expected = images[source, 0, 0, 0].view(5, 4, 1)
    assert torch.equal(quadrants, expected.expand_as(quadrants))


@pytest.mark.parametrize("policy", [None, AutoAugment()])
def test_a_quadrant_is_the_crop_rendered_alone(policy):
    images = random_images(12)
    parts = {"crop": get_recipe("montage-2x2").crop, "flip": 0.5, "policy": policy}
    parts["jitter"] = ColorJitter()
    montage = Recipe(**parts, montage=True)
    alone = Recipe(**parts, out_size=(16, 16))
    together = render(images, montage, describe(montage, 12))
    single = render(images, alone, describe(alone, 12))
    quadrants = together.view(3, 3, 2, 16, 2, 16).permute(0, 2, 4, 1, 3, 5)
    assert torch.equal(quadrants.reshape(12, 3, 16, 16), single)


def test_evaluation_is_a_centre_crop():
    images = random_images(3, 256, 300)
    rendered = render(images, "evaluation", describe("evaluation", 3, (256, 300)))
    assert torch.equal(levels(rendered), images[:, 16:240, 38:262])


def test_evaluation_is_near_to_resizing_first():
    # Smooth pictures; on noise the two ways of sampling differ.
    y, x = np.mgrid[0:96, 0:128] / 20
    picture = 127 + 60 * np.sin(y[..., None] + np.arange(3)) + 60 * np.cos(x[..., None])
    picture = picture.round().astype(np.uint8)
    resized = Image.fromarray(picture).resize((341, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[16:240, 58:282].astype(int)
    images = torch.from_numpy(picture)[None]
    ours = levels(render(images, "evaluation", describe("evaluation", 1, (96, 128))))
    # Within the shift by a part of a source pixel that whole boxes cost.
    assert np.abs(ours[0].numpy().astype(int) - expected).max() < 5


@pytest.mark.parametrize("name", RECIPES)
def test_a_view_does_not_depend_on_its_batch(name):
    images = random_images(20)
    recipe = get_recipe(name)
    renderer = Renderer(images, mean=MEAN, std=STD)
    source = torch.arange(80) % 20
    crops = describe(name, 80)
    whole = renderer(source, crops, recipe)
    for start, stop in ((0, 4), (20, 64), (76, 80), (4, 72)):
        part = renderer(source[start:stop], crops.narrow(0, start, stop), recipe)
        each = recipe.crops
        assert torch.equal(part, whole[start // each : stop // each])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_are_the_rounded_float32(dtype):
    images = random_images(10)
    crops = describe("supcon", 10)
    exact = render(images, "supcon", crops, mean=MEAN, std=STD)
    rounded = render(images, "supcon", crops, mean=MEAN, std=STD, dtype=dtype)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, exact.to(dtype))


def test_autocast_changes_nothing():
    images = random_images(12)
    for name in RECIPES:
        crops = describe(name, 12)
        plain = render(images, name, crops)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(render(images, name, crops), plain)


class NothingFromTheHost(TorchFunctionMode):
    """Refuses what copies Python's numbers into a tensor, which a GPU is waited for.

    On the device "meta", where tensors have no values, nothing can be read either.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func.__name__ not in ("tensor", "as_tensor", "new_tensor"), func
        return func(*args, **(kwargs or {}))


def test_what_copies_from_the_host_is_found():
    for copies in (lambda: torch.tensor([1]), lambda: torch.ones(1).new_tensor([1])):
        with pytest.raises(AssertionError), NothingFromTheHost():
            copies()


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_waits_for_no_device(name):
    recipe = RECIPES[name]
    images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8, device="meta")
    index = torch.arange(8, device="meta") % 4

    def step():
        crops = recipe.describe(32, 32, seed=0, epoch=0, index=index, view=0)
        size = recipe.view_size(32, 32)
        return render_crops(images, index, crops, recipe, size=size, **PLAIN)

    right = step()  # a policy's tables are copied once
    with NothingFromTheHost():
        assert step().shape == right.shape


def test_no_view():
    for name in RECIPES:
        crops = describe(name, 0)
        views = render(random_images(2), name, crops, torch.arange(0))
        assert views.shape[0] == 0


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"images": torch.zeros(2, 8, 8, 3)}, "images"),
        ({"images": torch.zeros(2, 8, 8, dtype=torch.uint8)}, "images"),
        ({"images": torch.zeros(2, 8, 8, 2, dtype=torch.uint8)}, "channels"),
        ({"mean": (0.5,)}, "mean"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
        ({"dtype": torch.float64}, "dtype"),
    ],
)
def test_wrong_arguments(changes, name):
    arguments = {"images": random_images(2), "mean": MEAN, "std": STD} | changes
    with pytest.raises(ValueError, match=name):
        Renderer(arguments.pop("images"), **arguments)


def test_colour_needs_three_channels():
    images = random_images(2, channels=1)
    with pytest.raises(ValueError, match="3 channels"):
        render(images, "supcon", describe("supcon", 2), mean=(0.5,), std=(0.2,))
