"""View rendering against cutting, padding and resizing one patch after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from python_tests.settings import assert_same_bits
from s3h_ext.ops import Patches, render_views
from s3h_ext.ops.plain.views import render_views as render_views_plain
from s3h_ext.ops.reference_views import render_views_reference

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
            ends = (max(a, -slack) + 1 + slack for a in (height - h, width - w))
            draws = (torch.randint(-slack, end, (), generator=source) for end in ends)
            box = [*map(int, draws), h, w]
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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 9), (3, 66)])
def test_box_of_the_views_size_is_an_exact_copy(channels, size):
    images = draw_images(20, *size, channels)
    index = torch.arange(200) % 20
    box = torch.randint(-9, 10, (200, 4), generator=generator())
    box[:, 2:] = torch.tensor(size)
    flip = torch.arange(200) % 2 == 0
    plain = {"mean": PLAIN["mean"][:channels], "std": PLAIN["std"][:channels]}
    views = render_views(images, Patches(index, box, flip), out_size=size, **plain)
    padded = torch.nn.functional.pad(images[index], (0, 0, 9, 9, 9, 9))
    for view, image, (top, left, height, width), mirrored in zip(
        views, padded, box.tolist(), flip.tolist(), strict=True
    ):
        crop = image[9 + top : 9 + top + height, 9 + left : 9 + left + width]
        crop = crop.flip(1) if mirrored else crop
        assert torch.equal((view * 255).round().byte().permute(1, 2, 0), crop)


def test_resize_is_within_a_grey_level_of_pillow():
    image = draw_images(1, 300, 260)[0]
    box = [20, 31, 241, 187]
    crop = Image.fromarray(image.numpy()).crop((31, 20, 31 + 187, 20 + 241))
    for size in ((64, 50), (224, 224), (300, 187)):
        right = np.asarray(crop.resize(size[::-1], Image.Resampling.BILINEAR))
        patches = Patches(torch.tensor([0]), torch.tensor([box]))
        views = render_views(image[None], patches, out_size=size, **PLAIN)
        ours = views[0].permute(1, 2, 0).numpy() * 255
        # Pillow rounds after each of its two passes.
        assert np.abs(ours - right).max() < 1.1


def test_downscaling_by_a_lot():
    # More taps than are rounded to whole numbers, and just not more.
    images = draw_images(2, 700, 500)
    box = torch.tensor([[0, 0, 700, 500], [5, 7, 690, 310], [-700, -900, 2000, 3000]])
    patches = Patches(torch.tensor([0, 1, 0]), box, torch.tensor([True, False, True]))
    for size in ((10, 10), (300, 5), (2, 150)):
        check(images, patches, size)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_then_clamp_then_normalise(channels):
    images = draw_ragged(10, channels)
    colour = draw_colour(80, channels)
    check(images, draw_patches(images, 80, colour=colour), (32, 32))
    same = draw_images(10, 32, 32, channels)
    box = torch.tensor([0, 0, 32, 32]).repeat(80, 1)
    patches = Patches(torch.arange(80) % 10, box, colour=colour)
    unit = in_unit(check(same, patches, (32, 32)))
    assert (unit.min() - 0).abs() < 1e-6
    assert (unit.max() - 1).abs() < 1e-6


def test_nan_in_a_colour_matrix_stays_in_its_patch():
    images = draw_images(4)
    colour = draw_colour(4)
    colour[1, 2, 0] = torch.nan
    patches = draw_patches(images, 4, colour=colour)
    views = render_views(images, patches, out_size=32, mean=MEAN, std=STD)
    assert views[1, 2].isnan().all()
    assert not views[1, :2].isnan().any()
    assert not views[[0, 2, 3]].isnan().any()


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_affine_against_the_oracle(channels, nearest):
    images = draw_ragged(12, channels)
    affine = torch.rand(90, 2, 3, generator=generator(5)) * 4 - 1.5
    affine[0] = torch.tensor([[1, 0, 0], [0, 1, 0]])
    affine[1] = torch.nan
    # A float32 coordinate next to a whole number may fall on either side: keep off.
    affine = (affine * 64).round() / 64 + 1 / 256
    more = {"affine": affine, "nearest": nearest, "fill": 0.5}
    check(images, draw_patches(images, 90, **more), (31, 40), tolerance=2e-6)


@pytest.mark.parametrize("mode", ["NEAREST", "BILINEAR"])
def test_affine_is_pillows_transform(mode):
    image = draw_images(1, 40, 30)[0]
    matrix = [0.9, 0.31, -3.3, -0.27, 1.1, 2.2]
    how = (Image.Transform.AFFINE, matrix, Image.Resampling[mode])
    picture = Image.fromarray(image.numpy())
    right = picture.transform((50, 44), *how, fillcolor=(51, 51, 51))
    more = {"affine": torch.tensor(matrix).view(1, 2, 3), "fill": 0.2}
    more["nearest"] = mode == "NEAREST"
    patches = Patches(torch.tensor([0]), torch.tensor([[0, 0, 40, 30]]), **more)
    views = render_views(image[None], patches, out_size=(44, 50), **PLAIN)
    ours = views[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - np.asarray(right)).max() < 1.01


def montage(count, views, seed=0):
    """Rectangles anywhere, overlapping, in views in no order; view 0 has none."""
    source = generator(seed)
    view = torch.randint(1, views, (count,), generator=source)
    ends = torch.rand(count, 2, 2, generator=source).sort(dim=1).values
    corner = (ends[:, 0] * 30).long()
    sides = (ends[:, 1] * 32).long().clamp(min=corner + 1) - corner
    return view, torch.cat([corner, sides], dim=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_of_one_view_and_cutout(channels):
    images = draw_ragged(15, channels)
    view, rect = montage(70, 20)
    erase = torch.randint(-20, 40, (20, 4), generator=generator(9))
    patches = draw_patches(images, 70, view=view, rect=rect, views=20)
    check(images, patches, (32, 32), erase)
    check(images, replace(patches, colour=draw_colour(70, channels)), (32, 32), erase)
    form = {"out_size": 32, "mean": MEAN[:channels], "std": STD[:channels]}
    found = render_views(images, replace(patches, views=None), **form)
    assert found.shape[0] == int(view.max()) + 1


def test_two_by_two_montage():
    images = draw_images(8, 50, 60)
    view = torch.arange(8) // 4
    corner = torch.tensor([[0, 0], [0, 16], [16, 0], [16, 16]]).repeat(2, 1)
    rect = torch.cat([corner, torch.full((8, 2), 16)], dim=1)
    patches = draw_patches(images, 8)
    whole = check(images, replace(patches, view=view, rect=rect), (32, 32))
    parts = check(images, patches, (16, 16))
    for number, (top, left) in enumerate(corner.tolist()):
        part = whole[number // 4, :, top : top + 16, left : left + 16]
        assert torch.equal(part, parts[number])


def test_erased_pixels_are_zero():
    images = draw_images(3)
    erase = torch.tensor([[-8, 20, 16, 16], [5, 5, 0, 3], [31, 31, 2**62, 2**62]])
    patches = draw_patches(images, 3)
    views = render_views(images, patches, out_size=32, mean=MEAN, std=STD, erase=erase)
    plain = render_views(images, patches, out_size=32, mean=MEAN, std=STD)
    plain[0, :, :8, 20:] = 0
    plain[2, :, 31, 31] = 0
    assert torch.equal(views, plain)


def everything(count=60, seed=0):
    images = draw_ragged(15)
    view, rect = montage(count, 20, seed)
    colour = draw_colour(count, seed=seed)
    return images, draw_patches(images, count, view=view, rect=rect, colour=colour)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_the_rounded_float32(dtype):
    images, patches = everything()
    # Deviations that reach subnormal and infinite numbers of float16.
    for std in (STD, (1e-5, 1.0, 30.0), (0.2, 3e4, 1e6)):
        more = {"out_size": (19, 33), "mean": MEAN, "std": std}
        patches = replace(patches, rect=patches.rect // 2 + torch.tensor([0, 0, 1, 1]))
        exact = render_views(images, patches, **more)
        rounded = render_views(images, patches, dtype=dtype, **more)
        assert rounded.dtype == dtype
        assert rounded.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(rounded, exact.to(dtype))
    colour = draw_colour(60) * torch.nan
    patches = replace(patches, colour=colour)
    assert render_views(images, patches, dtype=dtype, **more)[1:].isnan().any()


def test_bits_do_not_depend_on_batch_order_or_threads():
    images = draw_ragged(30)
    patches = draw_patches(images, 101, colour=draw_colour(101))
    more = {"out_size": (29, 31), "mean": MEAN, "std": STD}

    def some(rows):
        return replace(
            patches,
            image=patches.image[rows],
            box=patches.box[rows],
            flip=patches.flip[rows],
            colour=patches.colour[rows],
        )

    (one,) = assert_same_bits(lambda: [render_views(images, patches, **more)], (1, 3))
    for rows in (torch.arange(7, 20), torch.arange(101).flip(0), torch.tensor([50])):
        assert torch.equal(render_views(images, some(rows), **more), one[rows])
    # Nor on how the images are stored.
    strided = [image.permute(1, 0, 2).contiguous().permute(1, 0, 2) for image in images]
    assert torch.equal(render_views(strided, patches, **more), one)
    stack = draw_images(30, 40, 37)
    patches = draw_patches(stack, 101)
    assert torch.equal(
        render_views(list(stack), patches, **more), render_views(stack, patches, **more)
    )


def test_nothing_to_render():
    none = Patches(torch.zeros(0).long(), torch.zeros(0, 4).long())
    for images in (draw_images(3), [], torch.zeros(0, 8, 8, 3).byte()):
        views = render_views(images, none, out_size=(4, 5), mean=MEAN, std=STD)
        assert views.shape == (0, 3, 4, 5)
    black = replace(none, view=none.image, views=2, colour=torch.zeros(0, 3, 4))
    views = render_views([], black, out_size=4, mean=MEAN, std=STD)
    torch.testing.assert_close(in_unit(views), torch.zeros(2, 3, 4, 4).double())


def test_autocast_changes_nothing():
    images, patches = everything()
    more = {"out_size": 32, "mean": MEAN, "std": STD}
    plain = render_views(images, patches, **more)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(render_views(images, patches, **more), plain)


def flat(images, patches, erase=None, dtype=torch.float32, channels=3):
    """The operator's own arguments."""
    stack = [images] if isinstance(images, torch.Tensor) else images
    p = patches
    return (
        *(stack, p.image, p.box, p.flip, p.colour, p.affine, p.view, p.rect, erase),
        *(p.count(), 32, 40, MEAN[:channels], STD[:channels], p.fill, p.nearest, dtype),
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("nearest", [None, True, False])
def test_tensor_form_that_serves_other_devices(channels, stacked, nearest):
    images = draw_images(9, 40, 33, channels) if stacked else draw_ragged(9, channels)
    view, rect = montage(50, 20)
    more = {"view": view, "rect": rect, "colour": draw_colour(50, channels)}
    if nearest is not None:
        affine = (torch.rand(50, 2, 3, generator=generator()) * 128).round() / 64
        more |= {"nearest": nearest, "affine": affine + 1 / 256}
    patches = draw_patches(images, 50, fill=0.3, **more)
    erase = torch.randint(-20, 40, (20, 4), generator=generator(9))[: patches.count()]
    arguments = flat(images, patches, erase, channels=channels)
    ours = torch.ops.s3h.render_views(*arguments)
    plain = render_views_plain(*arguments)
    assert ours.is_contiguous()
    # Of a deviation of 0.2, as in check().
    torch.testing.assert_close(ours, plain, rtol=0, atol=5 * CLOSE)


def test_opcheck_and_compile():
    images, patches = everything()
    erase = torch.zeros(patches.count(), 4).long()
    operator = torch.ops.s3h.render_views.default
    torch.library.opcheck(operator, flat(images, patches, erase))
    one = draw_patches(images[2][None], 5)
    torch.library.opcheck(operator, flat(images[2][None], one, dtype=torch.bfloat16))

    def step(images, patches):
        return 2 * render_views(images, patches, out_size=32, mean=MEAN, std=STD)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    known = replace(patches, views=patches.count())
    assert torch.equal(compiled(images, known), step(images, known))
