"""Augmentation on a GPU against the CPU, and as a citizen of the CUDA runtime.

What makes sense on the CPU runs there too, so that the test code is seen to work.
"""

import pytest
import torch

from python_tests.ops.test_augment import PILLOW, samples
from python_tests.settings import (
    needs_kernels,
    no_waiting,
    on_a_second_stream,
    on_devices,
    record,
)
from s3h_ext.data.views.recipes import RECIPES
from s3h_ext.data.views.render import render_crops
from s3h_ext.ops.augment import Operation, augment_images

SIZES = [(1, 1), (2, 5), (17, 40), (32, 32), (96, 96), (224, 224)]
every_size = pytest.mark.parametrize("size", SIZES, ids=str)
every_channels = pytest.mark.parametrize("channels", [1, 3])


def every_step(size, channels):
    """Each operation with each of its magnitudes, with crops, flips and holes."""
    images = samples(*size, channels)
    found = [(int(k), float(m)) for k, (_, values) in PILLOW.items() for m in values]
    # Of large images every fifth, or the CPU takes long.
    found = found[:: 1 if max(size) < 96 else 5]
    count = len(found)
    operations, magnitudes = (torch.tensor(part) for part in zip(*found, strict=True))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    pairs = (
        torch.stack([part, part[order]], dim=1)
        for part in (operations, magnitudes.double())
    )
    place = torch.arange(4 * count).view(count, 4)
    corners = place[:, :2] * 7 % (2 * max(size)) - max(size)
    holes = place * 11 % (2 * max(size)) - max(size) // 2
    return {
        "images": images,
        **dict(zip(("operations", "magnitudes"), pairs, strict=True)),
        "source": torch.arange(count) % len(images),
        "corners": torch.where(order[:, None] % 2 == 0, corners, corners // 8),
        "flips": order % 3 == 0,
        "holes": holes,
    }


def to(device, problem):
    return {name: value.to(device) for name, value in problem.items()}


@on_devices
@every_size
@every_channels
def test_the_bytes_of_the_cpu(device, size, channels):
    problem = every_step(size, channels)
    right = augment_images(**problem)
    found = augment_images(**to(device, problem))
    assert found.device.type == device
    assert torch.equal(found.cpu(), right)
    plain = {key: problem[key] for key in ("images", "operations", "magnitudes")}
    plain = {key: value[: len(plain["images"])] for key, value in plain.items()}
    right = augment_images(**plain, fill=3)
    assert torch.equal(augment_images(**to(device, plain), fill=3).cpu(), right)


@on_devices
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", lambda x: x.float(), "images must be uint8"),
        ("operations", lambda x: x.int(), "operations must be int64"),
        ("magnitudes", lambda x: x[:1], "magnitudes must be float64"),
        ("source", lambda x: x[:1], "source must have"),
        ("corners", lambda x: x[:, :1], "corners must be int64"),
        ("flips", lambda x: x.int(), "flips must be bool"),
        ("holes", lambda x: x[:1], "holes must be int64"),
    ],
)
def test_wrong_arguments(device, name, change, message):
    problem = to(device, every_step((2, 5), 3))
    problem[name] = change(problem[name])
    with pytest.raises(RuntimeError, match=message):
        augment_images(**problem)


@pytest.mark.cuda
@needs_kernels
def test_tensors_on_two_devices():
    problem = to("cuda", every_step((2, 5), 3))
    with pytest.raises(RuntimeError, match="on the same device"):
        augment_images(**problem | {"holes": problem["holes"].cpu()})


@pytest.mark.cuda
@needs_kernels
@every_size
def test_second_stream(size):
    problem = to("cuda", every_step(size, 3))
    right, operations = augment_images(**problem), problem["operations"]
    late = torch.zeros_like(operations)  # do nothing
    problem["operations"] = late
    ours = on_a_second_stream(late, operations, lambda: augment_images(**problem))
    assert torch.equal(ours, right)


@pytest.mark.cuda
@needs_kernels
@every_size
def test_graph_capture_and_replay(size):
    problem = to("cuda", every_step(size, 3))
    operations = problem["operations"].clone()
    graph, captured = record(lambda: augment_images(**problem))
    bits = operations.eq(Operation.POSTERIZE).any(dim=1, keepdim=True)
    for shift in (0, 3):
        # Bits of POSTERIZE stay where they are.
        moved = (operations + shift) % int(Operation.POSTERIZE)
        problem["operations"].copy_(torch.where(bits | (shift == 0), operations, moved))
        graph.replay()
        assert torch.equal(captured, augment_images(**problem))


@pytest.mark.cuda
@needs_kernels
@pytest.mark.parametrize("name", RECIPES)
def test_nothing_waits_for_the_device(name):
    recipe = RECIPES[name]
    images = samples(32, 32, 3).cuda()
    index = torch.arange(8, device="cuda") % len(images)

    def step(epoch):
        spec = recipe.describe(32, 32, seed=0, epoch=epoch, index=index, view=0)
        form = {"size": recipe.view_size(32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3}
        return render_crops(images, index, spec, recipe, **form)

    step(0)  # tables of a policy are copied once
    with no_waiting():
        step(1)
