import math

import numpy as np
import pytest
import torch

from s3h_ext.data.views.colour import ColorJitter, colour_matrix, draw_colour

from .sources import uniforms

VIEWS = 4000


LUMA = np.array([0.299, 0.587, 0.114])
YIQ = np.array(
    [
        LUMA,
        [0.595716, -0.274453, -0.321263],
        [0.211456, -0.522591, 0.311135],
    ]
)


def direct_colour(pixel, brightness, contrast, saturation, angle):
    """The four operations one after the other, as they are defined."""
    pixel = brightness * pixel
    pixel = contrast * (pixel - 0.5) + 0.5
    grey = LUMA @ pixel
    pixel = grey + saturation * (pixel - grey)
    y, i, q = YIQ @ pixel
    turned = [
        y,
        i * math.cos(angle) - q * math.sin(angle),
        i * math.sin(angle) + q * math.cos(angle),
    ]
    return np.linalg.solve(YIQ, turned)


def as_matrix(*factors):
    return colour_matrix(*(torch.tensor(x, dtype=torch.float64) for x in factors))


@pytest.mark.parametrize(
    "factors",
    [
        (1.0, 1.0, 1.0, 0.0),
        (0.6, 1.0, 1.0, 0.0),
        (1.0, 1.4, 1.0, 0.0),
        (1.0, 1.0, 0.0, 0.0),
        (1.0, 1.0, 1.6, 0.0),
        (1.0, 1.0, 1.0, 0.6),
        (1.0, 1.0, 1.0, -2.5),
        (1.3, 0.7, 1.2, 0.4),
        (0.8, 1.3, 0.0, 0.5),
    ],
)
def test_colour_matrix_against_the_direct_formulas(factors):
    matrix = as_matrix(*factors).double().numpy()
    for pixel in np.random.RandomState(0).rand(20, 3):
        expected = direct_colour(pixel, *factors)
        assert np.allclose(matrix[:, :3] @ pixel + matrix[:, 3], expected, atol=2e-6)


def test_colour_matrix_identity_is_exact():
    assert torch.equal(as_matrix(1.0, 1.0, 1.0, 0.0), torch.eye(3, 4))


def test_hue_keeps_luma_and_greys():
    matrix = as_matrix(1.0, 1.0, 1.0, 0.9).double()
    luma = torch.from_numpy(LUMA)
    assert torch.allclose(luma @ matrix[:, :3], luma, atol=1e-6)
    assert torch.allclose(matrix[:, :3].sum(dim=1), torch.ones(3).double(), atol=1e-6)


def test_jitter_factors_stay_in_range():
    jitter = ColorJitter(0.4, 0.0, 0.0, 0.0, probability=1.0)
    gain = draw_colour(uniforms(9, VIEWS), jitter, 0.0)[:, 0, 0]
    assert gain.min() >= 0.6
    assert gain.max() <= 1.4
    assert gain.min() < 0.61
    assert gain.max() > 1.39


def test_jitter_is_off_one_time_in_five():
    matrices = draw_colour(uniforms(9, VIEWS), ColorJitter(), 0.0)
    off = (matrices == torch.eye(3, 4)).flatten(1).all(dim=1)
    assert abs(off.float().mean() - 0.2) < 6 / math.sqrt(VIEWS) / 2


def test_greyscale_rate_and_matrix():
    matrices = draw_colour(uniforms(4, VIEWS), None, 0.2)
    grey = (matrices[:, 0] == matrices[:, 1]).all(dim=-1)
    assert abs(grey.float().mean() - 0.2) < 6 / math.sqrt(VIEWS) / 2
    luma = torch.tensor([0.299, 0.587, 0.114, 0.0])
    assert torch.equal(matrices[grey], luma.expand(int(grey.sum()), 3, 4))
    others = matrices[~grey]
    assert torch.equal(others, torch.eye(3, 4).expand_as(others))


def test_nothing_to_change():
    assert draw_colour(uniforms(1, VIEWS), None, 0.0) is None
