import pytest
import torch

from s3h_ext.data.views.gather import GatherRenderer
from s3h_ext.data.views.recipes import Recipe, get_recipe
from s3h_ext.data.views.render import Renderer
from s3h_ext.ops.view_constraints import RandomResizedCrop

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
COLOURLESS = ["none", "crop", "crop-flip"]
COLOURED = ["crop-gray", "crop-flip-gray", "crop-flip-jitter-gray", "supcon"]


def random_images(count, height, width, channels):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(
        0,
        256,
        (count, height, width, channels),
        dtype=torch.uint8,
        generator=generator,
    )


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 9), (20, 33)])
@pytest.mark.parametrize(
    ("name", "channels"),
    [(name, channels) for name in COLOURLESS for channels in (1, 3)]
    + [(name, 3) for name in COLOURED],
)
def test_gathers_render_what_the_kernel_renders(name, channels, size):
    images = random_images(20, *size, channels)
    recipe = get_recipe(name)
    source = torch.arange(300) % 20
    crops = recipe.describe(
        *size, seed=0, epoch=0, index=source, view=torch.arange(300) // 20
    )
    arguments = {"mean": MEAN[:channels], "std": STD[:channels]}
    gathered = GatherRenderer(images, **arguments)(source, crops)
    rendered = Renderer(images, **arguments)(source, crops, recipe)
    assert gathered.shape == rendered.shape == (300, channels, *size)
    assert gathered.is_contiguous(memory_format=torch.channels_last)
    # Rounding; where boxes are resized, a fiftieth of a grey level and the colours.
    assert torch.allclose(gathered, rendered, atol=6e-4 if crops.resized else 1e-5)


def test_small_boxes():
    images = random_images(20, 32, 32, 3)
    recipe = Recipe(crop=RandomResizedCrop((0.001, 0.01)), flip=0.5)
    source = torch.arange(20)
    crops = recipe.describe(32, 32, seed=3, epoch=0, index=source, view=0)
    assert (crops.box[:, 2] == 1).any()
    gathered = GatherRenderer(images, mean=MEAN, std=STD)(source, crops)
    rendered = Renderer(images, mean=MEAN, std=STD)(source, crops, recipe)
    assert torch.allclose(gathered, rendered, atol=6e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_are_the_rounded_float32(dtype):
    images = random_images(10, 32, 32, 3)
    source = torch.arange(10)
    crops = get_recipe("supcon").describe(32, 32, seed=0, epoch=0, index=source, view=0)
    exact = GatherRenderer(images, mean=MEAN, std=STD)(source, crops)
    rounded = GatherRenderer(images, mean=MEAN, std=STD, dtype=dtype)(source, crops)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, exact.to(dtype))
