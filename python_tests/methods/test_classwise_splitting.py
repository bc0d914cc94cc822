"""CWS: its equation, what it wraps, and what it must not change."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from python_tests.small_runs import assert_same_weights
from s3h_ext.data import Batch
from s3h_ext.losses import LogitAdjustedLoss
from s3h_ext.methods import Baseline, ClassifierRetraining, ClasswiseSplitting, Hybrid
from s3h_ext.methods.classwise_splitting import subclass_rows
from s3h_ext.models import (
    CosineClassifier,
    GroupedClassifier,
    LinearClassifier,
    build_model,
)
from s3h_ext.ops import update_prototypes_

DEFERRED = {"weight_beta": 0.9999, "reweight_from": 0.8}
INNER = {
    "ce": (Baseline, {}),
    "cb-ce": (Baseline, {"weight_beta": 0.9999}),
    "balanced-softmax": (Baseline, {"loss": "logit-adjusted"}),
    "focal": (Baseline, {"loss": "focal"}),
    "ldam-drw": (Baseline, {"loss": "ldam", **DEFERRED}),
    "hybrid-sc": (Hybrid, {}),
    "hybrid-psc": (Hybrid, {"contrast": "prototypical"}),
}


def make_batches(method, seed, size=12):
    generator = torch.Generator().manual_seed(seed)
    batches = {}
    for name, stream in method.streams().items():
        images = torch.randn(stream.views, size, 16, 16, 3, generator=generator)
        labels = torch.randint(0, 3, (size,), generator=generator)
        batches[name] = Batch(images.permute(0, 1, 4, 2, 3), labels, torch.arange(size))
    return batches


def make(name, dataset, wrapped=True, **options):
    kind, settings = INNER[name]
    method = kind(**settings)
    if wrapped:
        options = {"images_per_row": 5, "split_from": 0.5, **options}
        method = ClasswiseSplitting(method, **options)
    torch.manual_seed(0)
    classifier = "cosine" if name == "ldam-drw" else "linear"
    method.build(build_model("resnet20", 3, classifier=classifier), dataset)
    return method


def sgd(method):
    return torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)


def step(method, optimizer, number):
    terms = method.loss(make_batches(method, number))
    optimizer.zero_grad()
    terms["loss"].backward()
    optimizer.step()
    method.after_step()
    return terms["loss"].item()


def train(method, steps=6, start=0):
    """SGD over all of a training of six steps; returns the losses."""
    optimizer, losses = sgd(method), []
    for number in range(start, start + steps):
        method.begin_epoch(number / 6)
        losses.append(step(method, optimizer, number))
    return losses


@pytest.mark.parametrize("name", INNER)
def test_one_row_per_class_is_the_wrapped_method_to_the_bit(dataset, name):
    plain = make(name, dataset, wrapped=False)
    wrapped = make(name, dataset, max_rows=1)
    assert train(plain) == train(wrapped)
    assert_same_weights(wrapped.inner.state_dict(), plain.state_dict())
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(plain.eval().predict(images), wrapped.eval().predict(images))


@pytest.mark.parametrize("name", INNER)
def test_it_wraps_every_classifier_method(dataset, name):
    method = make(name, dataset)
    assert method.label == ("cws" if name == "cb-ce" else f"cws-{name}")
    losses = train(method)
    assert np.isfinite(losses).all()
    assert method.subclasses.head.offsets.tolist() == [0, 8, 12, 13]
    assert (method.subclasses.masses > 0).sum() > 3
    assert method.predict(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    assert method.model.classifier.weight.grad.abs().sum(dim=1).gt(0).all()


class OnItsOwnNetwork(Baseline):
    def build(self, model, dataset):
        super().build(build_model("resnet20", 3), dataset)


def test_it_splits_the_network_that_the_wrapped_method_brings(dataset):
    method = ClasswiseSplitting(OnItsOwnNetwork(), images_per_row=5, split_from=0)
    other = build_model("resnet20", 3)
    method.build(other, dataset)
    assert np.isfinite(train(method, steps=1)).all()
    assert method.model is method.inner.model
    assert method.model.classifier.active
    assert isinstance(other.classifier, LinearClassifier)


@pytest.mark.parametrize("mapping", ["logsumexp", "max"])
def test_loss_is_its_equation(dataset, mapping):
    method = make("cb-ce", dataset, mapping=mapping, subclass_weight=0.3, split_from=0)
    train(method, steps=3)
    method.eval()
    batch = make_batches(method, 9)
    found = method.subclasses
    method.begin_epoch(5 / 6)
    before = [found.prototypes.clone(), found.masses.clone()]
    terms = method.loss(batch)
    method.after_step()
    assert torch.equal(before[0], found.prototypes)
    assert torch.equal(before[1], found.masses)
    features = method.model.backbone(batch["train"].images[0])
    labels, o = batch["train"].labels, found.head.offsets
    logits = F.linear(features, method.model.classifier.weight)
    logits = logits + method.model.classifier.bias
    join = torch.logsumexp if mapping == "logsumexp" else torch.amax
    groups = [join(logits[:, o[c] : o[c + 1]], dim=1) for c in range(3)]
    group = torch.stack(groups, dim=1)
    rows = []
    for f, c in zip(features, labels.tolist(), strict=True):
        born = found.masses[o[c] : o[c + 1]] > 0
        gaps = (found.prototypes[o[c] : o[c + 1]] - f).square().sum(dim=1)
        rows.append(int(o[c] + torch.where(born, gaps, torch.inf).argmin()))
    share = found.masses / torch.stack(
        [found.masses[o[c] : o[c + 1]].sum() for c in (0,) * 8 + (1,) * 4 + (2,)]
    )
    counts = (share * torch.tensor([40] * 8 + [20] * 4 + [5])).clamp(min=1)
    torch.testing.assert_close(found.counts, counts)

    def balanced(counts):
        weights = (1 - 0.9999) / (1 - 0.9999 ** counts.double())
        return (weights * len(counts) / weights.sum()).float()

    expected = 0.7 * F.cross_entropy(
        group, labels, weight=balanced(torch.from_numpy(dataset.class_counts))
    ) + 0.3 * F.cross_entropy(logits, torch.tensor(rows), weight=balanced(counts))
    torch.testing.assert_close(terms["loss"], expected)
    torch.testing.assert_close(method.predict(batch["train"].images[0]), group)


def test_nothing_is_split_before_its_time(dataset):
    method = make("ce", dataset)
    train(method, steps=3)
    assert not method.model.classifier.active
    assert not method.subclasses.masses.any()
    train(method, steps=1, start=3)
    assert method.model.classifier.active
    assert method.subclasses.masses.any()


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_resume_restores_clusters_exactly(dataset, stop):
    def train(method, optimizer, first, last, resumed=False):
        for number in range(first, last):
            # Two steps an epoch, so that some stops lie inside one.
            if number % 2 == 0 or (resumed and number == first):
                method.begin_epoch(number // 2 / 3)
            step(method, optimizer, number)

    whole = make("cb-ce", dataset, split_from=0.3, noise=0.1)
    optimizer = sgd(whole)
    train(whole, optimizer, 0, stop)
    kept = {k: v.clone() for k, v in whole.state_dict().items()}
    momenta = copy.deepcopy(optimizer.state_dict())
    random = torch.get_rng_state()
    train(whole, optimizer, stop, 6)
    resumed = make("cb-ce", dataset, split_from=0.3, noise=0.1)
    optimizer = sgd(resumed)
    resumed.load_state_dict(kept)
    optimizer.load_state_dict(momenta)
    torch.set_rng_state(random)
    train(resumed, optimizer, stop, 6, resumed=True)
    assert resumed.subclasses.masses.any()
    assert_same_weights(resumed.state_dict(), whole.state_dict())


def test_rule_of_the_rows():
    assert subclass_rows([5000, 500, 50]).tolist() == [8, 8, 1]
    assert subclass_rows([500, 60, 12, 5], max_rows=100).tolist() == [50, 6, 1, 1]
    assert subclass_rows([500, 60], images_per_row=100).tolist() == [5, 1]


@pytest.mark.parametrize("mapping", ["logsumexp", "max"])
def test_splitting_leaves_the_class_logits_where_they_were(mapping):
    offsets = torch.tensor([0, 4, 5, 7])
    head = GroupedClassifier(LinearClassifier(16, 3), offsets, mapping)
    features = torch.randn(20, 16)
    before = head(features)
    rows = head.weight[offsets[:-1]].clone()
    head.split_(0.0)
    torch.testing.assert_close(head(features), before)
    head.split_(0.1)
    assert torch.equal(head.weight[4], rows[1])  # a class of one row gets no noise
    apart = (head.weight[:4] - rows[0]).norm(dim=1) / rows[0].norm()
    assert ((apart > 0.03) & (apart < 0.3)).all()
    cosine = GroupedClassifier(CosineClassifier(16, 3), offsets, mapping)
    before = cosine(features)
    cosine.split_(0.0)
    gain = torch.tensor([4.0, 1.0, 2.0]).log() if mapping == "logsumexp" else 0
    torch.testing.assert_close(cosine(features), before + gain)


def test_max_and_its_gradient_reach_one_row():
    head = GroupedClassifier(LinearClassifier(4, 2), torch.tensor([0, 3, 4]), "max")
    head.split_(1.0)
    head(torch.randn(1, 4)).sum().backward()
    assert head.weight.grad.abs().sum(dim=1).gt(0).sum() == 2


def test_only_classifier_methods_can_be_wrapped():
    with pytest.raises(TypeError, match="inner: expected a method with a classif"):
        ClasswiseSplitting(ClassifierRetraining())


@pytest.mark.parametrize("bf16", [False, True])
def test_analysis_is_of_the_training_images(dataset, bf16):
    method = make("ce", dataset, split_from=0)
    images, labels = torch.randn(1, 65, 3, 32, 32), torch.tensor(dataset.train.labels)
    batch = Batch(images, labels, torch.arange(65))
    assert method.analyse([batch]) == {}
    train(method)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = method.eval().analyse([batch])
    assert found["points"].dtype == np.float32
    assert found["classes"].tolist() == [0, 1]
    assert found["sizes"].shape == (len(found["moments"]), 13)
    sizes = found["sizes"][-1]
    assert [sizes[:8].sum(), sizes[8:12].sum(), sizes[12]] == [40, 20, 5]
    assert found["moments"][-1] == 1
    assert found["examples"].shape == (12, 10)
    for row, examples in enumerate(found["examples"]):
        there = examples[examples >= 0]
        assert len(there) == min(10, sizes[row])
        assert (dataset.train.labels[there] == (0 if row < 8 else 1)).all()
    assert found["points"].shape == (60, 2)
    assert found["centres"].shape == (12, 2)


def after_steps(method, steps=4):
    for step in range(steps):
        method.begin_epoch(step / 6)
        method.loss(make_batches(method, step))
        method.after_step()
    return method


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_clusters_move_as_the_options_say(dataset, metric):
    options = {"split_from": 0, "metric": metric, "momentum": 0.5, "expire_below": 0.4}
    method = after_steps(make("ce", dataset, **options))
    sub = method.subclasses
    method.model.backbone.eval()  # the features below are those of the step
    batch = make_batches(method, 9)
    features = method.model.backbone(batch["train"].images[0]).detach()
    state = [t.clone() for t in (sub.prototypes, sub.sums, sub.masses)]
    settings = {"momentum": 0.5, "expire_below": 0.4, "metric": metric}
    labels, offsets = batch["train"].labels, sub.head.offsets
    update_prototypes_(features, labels, *state, offsets, **settings)
    method.loss(batch)
    method.after_step()
    torch.testing.assert_close([sub.prototypes, sub.sums, sub.masses], state)


def test_the_prior_of_subclasses_is_that_of_their_counts(dataset):
    method = after_steps(make("balanced-softmax", dataset, split_from=0)).eval()
    method.begin_epoch(5 / 6)
    sub = method.subclasses
    batch = make_batches(method, 9)
    found = method.loss(batch)["subclass"]
    features = method.model.backbone(batch["train"].images[0])
    logits = method.model.classifier.subclass_logits(features)
    update = sub.assign(features, batch["train"].labels)
    assert len(set(sub.counts.tolist())) > 3
    expected = LogitAdjustedLoss(sub.counts)(logits, update.assignments)
    torch.testing.assert_close(found, expected)
