"""Rendering on a GPU against the CPU, and as a citizen of the CUDA runtime.

What makes sense on the CPU runs there too, so that the test code is seen to work.
"""

import functools
from dataclasses import fields, replace

import pytest
import torch

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
from python_tests.settings import (
    needs_kernels,
    no_waiting,
    on_a_second_stream,
    on_devices,
    record,
)
from s3h_ext.ops import Patches, render_views, sample_view_boxes
from s3h_ext.ops.reference_views import render_views_reference
from s3h_ext.ops.view_constraints import RandomResizedCrop

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The CPU's weights have 14 bits, the GPU's 24.
CLOSE = 0.1 / 255


def on(device, images, patches):
    """Moves images and patches."""
    moved = {
        field.name: value.to(device)
        for field in fields(patches)
        if isinstance(value := getattr(patches, field.name), torch.Tensor)
    }
    if isinstance(images, torch.Tensor):
        return images.to(device), replace(patches, **moved)
    return [image.to(device) for image in images], replace(patches, **moved)


def render(images, patches, out_size, **more):
    channels = images[0].shape[-1]
    form = {"mean": MEAN[:channels], "std": STD[:channels], **more}
    return render_views(images, patches, out_size=out_size, **form)


def problems():
    """Yields (name, images, patches, size of the views)."""
    ragged, grey, stack = draw_ragged(25), draw_ragged(9, 1), draw_images(30, 40, 33)
    yield "ragged", ragged, draw_patches(ragged, 200), (64, 50)
    yield "grey", grey, draw_patches(grey, 50), (7, 19)
    yield "stack", stack, draw_patches(stack, 90), (224, 160)
    colour = draw_colour(60)
    yield "colour", stack, draw_patches(stack, 60, colour=colour), (32, 32)
    affine = torch.randn(60, 2, 3, generator=generator()) * 0.3
    affine[:, :, :2] += torch.eye(2)
    yield "affine", stack, draw_patches(stack, 60, affine=affine, fill=0.3), (35, 21)
    corner = torch.tensor([[0, 0], [0, 20], [20, 0], [20, 20]])
    rect = torch.cat([corner, torch.full((4, 2), 20)], dim=1).repeat(10, 1)
    view = torch.randperm(40, generator=generator()) // 4
    more = {"view": view, "rect": rect, "views": 12}
    yield "montage", ragged, draw_patches(ragged, 40, **more), (40, 40)


PROBLEMS = {name: rest for name, *rest in problems()}
every_problem = pytest.mark.parametrize("name", PROBLEMS)


@on_devices
@every_problem
def test_reference(device, name):
    images, patches, size = PROBLEMS[name]
    channels = images[0].shape[-1]
    right = render_views_reference(
        images, patches, out_size=size, mean=MEAN[:channels], std=STD[:channels]
    )
    ours = render(*on(device, images, patches), size).cpu()
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(in_unit(ours), in_unit(right), rtol=0, atol=CLOSE)


@on_devices
@every_problem
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types_differ_by_a_rounding(device, name, dtype):
    images, patches, size = PROBLEMS[name]
    moved = on(device, images, patches)
    wide = render(*moved, size)
    found = render(*moved, size, dtype=dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found.float(), wide, rtol=torch.finfo(dtype).eps, atol=1e-6
    )


@on_devices
def test_erase(device):
    images, patches, size = PROBLEMS["stack"]
    images, patches = on(device, images, patches)
    erase = torch.randint(-40, 200, (90, 4), generator=generator()).to(device)
    plain = render(images, patches, size)
    found = render(images, patches, size, erase=erase)
    y, x = (torch.arange(side, device=device) for side in size)
    top, left, height, width = erase[:, :, None].unbind(1)
    gone = ((y >= top) & (y < top + height))[:, :, None]
    gone = gone & ((x >= left) & (x < left + width))[:, None]
    assert torch.equal(found, plain.masked_fill(gone[:, None], 0))


@pytest.mark.cuda
@needs_kernels
@every_problem
def test_second_stream(name):
    images, patches, size = PROBLEMS[name]
    images, patches = on("cuda", images, patches)
    right = render(images, patches, size)
    late = replace(patches, box=torch.ones_like(patches.box))
    step = functools.partial(render, images, late, size)
    assert torch.equal(on_a_second_stream(late.box, patches.box, step), right)


@pytest.mark.cuda
@needs_kernels
@every_problem
def test_graph_capture_and_replay(name):
    images, patches, size = PROBLEMS[name]
    images, patches = on("cuda", images, patches)
    boxes = patches.box.clone()
    graph, captured = record(lambda: render(images, patches, size))
    for shift in (0, 3):
        patches.box.copy_(boxes)
        patches.box[:, :2] += shift
        graph.replay()
        assert torch.equal(captured, render(images, patches, size))


def draw_boxes(index):
    crop, address = RandomResizedCrop(), {"seed": 1, "epoch": 2, "view": 0}
    return sample_view_boxes((40, 33), crop, sample_index=index, **address)


@pytest.mark.cuda
@needs_kernels
def test_nothing_waits_for_the_device():
    images, patches, size = PROBLEMS["montage"]
    images, patches = on("cuda", images, patches)
    index = torch.arange(40, device="cuda")
    render(images, patches, size)
    with no_waiting():
        render(images, replace(patches, box=draw_boxes(index).box), size)


@pytest.mark.cuda
@needs_kernels
def test_boxes_under_a_graph():
    index = torch.arange(64, device="cuda")
    graph, captured = record(lambda: draw_boxes(index))
    for first in (0, 1000):
        index.copy_(torch.arange(first, first + 64))
        graph.replay()
        assert all(map(torch.equal, captured, draw_boxes(index)))


@on_devices
def test_no_patches(device):
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    images = torch.zeros(2, 5, 5, 3, dtype=torch.uint8, device=device)
    patches = Patches(empty, empty.view(0, 4), view=empty, views=3)
    assert in_unit(render(images, patches, 5).cpu()).abs().max() < 1e-6
    assert render(images, Patches(empty, empty.view(0, 4)), 5).shape == (0, 3, 5, 5)
