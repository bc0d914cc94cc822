import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch.library import opcheck

from python_tests.settings import assert_same_bits, on_devices
from s3h_ext.ops import augment
from s3h_ext.ops.augment import Operation, augment_images

FILL = 128


def affine(*map_, resample=Image.Resampling.NEAREST):
    def transform(image, magnitude):
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            tuple(magnitude if term == "m" else term for term in map_),
            resample,
            fillcolor=(FILL,) * len(image.getbands()),
        )

    return transform


def rotated(image, degrees):
    """Turns an image with alpha and lays it on grey, as the CIFAR code does."""
    turned = image.convert("RGBA").rotate(degrees)
    grey = Image.new("RGBA", turned.size, (FILL,) * 4)
    return Image.composite(turned, grey, turned).convert(image.mode)


def enhanced(kind):
    return lambda image, factor: kind(image).enhance(factor)


def solarised_more(image, added):
    levels = [min(255, max(0, v + int(added))) if v < 128 else v for v in range(256)]
    return image.point(levels * len(image.getbands()))


CUBIC = Image.Resampling.BICUBIC
FACTORS = np.round(1 + np.outer([-1, 1], np.linspace(0, 0.9, 10)).flatten(), 12)
FACTORS = [*FACTORS, *(1 - FACTORS % 1), 0.0, 2.5, math.pi / 3]
SHEARS = [sign * value for sign in (-1, 1) for value in np.linspace(0, 0.3, 31)]
PIXELS = [
    sign * value * size
    for sign in (-1, 1)
    for value in np.linspace(0, 150 / 331, 10)
    for size in (32, 28)
]
# A sum of such a number and a whole one is rounded up to the next whole number.
LOSSY = [
    sign * math.nextafter(whole + half, side * math.inf)
    for sign in (-1, 1)
    for whole in (0.0, 1.0, 3.0, 9.0)
    for half in (0.0, 0.5)
    for side in (-1, 1)
]
LOSSY += [math.nextafter(value, math.inf * sign) for value in LOSSY for sign in (-1, 1)]
SHIFTS = [*PIXELS, *LOSSY, 0.5, -0.5]
ANGLES = [sign * angle for sign in (-1, 1) for angle in np.linspace(0, 30, 31)]
ANGLES += [*np.random.RandomState(0).uniform(-400, 400, 100), 45.0, -361.0]
ANGLES += [30.0 * twelfth for twelfth in range(13)]
PILLOW = {
    Operation.NONE: (lambda image, _: image, [0.0]),
    Operation.SHEAR_X: (affine(1, "m", 0, 0, 1, 0), [*SHEARS, 1.5]),
    Operation.SHEAR_Y: (affine(1, 0, 0, "m", 1, 0), [*SHEARS, -2.25]),
    Operation.SHEAR_X_CUBIC: (affine(1, "m", 0, 0, 1, 0, resample=CUBIC), SHEARS),
    Operation.SHEAR_Y_CUBIC: (affine(1, 0, 0, "m", 1, 0, resample=CUBIC), SHEARS),
    Operation.TRANSLATE_X: (affine(1, 0, "m", 0, 1, 0), [*SHIFTS, 99.0]),
    Operation.TRANSLATE_Y: (affine(1, 0, 0, 0, 1, "m"), [*SHIFTS, -99.0]),
    Operation.ROTATE: (rotated, ANGLES),
    Operation.AUTO_CONTRAST: (lambda image, _: ImageOps.autocontrast(image), [0.0]),
    Operation.INVERT: (lambda image, _: ImageOps.invert(image), [0.0]),
    Operation.EQUALIZE: (lambda image, _: ImageOps.equalize(image), [0.0]),
    Operation.POSTERIZE: (
        lambda image, bits: ImageOps.posterize(image, int(bits)),
        [float(bits) for bits in range(1, 9)],
    ),
    Operation.SOLARIZE: (
        ImageOps.solarize,
        [*np.linspace(256, 0, 10), *np.linspace(256, 0, 31), -3.0, 300.0],
    ),
    Operation.COLOUR: (enhanced(ImageEnhance.Color), FACTORS),
    Operation.CONTRAST: (enhanced(ImageEnhance.Contrast), FACTORS),
    Operation.BRIGHTNESS: (enhanced(ImageEnhance.Brightness), FACTORS),
    Operation.SHARPNESS: (enhanced(ImageEnhance.Sharpness), FACTORS),
    Operation.SOLARIZE_ADD: (solarised_more, [0.0, 0.9, 54.0, 110.0, 300.0, -20.0]),
    Operation.BLUR: (
        lambda image, sigma: image.filter(ImageFilter.GaussianBlur(float(sigma))),
        [0.0, *np.linspace(0.1, 2.0, 9), 2.7, 5.0, 17.3, 64.0],
    ),
}


def samples(height, width, channels):
    """Noise, smooth pictures, dark ones, nearly flat ones, flat ones, extremes."""
    random = np.random.RandomState(0)
    shape = (height, width, channels)
    y, x = np.mgrid[0:height, 0:width]
    ramp = (8 * x + 5 * y)[..., None] + np.arange(channels) * 40
    pictures = [
        random.randint(0, 256, shape),
        ramp % 256,
        random.randint(20, 90, shape),
        random.randint(100, 103, shape),
        np.full(shape, 77),
        np.where(random.rand(*shape) < 0.5, 0, 255),
        np.minimum(255, random.gamma(1.5, 40, shape)).astype(int),
    ]
    return torch.from_numpy(np.stack(pictures).astype(np.uint8))


def as_picture(image):
    array = image.numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def run(images, *steps, **arguments):
    """Applies the same steps to all images."""
    operations = torch.tensor([[int(step[0]) for step in steps]])
    magnitudes = torch.tensor([[step[1] for step in steps]], dtype=torch.float64)
    count = arguments["source"].shape[0] if "source" in arguments else len(images)
    lists = (part.expand(count, len(steps)) for part in (operations, magnitudes))
    return augment_images(images, *lists, **arguments)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 40), (2, 5), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", list(Operation))
def test_every_operation_is_pillows(operation, channels, size):
    images = samples(*size, channels)
    reference, magnitudes = PILLOW[operation]
    for magnitude in magnitudes:
        result = run(images, (operation, float(magnitude)))
        for image, ours in zip(images, result, strict=True):
            theirs = np.asarray(reference(as_picture(image), magnitude))
            theirs = theirs.reshape(*size, channels)
            assert np.array_equal(ours.numpy(), theirs), (operation, magnitude)


def test_every_operation_is_in_the_table():
    assert list(PILLOW) == list(Operation)


def test_operations_are_applied_in_order():
    images = samples(32, 32, 3)
    steps = [
        (Operation.ROTATE, 12.0),
        (Operation.SHARPNESS, 1.7),
        (Operation.EQUALIZE, 0.0),
        (Operation.TRANSLATE_Y, -5.0),
        (Operation.SOLARIZE, 100.0),
    ]
    result = run(images, *steps)
    for image, ours in zip(images, result, strict=True):
        picture = as_picture(image)
        for operation, magnitude in steps:
            picture = PILLOW[operation][0](picture, magnitude)
        assert np.array_equal(ours.numpy(), np.asarray(picture))
    assert not torch.equal(result, run(images, *steps[::-1]))


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_flip_and_hole(channels):
    images = samples(9, 12, channels)
    random = np.random.RandomState(1)
    count = 200
    source = torch.from_numpy(random.randint(0, len(images), count))
    corners = torch.from_numpy(random.randint(-14, 15, (count, 2)))
    flips = torch.from_numpy(random.rand(count) < 0.5)
    holes = torch.from_numpy(random.randint(-4, 14, (count, 4)))
    place = {"corners": corners, "flips": flips, "holes": holes}
    result = run(images, (Operation.INVERT, 0.0), source=source, **place)
    for row in range(count):
        padded = np.pad(images[source[row]].numpy(), ((20, 20), (20, 20), (0, 0)))
        top, left = (20 + corners[row]).tolist()
        crop = padded[top : top + 9, left : left + 12]
        crop = 255 - (crop[:, ::-1] if flips[row] else crop)
        top, left, height, width = holes[row].tolist()
        y, x = np.mgrid[0:9, 0:12]
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        expected = np.where(inside[..., None], 0, crop)
        assert np.array_equal(result[row].numpy(), expected)


def test_fill_is_an_argument():
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    moved = run(images, (Operation.TRANSLATE_X, 3.0), fill=7)
    assert moved[0, :, -3:].eq(7).all()
    assert moved[0, :, :-3].eq(0).all()


def mixed(count):
    generator = torch.Generator().manual_seed(3)
    operations = torch.randint(0, len(Operation), (count, 3), generator=generator)
    magnitudes = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2
    return operations, torch.where(
        operations == Operation.POSTERIZE, magnitudes.round(), magnitudes
    )


def test_views_do_not_depend_on_threads_or_neighbours():
    images = samples(16, 16, 3)
    source = torch.arange(300) % len(images)
    steps = mixed(300)

    def some(part):
        operations, magnitudes = (step[part] for step in steps)
        return augment_images(images, operations, magnitudes, source=source[part])

    (whole,) = assert_same_bits(lambda: [some(slice(None))], (1, 2))
    part = slice(17, 93)
    assert torch.equal(whole[part], some(part))


def test_inputs_stay_and_need_not_be_contiguous():
    images = samples(8, 8, 3)
    before = images.clone()
    odd = images.flip(0).transpose(1, 2)
    operations, magnitudes = mixed(len(images))
    result = augment_images(odd, operations, magnitudes)
    assert torch.equal(result, augment_images(odd.contiguous(), operations, magnitudes))
    assert torch.equal(images, before)


@on_devices
@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (3, 0, 4, 3), (3, 4, 0, 1)])
def test_empty(device, shape):
    images = torch.zeros(shape, dtype=torch.uint8, device=device)
    for count in (0, 2):
        steps = torch.ones(shape[0], count, dtype=torch.int64, device=device)
        assert augment_images(images, steps, steps.double()).shape == shape


IMAGES = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
STEPS = torch.tensor([[1], [11]])
SIZES = torch.ones(2, 1, dtype=torch.float64)
BLUR = torch.full((2, 1), int(Operation.BLUR))
DEVIATION = r"BLUR must be 0 \.\. 64 pixels, got"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.float()}, "images must be uint8"),
        ({"images": IMAGES[0]}, "images must be uint8"),
        ({"images": torch.zeros(2, 4, 4, 2, dtype=torch.uint8)}, "1 or 3 channels"),
        ({"operations": STEPS + 8}, "numbers of Operation, got 19"),
        ({"operations": STEPS - 2}, "numbers of Operation, got -1"),
        ({"operations": STEPS.float()}, "operations must be int64"),
        ({"magnitudes": SIZES.float()}, "magnitudes must be float64"),
        ({"magnitudes": SIZES[:1]}, "magnitudes must be float64"),
        ({"magnitudes": SIZES * math.nan}, "magnitudes must be within"),
        ({"magnitudes": SIZES * math.inf}, "magnitudes must be within"),
        ({"magnitudes": SIZES * 2e6}, "magnitudes must be within"),
        ({"magnitudes": SIZES * 1.5}, "whole bits 0 .. 8, got 1.5"),
        ({"magnitudes": SIZES * 9}, "whole bits 0 .. 8, got 9"),
        ({"operations": BLUR, "magnitudes": SIZES * -0.1}, DEVIATION),
        ({"operations": BLUR, "magnitudes": SIZES * 64.5}, DEVIATION),
        ({"source": torch.tensor([0, 2])}, "source must be 0 .. 1, got 2"),
        ({"source": torch.tensor([-1, 0])}, "source must be 0 .. 1, got -1"),
        ({"source": torch.tensor([0])}, "source must have 2"),
        ({"source": torch.tensor([0.0, 1.0])}, "source must be int64"),
        ({"corners": torch.zeros(2, 3, dtype=torch.int64)}, "corners must be int64"),
        ({"corners": torch.zeros(2, 2)}, "corners must be int64"),
        ({"corners": torch.full((2, 2), 1 << 40)}, "corners must be within"),
        ({"holes": torch.full((2, 4), -(1 << 62))}, "holes must be within"),
        ({"flips": torch.zeros(2)}, "flips must be bool"),
        ({"flips": torch.zeros(3, dtype=torch.bool)}, "flips must have 2"),
        ({"fill": 256}, "fill must be 0 .. 255, got 256"),
    ],
)
def test_wrong_arguments(changes, message):
    arguments = {"images": IMAGES, "operations": STEPS, "magnitudes": SIZES}
    with pytest.raises(RuntimeError, match=message):
        augment_images(**(arguments | changes))


def test_opcheck():
    operations, magnitudes = mixed(7)
    given = (samples(6, 5, 3), operations, magnitudes, torch.arange(7))
    one = torch.ones(7, 4, dtype=torch.int64)
    for rest in ((None, None, None, 128), (one[:, :2], one[:, 0] > 0, one, 0)):
        opcheck(torch.ops.s3h.augment_images.default, (*given, *rest))


def test_where_no_kernel_is_built_the_host_gives_the_same():
    images = samples(8, 8, 3)
    operations, magnitudes = mixed(40)
    source = torch.arange(40) % len(images)
    rest = (None, source % 2 == 0, None, 128)
    expected = torch.ops.s3h.augment_images(
        images, operations, magnitudes, source, *rest
    )
    result = augment._on_the_host(images, operations, magnitudes, source, *rest)
    assert torch.equal(result, expected)
