"""The CUDA kernels of boxes and rendering, executed on the host."""

import pytest
import torch

from python_tests.cuda_host import kernels
from python_tests.ops.test_view_boxes_backends import ADDRESS, CONSTRAINTS, draws, plain
from python_tests.ops.test_views import (
    MEAN,
    STD,
    draw_colour,
    draw_images,
    draw_patches,
    draw_ragged,
    generator,
    in_unit,
)
from s3h_ext.data import ImageSet, ResidentPixels, Source, Stream
from s3h_ext.data.source import batches as data_batches
from s3h_ext.data.views import render as data_render
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.ops import Patches
from s3h_ext.ops.reference_views import render_views_reference
from s3h_ext.ops.view_constraints import as_constraint

TYPES = (torch.float32, torch.bfloat16, torch.float16)
RESIZED = "resized-crop-flip-jitter"
CLOSE = 1e-6  # of a pixel in [0, 1]


def draw_on_host(sizes, constraint, index, view, **execution):
    count = len(index)
    steps = [2 if len(sizes) == count else 0, 1 if len(view) == count else 0]
    numbers = [count, *steps, ADDRESS["seed"], ADDRESS["epoch"], ADDRESS["stream"]]
    return kernels.execute(
        "view_boxes",
        numbers,
        as_constraint(constraint).numbers(),
        [sizes, index, view],
        [(torch.int64, (count, 4)), (torch.bool, (count,))],
        **execution,
    )


@pytest.mark.parametrize(("constraint", "_"), CONSTRAINTS)
def test_boxes_have_the_bits_of_the_cpu(constraint, _):
    sizes, index, view = draws(3000)
    box, fallback = draw_on_host(sizes, constraint, index, view)
    right_box, right_fallback = plain(sizes, constraint, index, view)
    assert torch.equal(box, right_box)
    assert torch.equal(fallback, right_fallback)


@pytest.mark.parametrize("variant", ["plain", "address", "thread"])
def test_boxes_of_one_size_and_one_view(variant):
    constraint, _ = CONSTRAINTS[3]
    sizes, index, view = draws(70)
    box, _ = draw_on_host(sizes[:1], constraint, index, view[:1], variant=variant)
    right, _ = plain(sizes[:1].expand(70, 2), constraint, index, view[:1].expand(70))
    assert torch.equal(box, right)


def render(images, patches, out_size, dtype=torch.float32, erase=None, **execution):
    """Returns ``[V, C, H, W]`` as the kernel renders it."""
    stacked = isinstance(images, torch.Tensor)
    channels, views = images[0].shape[-1], patches.count()
    sizes = [images.shape[1:3]] if stacked else [each.shape[:2] for each in images]
    shift = execution.pop("shift", 0)
    numbers = [stacked, len(images), channels, len(patches), views, *out_size]
    numbers += [patches.nearest, TYPES.index(dtype), shift]
    numbers += [side for size in sizes for side in size]
    p, arrays = patches, [images] if stacked else list(images)
    arrays += [p.image, p.box, p.flip, p.colour, p.affine, p.view, p.rect, erase]
    reals = [*MEAN[:channels], *STD[:channels], p.fill]
    results = [(dtype, (views, *out_size, channels))]
    (pixels,) = kernels.execute("views", numbers, reals, arrays, results, **execution)
    return pixels.permute(0, 3, 1, 2)


def check(images, patches, out_size, erase=None, tolerance=CLOSE, **execution):
    channels = images[0].shape[-1]
    ours = render(images, patches, out_size, erase=erase, **execution)
    form = {"out_size": out_size, "mean": MEAN[:channels], "std": STD[:channels]}
    right = render_views_reference(images, patches, **form, erase=erase)
    torch.testing.assert_close(in_unit(ours), in_unit(right), rtol=0, atol=tolerance)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("out_size", [(32, 32), (7, 19), (1, 1), (65, 50)])
def test_resize_against_interpolate(channels, out_size):
    images = draw_ragged(25, channels)
    check(images, draw_patches(images, 60), out_size)
    stack = draw_images(9, 40, 33, channels)
    check(stack, draw_patches(stack, 20), out_size)


def test_more_images_than_a_launch_takes():
    images = [draw_images(1, 3 + i % 7, 5, seed=i)[0] for i in range(140)]
    check(images, draw_patches(images, 200), (4, 4))


def test_downscaling_by_a_lot():
    image = draw_images(1, 700, 900)
    box = torch.tensor([[0, 0, 700, 900], [-40, 3, 650, 880]])
    patches = Patches(torch.zeros(2, dtype=torch.int64), box)
    check(image, patches, (3, 5))
    check(image, patches, (40, 33))
    far = Patches(torch.zeros(1, dtype=torch.int64), torch.tensor([[0, 0, 65536, 2]]))
    check(image, far, (2, 2))


@pytest.mark.parametrize("away", [3_000_000_000, 1 << 32, 1 << 47])
@pytest.mark.parametrize("sides", [(2, 2), (5, 6)])
def test_a_box_however_far_from_its_image_is_black(away, sides):
    places = [(0, away), (0, -away), (away, 0), (-away, 0)]
    box = torch.tensor([(*place, *sides) for place in places])
    patches = Patches(torch.zeros(4, dtype=torch.int64), box)
    pixels = render(draw_images(1, 40, 33), patches, (2, 2), variant="address")
    assert in_unit(pixels).abs().max() < CLOSE


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [(32, 32), (17, 9), (3, 66)])
def test_box_of_the_views_size_is_an_exact_copy(size, dtype):
    images = draw_images(20, *size)
    index = torch.arange(40) % 20
    box = torch.randint(-9, 10, (40, 4), generator=generator())
    box[:, 2:] = torch.tensor(size)
    patches = Patches(index, box, torch.arange(40) % 2 == 0)
    padded = torch.nn.functional.pad(images[index], (0, 0, 9, 9, 9, 9))
    crops = []
    for image, (top, left, height, width), mirrored in zip(
        padded, box.tolist(), patches.flip, strict=True
    ):
        crop = image[9 + top : 9 + top + height, 9 + left : 9 + left + width]
        crops.append(crop.flip(1) if mirrored else crop)
    scale = torch.tensor([1 / (255 * s) for s in STD])
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])
    right = (torch.stack(crops).double() * scale + shift).permute(0, 3, 1, 2)
    found = render(images, patches, size, dtype).double()
    error = (found - right).abs()
    assert (error <= torch.finfo(dtype).eps * (right.abs() + 1e-7) + 3e-7).all()


@pytest.mark.parametrize("erase", [None, [[2, 9, 5, 60]], [[0, 99, 9, 9]]])
@pytest.mark.parametrize("above", [[0, 0, 9, 100], [3, 40, 4, 20], [0, 0, 9, 8], None])
def test_a_patch_that_covers_its_tile(above, erase):
    images = draw_ragged(9)
    rects = [[0, 0, 9, 100]] + ([above] if above else [])
    count = len(rects)
    more = {"view": torch.zeros(count, dtype=torch.int64), "views": 1}
    patches = draw_patches(images, count, rect=torch.tensor(rects), **more)
    if erase:
        erase = torch.tensor(erase)
    check(images, patches, (9, 100), erase=erase)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_and_erase(channels):
    images = draw_ragged(9, channels)
    patches = draw_patches(images, 20, colour=draw_colour(20, channels))
    far = 1 << 62
    erase = torch.randint(-20, 30, (20, 4), generator=generator())
    erase[0] = torch.tensor([-far, -far, 2 * (far - 1), 2 * (far - 1)])
    erase[1] = torch.tensor([far, 0, far, 4])
    check(images, patches, (40, 33), erase=erase)


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_affine_maps(channels, nearest):
    images = draw_ragged(9, channels)
    affine = torch.randn(30, 2, 3, generator=generator())
    affine[:, :, :2] += torch.eye(2)
    affine[:, :, 2] *= 10
    patches = draw_patches(images, 30, affine=affine, nearest=nearest, fill=0.25)
    check(images, patches, (35, 21))
    affine[3, 0, 0] = torch.nan
    seen = render(images, Patches(**(vars(patches) | {"affine": affine})), (5, 5))
    assert in_unit(seen)[3] == pytest.approx(0.25, abs=1e-6)


def montage(count, views, out_size, seed=0):
    """Rectangles anywhere, some on top of others, views in any order."""
    source = generator(seed)
    rows = []
    for number in range(count):
        if number % 7 == 0:
            rows.append([0, 0, *out_size])
            continue
        size = [int(torch.randint(1, s + 1, (), generator=source)) for s in out_size]
        corner = [
            int(torch.randint(0, a - b + 1, (), generator=source))
            for a, b in zip(out_size, size, strict=True)
        ]
        rows.append(corner + size)
    view = torch.randint(0, views, (count,), generator=source)
    return view, torch.tensor(rows)


@pytest.mark.parametrize("out_size", [(20, 24), (70, 40)])
@pytest.mark.parametrize("affine", [False, True])
def test_patches_on_top_of_each_other(out_size, affine):
    images = draw_ragged(9)
    view, rect = montage(40, 6, out_size)
    more = {}
    if affine:
        more["affine"] = torch.eye(2, 3).expand(40, 2, 3) * 0.7
    patches = draw_patches(images, 40, view=view, rect=rect, views=8, **more)
    for seed in (0, 1):
        check(images, patches, out_size, seed=seed)


def test_rectangles_of_their_own_views():
    images = draw_ragged(9)
    _, rect = montage(12, 1, (40, 40))
    check(images, draw_patches(images, 12, rect=rect), (40, 40))


def test_no_patches_and_no_views():
    images = draw_images(2)
    empty = torch.zeros(0, dtype=torch.int64)
    patches = Patches(empty, empty.view(0, 4), view=empty, views=3)
    assert in_unit(render(images, patches, (5, 5))) == pytest.approx(0, abs=1e-6)
    patches = Patches(empty, empty.view(0, 4))
    assert render(images, patches, (5, 5)).shape == (0, 3, 5, 5)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("out_size", [(5, 7), (33, 35), (4, 8)])
def test_rows_that_end_within_a_word(dtype, out_size):
    images = draw_images(3, channels=1)
    patches = draw_patches(images, 6)
    right = render(images, patches, out_size).to(dtype)
    for shift in (0, 4):
        found = render(images, patches, out_size, dtype, shift=shift)
        assert torch.equal(found, right)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", 9, "patches.image"),
        ("image", -1, "patches.image"),
        ("box", [0, 0, 0, 4], "patches.box"),
        ("box", [0, 0, 4, 65537], "patches.box"),
        ("box", [1 << 48, 0, 4, 4], "patches.box"),
        ("view", 8, "patches.view"),
        ("rect", [0, 0, 21, 4], "patches.rect"),
        ("rect", [3, -1, 4, 4], "patches.rect"),
    ],
)
def test_values_out_of_range_stop(field, value, message):
    images = draw_ragged(9)
    view, rect = montage(10, 8, (20, 24))
    patches = draw_patches(images, 10, view=view, rect=rect, views=8)
    getattr(patches, field)[4] = torch.tensor(value)
    view[5:] = (view[4] + 1) % 8 if field != "view" else 0
    with pytest.raises(RuntimeError, match=message):
        render(images, patches, (20, 24))


@pytest.mark.parametrize("variant", ["address", "thread"])
@pytest.mark.parametrize("channels", kernels.first_quick([3, 1]))
def test_under_sanitizers(variant, channels):
    images = draw_ragged(9, channels)
    view, rect = montage(12, 4, (40, 35))
    more = {"view": view, "rect": rect, "views": 4}
    patches = draw_patches(images, 12, colour=draw_colour(12, channels), **more)
    erase = torch.randint(-20, 30, (4, 4), generator=generator())
    check(images, patches, (40, 35), erase=erase, variant=variant)
    mapped = draw_patches(images, 6, affine=torch.eye(2, 3).expand(6, 2, 3) * 1.3)
    check(images, mapped, (9, 40), variant=variant)
    check(images, draw_patches(images, 3), (9, 70), variant=variant)
    stack = draw_images(3, 50, 60, channels)
    render(stack, draw_patches(stack, 5), (7, 7), torch.bfloat16, variant=variant)


@pytest.mark.parametrize("recipe", ["crop-flip", "autoaugment+cutout", RESIZED])
def test_mixed_views_are_those_of_the_cpu(recipe, monkeypatch):
    labels = torch.arange(24) % 4
    images = ImageSet(draw_images(24, 20, 24).numpy(), labels.numpy())

    def batches():
        streams = {"mixed": Stream(recipe=recipe, mixing=Mixing(probability=0.7))}
        plan = {"num_classes": 4, "batch_size": 12, "epochs": 1, "seed": 0}
        source = Source(ResidentPixels(images, mean=MEAN, std=STD), streams, **plan)
        return [step["mixed"] for step in source.epoch(0)]

    right = batches()
    views = data_render.render_views

    def on_host(images, patches, *, out_size, mean, std, dtype=torch.float32):
        if mean == [0.0] * 3:  # the bytes that operations work on
            return views(images, patches, out_size=out_size, mean=mean, std=std)
        return render(images, patches, out_size, dtype)

    monkeypatch.setattr(data_render, "render_views", on_host)
    # As on a GPU: what is not mixed is covered by itself.
    monkeypatch.setattr(data_batches, "_rows", lambda mixed: torch.arange(len(mixed)))
    for found, expected in zip(batches(), right, strict=True):
        assert (expected.mixed.weights < 1).any()
        # The CPU's weights have 14 bits.
        torch.testing.assert_close(
            in_unit(found.images[0]), in_unit(expected.images[0]), rtol=0, atol=5e-4
        )
