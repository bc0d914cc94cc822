"""The CUDA kernel of augmentation, executed on the host against the CPU's."""

import math

import pytest
import torch

from python_tests.cuda_host import kernels
from python_tests.ops.test_augment import PILLOW, samples
from s3h_ext.ops.augment import Operation

SIZES = [(1, 1), (2, 5), (17, 19), (32, 32), (40, 24)]
#: Shared memory that holds no image twice: the workspace is used.
NO_SHARED = 9000
every_size = pytest.mark.parametrize("size", SIZES, ids=str)
every_channels = pytest.mark.parametrize("channels", [1, 3])


def on_host(problem, fill=128, shared_limit=kernels.H200_SHARED, **execution):
    """Runs the kernel on a tuple in the order of the operator's tensors."""
    images, operations = problem[:2]
    numbers = [shared_limit, *images.shape, *operations.shape, fill]
    shape = (len(operations), *images.shape[1:])
    results = [(torch.uint8, shape)]
    (out,) = kernels.execute("augment", numbers, [], problem, results, **execution)
    return out


def check(problem, fill=128, **execution):
    right = torch.ops.s3h.augment_images(*problem, fill)
    assert torch.equal(on_host(problem, fill, **execution), right)


def every_step(size, channels):
    """Each operation with each of its magnitudes, on one image after the other."""
    images = samples(*size, channels)
    steps = [(int(k), float(m)) for k, (_, values) in PILLOW.items() for m in values]
    operations = torch.tensor([[step[0]] for step in steps])
    magnitudes = torch.tensor([[step[1]] for step in steps], dtype=torch.float64)
    source = torch.arange(len(steps)) % len(images)
    return images, operations, magnitudes, source, None, None, None


def lists(size, channels, count=60, steps=3, seed=0, reach=None):
    """Random lists of operations, crops, flips and holes, in and out of the image."""
    generator = torch.Generator().manual_seed(seed)
    reach = max(size) + 3 if reach is None else reach

    def whole(low, high, *shape):
        return torch.randint(low, high + 1, shape, generator=generator)

    images = samples(*size, channels)
    operations = whole(0, len(Operation) - 1, count, steps)
    magnitudes = torch.rand(count, steps, generator=generator, dtype=torch.float64)
    magnitudes = (4 * magnitudes - 2) * 10.0 ** whole(-2, 2, count, steps)
    bits = whole(0, 8, count, steps).double()
    magnitudes = torch.where(operations == Operation.POSTERIZE, bits, magnitudes)
    deviations = magnitudes.abs().clamp(max=64)
    magnitudes = torch.where(operations == Operation.BLUR, deviations, magnitudes)
    return (
        images,
        operations,
        magnitudes,
        whole(0, len(images) - 1, count),
        whole(-reach, reach, count, 2),
        whole(0, 1, count).bool(),
        whole(-reach, reach, count, 4),
    )


@every_size
@every_channels
def test_every_operation(size, channels):
    check(every_step(size, channels))


@every_size
@every_channels
@pytest.mark.parametrize("shared_limit", [kernels.H200_SHARED, NO_SHARED])
def test_lists_with_crops_flips_and_holes(size, channels, shared_limit):
    problem = lists(size, channels)
    for seed in (0, 1):
        check(problem, shared_limit=shared_limit, seed=seed)
    check(problem, fill=7, shared_limit=shared_limit, skip=8)


@pytest.mark.parametrize("shared_limit", [kernels.H200_SHARED, NO_SHARED])
def test_the_workspace_is_for_larger_images(shared_limit):
    check(lists((7, 200), 3, count=20), shared_limit=shared_limit)
    check(lists((90, 130), 1, count=6), shared_limit=shared_limit)


def test_coordinates_and_magnitudes_at_the_ends_of_their_ranges():
    images, operations, magnitudes, source, corners, flips, holes = lists((9, 14), 3)
    far = 1 << 20
    for tensor in (corners, holes):
        tensor[::2] = torch.where(tensor[::2] > 0, far, -far)
    keep = (operations == Operation.POSTERIZE) | (operations == Operation.BLUR)
    magnitudes = torch.where(keep, magnitudes, far * magnitudes.sign())
    check((images, operations, magnitudes, source, corners, flips, holes))
    near = torch.zeros_like(holes)
    near[:, :2], near[:, 2:] = 5 - far, far
    check((images, operations, magnitudes, source, None, None, near))


@pytest.mark.parametrize("plain", [True, False])
def test_no_operations(plain):
    images, _, _, source, corners, flips, holes = lists((12, 9), 3)
    steps = torch.empty(60, 0, dtype=torch.int64), torch.empty(60, 0).double()
    around = (None, None, None) if plain else (corners, flips, holes)
    check((images, *steps, source, *around))


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (3, 0, 4, 3), (3, 4, 0, 1)])
def test_empty(shape):
    steps = torch.ones(shape[0], 2, dtype=torch.int64)
    images = torch.zeros(shape, dtype=torch.uint8)
    source = torch.arange(shape[0])
    check((images, steps, steps.double(), source, None, None, None))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (1, -1, "operations: "),
        (1, len(Operation), "operations: "),
        (2, math.nan, "magnitudes: "),
        (2, 1048577.0, "magnitudes: "),
        (3, -1, "source: "),
        (3, 7, "source: "),
        (4, (1 << 20) + 1, "corners: "),
        (4, -(1 << 62), "corners: "),
        (6, 1 << 62, "holes: "),
    ],
)
def test_values_out_of_range_stop(place, value, message):
    problem = lists((6, 5), 3, count=4)
    problem[place][2] = value
    with pytest.raises(RuntimeError, match=message):
        on_host(problem)


@pytest.mark.parametrize(
    ("operation", "magnitude"),
    [
        *((Operation.POSTERIZE, bits) for bits in (-1.0, 9.0, 1.5)),
        *((Operation.BLUR, deviation) for deviation in (-0.1, 64.5)),
    ],
)
def test_magnitudes_out_of_range_stop(operation, magnitude):
    problem = lists((6, 5), 3, count=4, steps=1)
    problem[1][2], problem[2][2] = int(operation), magnitude
    with pytest.raises(RuntimeError, match=operation.name):
        on_host(problem)


@pytest.mark.parametrize("variant", ["address", "thread"])
@pytest.mark.parametrize("channels", kernels.first_quick([3, 1]))
def test_under_sanitizers(variant, channels):
    for limit in (kernels.H200_SHARED, NO_SHARED):
        problem = lists((21, 18), channels, count=40, steps=4)
        check(problem, shared_limit=limit, variant=variant, skip=8)
    check(lists((1, 1), channels, count=20), variant=variant)
