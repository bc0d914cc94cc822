"""S3H and BCL: what they compute, where gradients go, every switch."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from python_tests.small_runs import assert_same_weights
from s3h_ext.data import Batch, ImageSet, ResidentPixels, Source
from s3h_ext.data.source.batches import Quadrants
from s3h_ext.losses import (
    BalancedContrastiveLoss,
    CrossModelContrastiveLoss,
)
from s3h_ext.losses.classification import LogitAdjustedLoss
from s3h_ext.methods import BCL, S3H, ClasswiseSplitting
from s3h_ext.methods.s3h import region_features
from s3h_ext.models import build_model, class_directions, pool_quadrants

SMALL = {"projection_hidden": 16, "projection_dim": 8}


def make_images(views, size, generator, side=16):
    images = torch.randn(views, size, side, side, 3, generator=generator)
    return images.permute(0, 1, 4, 2, 3)


def make_step(size=6, views=2, montages=True, side=16):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3, (size,), generator=generator)
    indices = torch.arange(size)
    quadrants = None
    if montages:
        shown = indices.repeat(4 * views)
        order = torch.randperm(len(shown), generator=generator)
        places = shown[order].view(views, size, 4)
        quadrants = Quadrants(labels[places], places, (order // size).view_as(places))
    return {
        "classification": Batch(make_images(1, size, generator), labels, indices),
        "contrast": Batch(
            make_images(views, size, generator, side), labels, indices, quadrants
        ),
    }


def build(method, dataset, classifier="cosine"):
    torch.manual_seed(0)
    method.build(build_model("resnet20", 3, classifier=classifier), dataset)
    return method


def step(method, batch, optimizer=None):
    terms = method.loss(batch)
    terms["loss"].backward()
    if optimizer is not None:
        optimizer.step()
    method.after_step()
    return terms


def test_s3h_is_its_equation(dataset):
    weights = {"ce_weight": 1.5, "contrast_weight": 0.25, "cross_weight": 0.75}
    method = build(S3H(temperature=0.3, tau=2.0, **weights, **SMALL), dataset)
    # Apart from the network, so that it gives other keys than the embeddings.
    with torch.no_grad():
        for parameter in method.copied_backbone.parameters():
            parameter.mul_(1.1)
        for parameter in method.copied_projection.parameters():
            parameter.mul_(0.8)
    batch = make_step()
    terms = method.loss(batch)

    whole, montages = batch["classification"], batch["contrast"].images.flatten(0, 1)
    labels = batch["contrast"].quadrants.labels.flatten()
    maps = method.model.backbone.feature_map(torch.cat((whole.images[0], montages)))
    regions = pool_quadrants(maps[6:])
    f1 = method.projection.stages[0](regions)
    f2 = F.normalize(method.projection.stages[1](f1), dim=1)
    f1 = F.normalize(f1, dim=1)
    c1, c2 = method.centre_projection(class_directions(method.model.classifier))
    within = BalancedContrastiveLoss(0.3)
    contrastive = sum(within(f, labels, c) for f in (f1, f2) for c in (c1, c2)) / 4
    k1, k2 = method.copied_projection(
        pool_quadrants(method.copied_backbone.feature_map(montages))
    )
    across, own = CrossModelContrastiveLoss(0.3), torch.arange(len(labels))
    crossing = 0.5 * (
        across(f1, labels, k1, labels, centres=c1, self_index=own)
        + across(f2, labels, k2, labels, centres=c2, self_index=own)
    )
    logits = method.model.classifier(maps[:6].mean((2, 3)))
    cross_entropy = LogitAdjustedLoss(dataset.class_counts, 2.0)(logits, whole.labels)
    torch.testing.assert_close(terms["cross_entropy"], cross_entropy.detach())
    torch.testing.assert_close(terms["contrastive"], contrastive.detach())
    torch.testing.assert_close(terms["cross_model"], crossing.detach())
    expected = 1.5 * cross_entropy + 0.25 * contrastive + 0.75 * crossing
    torch.testing.assert_close(terms["loss"], expected)


def test_bcl_is_its_equation(dataset):
    method = build(BCL(temperature=0.3, **SMALL), dataset, "linear")
    assert method.label == "bcl"
    batch = make_step(montages=False)
    terms = method.loss(batch)
    views = batch["contrast"].images.flatten(0, 1)
    images = torch.cat((batch["classification"].images[0], views))
    features = method.model.backbone(images)
    z = F.normalize(method.projection.stages[0](features[6:]), dim=1)
    (centres,) = method.centre_projection(method.model.classifier.weight)
    labels = batch["contrast"].labels
    contrastive = BalancedContrastiveLoss(0.3)(z, labels.repeat(2), centres)
    logits = method.model.classifier(features[:6])
    cross_entropy = LogitAdjustedLoss(dataset.class_counts)(logits, labels)
    torch.testing.assert_close(terms["loss"], 2.0 * cross_entropy + 0.6 * contrastive)


def test_s3h_without_its_parts_is_bcl(dataset):
    batch = make_step(montages=False)
    off = S3H(contrast_recipe="supcon", heads=1, partner="none", **SMALL)
    ours = build(off, dataset).loss(batch)
    torch.testing.assert_close(ours, build(BCL(**SMALL), dataset).loss(batch))
    assert off.streams() == BCL().streams()


def test_streams_show_the_same_images():
    streams = S3H(views=3).streams()
    assert list(streams) == ["classification", "contrast"]
    assert streams["contrast"].follows == "classification"
    assert (streams["contrast"].recipe, streams["contrast"].views) == ("montage-2x2", 3)
    assert streams["classification"].recipe == "autoaugment+cutout"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": 1},
        {"heads": 3},
        {"heads": 4},
        {"views": 1},
        {"partner": "second-head"},
        {"partner": "none"},
        {"partner": "none", "heads": 1},
        {"separate_norm": True},
        {"momentum_schedule": "cosine"},
    ],
    ids=str,
)
@pytest.mark.parametrize("montages", [True, False])
def test_gradients_reach_what_they_must(dataset, options, montages):
    method = build(S3H(**options, **SMALL), dataset)
    batch = make_step(views=options.get("views", 2), montages=montages)
    terms = step(method, batch)
    assert all(term.isfinite() for term in terms.values())
    assert ("cross_model" in terms) == (method.partner == "momentum")
    for name, parameter in method.named_parameters():
        if name.startswith("copied"):
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad.abs().sum() > 0, name
    assert len(method.projection.stages) == options.get("heads", 2)
    assert method.predict(torch.randn(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "zero"),
    [("contrast_weight", ["projection", "centre_projection"]), ("ce_weight", [])],
)
def test_a_weight_of_zero_switches_its_term_off(dataset, name, zero):
    method = build(S3H(partner="none", **{name: 0.0}, **SMALL), dataset)
    terms = step(method, make_step())
    other = "cross_entropy" if name == "contrast_weight" else "contrastive"
    weight = method.ce_weight if other == "cross_entropy" else method.contrast_weight
    torch.testing.assert_close(terms["loss"].detach(), weight * terms[other])
    for part in zero:
        assert all(p.grad.abs().max() == 0 for p in getattr(method, part).parameters())


@pytest.mark.parametrize("part", ["backbone", "projection"])
def test_the_copy_follows_the_network(dataset, part):
    method = build(S3H(momentum=0.75, **SMALL), dataset)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    copied = getattr(method, f"copied_{part}")
    module = method.model.backbone if part == "backbone" else method.projection
    start = [p.clone() for p in copied.parameters()]
    assert all(map(torch.equal, start, module.parameters()))
    step(method, make_step(), optimizer)
    for old, new, target in zip(
        start, copied.parameters(), module.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * target)
    assert not all(map(torch.equal, start, module.parameters()))


def test_the_copy_stands_still_at_the_end_of_a_cosine(dataset):
    method = build(S3H(momentum_schedule="cosine", **SMALL), dataset)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    start = [p.clone() for p in method.copied_backbone.parameters()]
    method.begin_epoch(1.0)
    step(method, make_step(), optimizer)
    assert all(map(torch.equal, start, method.copied_backbone.parameters()))


def test_montages_can_have_statistics_of_their_own(dataset):
    batch = make_step()
    apart = build(S3H(separate_norm=True, partner="none", **SMALL), dataset)
    step(apart, batch)
    alone = build(S3H(), dataset).model.backbone
    alone(batch["classification"].images[0])
    for name, value in alone.named_buffers():
        torch.testing.assert_close(apart.model.backbone.get_buffer(name), value)
    together = build(S3H(partner="none", **SMALL), dataset)
    step(together, batch)
    name = "bn1.running_mean"
    mixed = together.model.backbone.get_buffer(name)
    assert not torch.allclose(mixed, alone.get_buffer(name))


def test_views_of_another_size_go_through_the_encoder(dataset):
    method = build(S3H(**SMALL), dataset)
    assert step(method, make_step(side=8))["loss"].isfinite()


def test_the_number_of_passes_over_rows_is_that_of_heads(dataset, monkeypatch):
    from s3h_ext.losses import balanced

    passes = []
    logsumexp = balanced.similarity_logsumexp

    def counted(queries, keys=None, **options):
        passes.append(keys is None)
        return logsumexp(queries, keys, **options)

    monkeypatch.setattr(balanced, "similarity_logsumexp", counted)
    method = build(S3H(heads=3, partner="second-head", **SMALL), dataset)
    method.loss(make_step())
    assert (sum(passes), len(passes)) == (3, 3 + 9)


@pytest.fixture
def planted():
    """Images of one colour each, which is their class's."""
    labels = np.arange(24) % 3
    images = np.zeros((24, 32, 32, 3), np.uint8)
    images[np.arange(24), :, :, labels] = 255
    return ImageSet(images, labels.astype(np.int64))


@pytest.mark.parametrize("recipe", ["montage-2x2-plain", "none"])
def test_labels_follow_what_the_regions_show(planted, recipe):
    method = S3H(recipe="none", contrast_recipe=recipe)
    pixels = ResidentPixels(planted, mean=(0.0,) * 3, std=(1.0,) * 3)
    plan = {"num_classes": 3, "batch_size": 24, "epochs": 1, "seed": 0}
    source = Source(pixels, method.streams(), **plan)
    batch = next(source.epoch(0))["contrast"]
    # A map of cells of four by four pixels: a feature is the colour of its region.
    maps = F.avg_pool2d(batch.images.flatten(0, 1), 4)
    features, labels = region_features(maps, batch)
    assert len(features) == 2 * 24 * (1 if recipe == "none" else 4)
    assert torch.equal(features.argmax(1), labels)
    torch.testing.assert_close(features.amax(1), torch.ones(len(features)))
    assert (labels.bincount() == len(labels) // 3).all()


def test_maps_too_small_for_quadrants_are_refused(dataset):
    message = r"model\.backbone: expected maps of at least 2 x 2, .* 1 x 1 from 16 x 16"
    model = build_model("resnet50", 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        S3H(**SMALL).build(model, dataset)
    assert_same_weights(model.state_dict(), before)
    BCL(**SMALL).build(model, dataset)  # has whole views


@pytest.mark.parametrize("split", [False, True])
def test_cws_goes_around_s3h(dataset, split):
    options = {"images_per_row": 5, "split_from": 0.0 if split else 0.9}
    method = ClasswiseSplitting(S3H(**SMALL), **options)
    build(method, dataset)
    assert method.label == "cws-s3h"
    assert method.begin_epoch(0.5) == split
    for _ in range(2):
        assert step(method, make_step())["loss"].isfinite()
    assert method.model.classifier.active == split


def test_without_a_partner_a_head_meets_its_own_centres(dataset):
    method = build(S3H(partner="none", contrast_recipe="supcon", **SMALL), dataset)
    batch = make_step(montages=False)
    found = method.loss(batch)["contrastive"]

    views = batch["contrast"].images.flatten(0, 1)
    images = torch.cat((batch["classification"].images[0], views))
    maps = method.model.backbone.feature_map(images)[6:]
    embeddings = method.projection(maps.mean((2, 3)))
    centres = method.centre_projection(class_directions(method.model.classifier))
    labels, within = batch["contrast"].labels.repeat(2), BalancedContrastiveLoss(0.1)
    own = [within(z, labels, c) for z, c in zip(embeddings, centres, strict=True)]
    torch.testing.assert_close(found, sum(own) / 2)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5])
def test_the_momentum_of_the_copy_rises_along_half_a_cosine(dataset, progress):
    options = {"momentum": 0.6, "momentum_schedule": "cosine", **SMALL}
    method = build(S3H(**options), dataset)
    assert not method.begin_epoch(progress)  # recorded once
    method.loss(make_step())
    with torch.no_grad():
        for parameter in method.model.backbone.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in method.copied_backbone.parameters()]
    method.after_step()
    share = 0.4 * (1 + math.cos(math.pi * progress)) / 2
    copied, backbone = method.copied_backbone, method.model.backbone
    for old, new, own in zip(
        before, copied.parameters(), backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(new, old + share * (own - old))
