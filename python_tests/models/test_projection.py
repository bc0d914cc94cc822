"""Pooling, cascaded heads, class directions, momentum copies."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s3h_ext.models import (
    CascadedHeads,
    CosineClassifier,
    GroupedClassifier,
    LinearClassifier,
    apart_from_running_statistics,
    build_model,
    class_directions,
    momentum_copy,
    pool_quadrants,
    pool_whole,
    update_momentum_copy_,
)


def planted_maps(height, width):
    """Two maps of three channels; a cell is ten times the map plus the quadrant."""
    maps = torch.zeros(2, 3, height, width)
    for n in range(2):
        for q, (top, left) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            rows = slice(height // 2, None) if top else slice(height // 2)
            columns = slice(width // 2, None) if left else slice(width // 2)
            maps[n, :, rows, columns] = 10 * n + q
    return maps


@pytest.mark.parametrize(("height", "width"), [(8, 8), (2, 2), (4, 6)])
def test_quadrants_are_pooled_in_reading_order(height, width):
    maps = planted_maps(height, width)
    pooled = pool_quadrants(maps)
    assert pooled[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert (pooled == pooled[:, :1]).all()
    torch.testing.assert_close(pool_whole(maps), maps.mean((2, 3)))
    last = maps.contiguous(memory_format=torch.channels_last)
    assert torch.equal(pool_quadrants(last), pooled)


def test_odd_sides_are_stretched_by_one():
    maps = torch.randn(2, 5, 7, 7)
    stretched = F.interpolate(maps, size=(8, 8), mode="bilinear", align_corners=False)
    expected = stretched.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5))
    torch.testing.assert_close(
        pool_quadrants(maps).view(2, 2, 2, 5), expected.permute(0, 2, 3, 1)
    )
    assert pool_quadrants(maps[:, :, :6]).shape == (8, 5)
    with pytest.raises(ValueError, match="sides of at least 2, got 1 x 7"):
        pool_quadrants(maps[:, :, :1])


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_each_head_works_on_the_one_before(heads):
    projection = CascadedHeads(8, 16, 6, heads)
    embeddings = projection(torch.randn(10, 8))
    assert [z.shape for z in embeddings] == [(10, 6)] * heads
    for z in embeddings:
        torch.testing.assert_close(z.norm(dim=1), torch.ones(10))
    # The last head's loss reaches all heads, the first one's only itself.
    embeddings[-1][:, 0].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in projection.stages[0][0].parameters())
    projection.zero_grad()
    projection(torch.randn(10, 8))[0][:, 0].sum().backward()
    assert all(p.grad is None for p in projection.stages[1:].parameters())


def test_later_heads_begin_with_a_plain_batch_norm():
    projection = CascadedHeads(8, 16, 6, 2)
    first = projection.stages[1][0]
    assert isinstance(first, nn.BatchNorm1d)
    assert not first.affine
    x = torch.randn(10, 8)
    one = projection.stages[0](x)
    normed = (one - one.mean(0)) / (one.var(0, unbiased=False) + first.eps).sqrt()
    expected = projection.stages[1][1:](normed)
    torch.testing.assert_close(projection(x)[1], F.normalize(expected, dim=1))


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="heads: expected a whole number >= 1, got 0"):
        CascadedHeads(8, 16, 6, 0)


def test_class_directions_of_each_classifier():
    linear, cosine = LinearClassifier(4, 3), CosineClassifier(4, 3)
    assert class_directions(linear) is linear.weight
    with torch.no_grad():
        cosine.weight.mul_(7)
    torch.testing.assert_close(class_directions(cosine).norm(dim=1), torch.ones(3))
    offsets = torch.tensor([0, 2, 3, 6])
    grouped = GroupedClassifier(linear, offsets)
    torch.testing.assert_close(class_directions(grouped), linear.weight)
    grouped.split_(0.5)
    rows = grouped.weight
    expected = torch.stack((rows[:2].mean(0), rows[2], rows[3:].mean(0)))
    torch.testing.assert_close(class_directions(grouped), expected)
    grouped = GroupedClassifier(cosine, offsets)
    torch.testing.assert_close(class_directions(grouped).norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("share", [0.25, torch.tensor(0.25)])
def test_a_momentum_copy_is_apart_and_follows(share):
    backbone = build_model("resnet20", 3).backbone
    copied = momentum_copy(backbone)
    assert not any(p.requires_grad for p in copied.parameters())
    assert all(p.requires_grad for p in backbone.parameters())
    before = [p.clone() for p in copied.parameters()]
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(1.0)
    assert all(map(torch.equal, before, copied.parameters()))
    update_momentum_copy_(copied, backbone, share)
    for old, new, target in zip(
        before, copied.parameters(), backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * target)


def test_a_momentum_copy_normalises_by_its_batch_in_either_mode():
    backbone = build_model("resnet20", 3).backbone
    copied = momentum_copy(backbone)
    images = torch.randn(6, 3, 32, 32)
    expected = backbone.train()(images)
    torch.testing.assert_close(copied.train()(images), expected)
    torch.testing.assert_close(copied.eval()(images), expected)
    assert not any("running" in name for name in copied.state_dict())


def test_a_pass_apart_leaves_running_statistics_alone():
    backbone = build_model("resnet20", 3).backbone.train()
    images = torch.randn(6, 3, 32, 32)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with apart_from_running_statistics(backbone):
        apart = backbone(images)
    assert all(torch.equal(before[n], v) for n, v in backbone.state_dict().items())
    torch.testing.assert_close(backbone(images), apart)
    assert not torch.equal(before["bn1.running_mean"], backbone.bn1.running_mean)
