import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from s3h_ext.data import Batch
from s3h_ext.data.source.batches import MixedViews
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.losses import (
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    PrototypicalSupConLoss,
    SupConLoss,
    effective_number_weights,
)
from s3h_ext.methods import (
    BCL,
    S3H,
    Baseline,
    ClassifierRetraining,
    ClasswiseSplitting,
    Hybrid,
    TauNormalization,
    hybrid,
)
from s3h_ext.models import build_model


def make_batch(views, size, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(views, size, 16, 16, 3, generator=generator)
    images = images.permute(0, 1, 4, 2, 3)
    labels = torch.randint(0, 3, (size,), generator=generator)
    return Batch(images, labels, torch.arange(size))


def build(method, dataset, classifier="linear"):
    torch.manual_seed(0)
    method.build(build_model("resnet20", 3, classifier=classifier), dataset)
    return method


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({}, "ce"),
        ({"loss": "logit-adjusted"}, "balanced-softmax"),
        ({"loss": "logit-adjusted", "tau": 2.0}, "logit-adjusted-2"),
        ({"loss": "focal"}, "focal"),
        ({"weight_beta": 0.9999}, "cb-ce"),
        ({"loss": "focal", "weight_beta": 0.9999}, "cb-focal"),
        ({"weight_beta": 0.9999, "reweight_from": 0.8}, "ce-drw"),
    ],
)
def test_baselines_train_and_have_the_names_of_the_tables(dataset, options, label):
    method = build(Baseline(**options), dataset)
    assert method.label == label
    terms = method.loss({"train": make_batch(1, 6, 0)})
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad is not None for p in method.parameters())
    assert method.predict(torch.randn(2, 3, 16, 16)).shape == (2, 3)


def test_cross_entropy_is_that_of_the_models_logits(dataset):
    method = build(Baseline(), dataset).eval()
    batch = make_batch(1, 6, 0)
    expected = F.cross_entropy(method.model(batch.images[0]), batch.labels)
    torch.testing.assert_close(method.loss({"train": batch})["loss"], expected)


def mixed(batch, seed):
    """The batch with other labels too, of some of its images."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(1, len(batch.labels), generator=generator)
    weights[:, ::3] = 1
    labels, indices = batch.labels.flip(0)[None], batch.indices.flip(0)[None]
    boxes = torch.zeros(1, len(batch.labels), 4, dtype=torch.int64)
    return replace(batch, mixed=MixedViews(labels, indices, weights, boxes))


def mixed_cross_entropy(logits, batch):
    first, second = (
        F.cross_entropy(logits, labels, reduction="none")
        for labels in (batch.labels, batch.labels.flip(0))
    )
    weight = batch.mixed.weights[0]
    return (weight * first + (1 - weight) * second).mean()


@pytest.mark.parametrize("loss", ["cross-entropy", "logit-adjusted"])
def test_mixed_images_count_for_both_labels(dataset, loss):
    method = build(Baseline(loss, mixing=Mixing()), dataset).eval()
    assert method.streams()["train"].mixing == Mixing()
    batch = mixed(make_batch(1, 9, 0), 1)
    logits = method.model(batch.images[0])
    if loss == "logit-adjusted":
        logits = logits + method.classify.criterion.adjustment
    found = method.loss({"train": batch})["loss"]
    torch.testing.assert_close(found, mixed_cross_entropy(logits, batch))


@pytest.mark.parametrize(
    ("kind", "options"), [(S3H, {"contrast_recipe": "crop-flip"}), (BCL, {})]
)
def test_only_the_classification_view_is_mixed(dataset, kind, options):
    options = {"projection_hidden": 8, "projection_dim": 4, **options}
    method = build(kind(mixing=Mixing(), **options), dataset).eval()
    streams = method.streams()
    assert streams["classification"].mixing == Mixing()
    assert streams["contrast"].mixing is None
    whole, contrast = make_batch(1, 9, 0), make_batch(2, 9, 1)
    contrast = replace(contrast, labels=whole.labels)
    plain = method.loss({"classification": whole, "contrast": contrast})
    whole = mixed(whole, 1)
    terms = method.loss({"classification": whole, "contrast": contrast})
    logits = method.model(whole.images[0]) + method.classify.criterion.adjustment
    expected = mixed_cross_entropy(logits, whole)
    torch.testing.assert_close(terms["cross_entropy"], expected.detach())
    assert torch.equal(terms["contrastive"], plain["contrastive"])


@pytest.mark.parametrize(
    "options", [{"loss": "focal"}, {"loss": "ldam"}, {"weight_beta": 0.9}]
)
def test_losses_of_one_label_refuse_mixing(options):
    with pytest.raises(ValueError, match=r"mixing: expected None, .* got 'cutmix'"):
        Baseline(**options, mixing=Mixing())


def test_sub_classes_refuse_mixing():
    with pytest.raises(ValueError, match=r"inner.mixing: expected None, got 'mixup'"):
        ClasswiseSplitting(Baseline(mixing=Mixing("mixup")))


def test_deferred_weights_begin_at_their_share_of_the_training(dataset):
    method = build(Baseline(weight_beta=0.9999, reweight_from=0.8), dataset).eval()
    batch = {"train": make_batch(1, 9, 1)}
    plain = build(Baseline(), dataset).eval().loss(batch)["loss"]
    weighted = build(Baseline(weight_beta=0.9999), dataset).eval().loss(batch)["loss"]
    for progress, expected in ((0.79, plain), (0.8, weighted)):
        assert not method.begin_epoch(progress)  # the same operations
        torch.testing.assert_close(method.loss(batch)["loss"], expected)
    assert not torch.isclose(plain, weighted)


def test_ldam_needs_the_cosine_classifier(dataset):
    said = "needs --model.classifier cosine, got LinearClassifier"
    with pytest.raises(ValueError, match=said):
        build(Baseline(loss="ldam"), dataset)
    deferred = Baseline(loss="ldam", weight_beta=0.9999, reweight_from=0.8)
    method = build(deferred, dataset, "cosine")
    assert method.label == "ldam-drw"
    method.begin_epoch(0.9)
    assert method.loss({"train": make_batch(1, 6, 0)})["loss"].isfinite()


@pytest.mark.parametrize("contrast", ["supcon", "prototypical"])
def test_hybrid_is_its_equation(dataset, contrast):
    method = build(Hybrid(contrast=contrast, temperature=0.3, views=2), dataset).eval()
    batch = {"contrast": make_batch(2, 5, 0), "classifier": make_batch(1, 5, 1)}
    method.begin_epoch(0.5)
    terms = method.loss(batch)
    views = batch["contrast"].images.flatten(0, 1)
    z = F.normalize(method.head(method.model.backbone(views)), dim=1)
    labels = batch["contrast"].labels.repeat(2)
    if contrast == "supcon":
        contrastive = SupConLoss(0.3)(z, labels)
    else:
        prototypes = F.normalize(method.prototypes, dim=-1)
        contrastive = PrototypicalSupConLoss(0.3)(z, labels, prototypes)
    logits = method.model(batch["classifier"].images[0])
    cross_entropy = F.cross_entropy(logits, batch["classifier"].labels)
    torch.testing.assert_close(terms["contrastive"], contrastive.detach())
    torch.testing.assert_close(terms["cross_entropy"], cross_entropy.detach())
    torch.testing.assert_close(terms["loss"], 0.75 * contrastive + 0.25 * cross_entropy)


@pytest.mark.parametrize("contrast", ["supcon", "prototypical"])
def test_hybrid_hands_16_bits_to_the_loss_on_a_gpu(dataset, contrast, monkeypatch):
    method = build(Hybrid(contrast=contrast, views=2), dataset)
    batch = {"contrast": make_batch(2, 8, 0), "classifier": make_batch(1, 8, 1)}
    method.begin_epoch(0.0)
    seen = []
    method.criterion.register_forward_pre_hook(
        lambda _, rows: seen.append([x.dtype for x in rows if x.is_floating_point()])
    )

    def gradient():
        method.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = method.loss(batch)["loss"]
        loss.backward()
        return torch.cat([p.grad.flatten() for p in method.head.parameters()])

    right = gradient()
    monkeypatch.setattr(
        hybrid, "unit_rows", lambda x: F.normalize(x.float(), dim=-1).to(x.dtype)
    )
    found = gradient()
    own, sixteen = seen
    assert set(own) == {torch.float32}
    assert set(sixteen) == {torch.bfloat16}
    # Rounded once more, by at most 2^-9 of each number, and divided by 0.1.
    assert (found - right).norm() < 0.05 * right.norm()


def test_hybrid_moves_from_the_first_branch_to_the_second(dataset):
    method = Hybrid()
    assert [method.alpha(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.75, 0.0]
    assert Hybrid(decay="linear").alpha(0.25) == 0.75
    method = build(method, dataset)
    batch = {"contrast": make_batch(2, 5, 0), "classifier": make_batch(1, 5, 1)}
    method.loss(batch)["loss"].backward()
    assert method.model.classifier.weight.grad.abs().max() == 0
    assert method.head[0].weight.grad.abs().max() > 0


def test_hybrid_streams_are_drawn_as_the_paper_says():
    streams = Hybrid(views=2).streams()
    assert list(streams) == ["contrast", "classifier"]
    assert streams["contrast"].sampler == "instance-balanced"
    assert streams["classifier"].sampler == "class-balanced"
    assert (streams["contrast"].views, streams["classifier"].views) == (2, 1)


def test_hybrid_s_branches_may_have_recipes_of_their_own():
    def recipes(method):
        return [stream.recipe for stream in method.streams().values()]

    assert recipes(Hybrid(recipe="supcon")) == ["supcon", "supcon"]
    own = Hybrid(recipe="supcon", classifier_recipe="crop-flip")
    assert recipes(own) == ["supcon", "crop-flip"]
    with pytest.raises(ValueError, match="^classifier_recipe: expected a recipe"):
        Hybrid(classifier_recipe="montage-2x2").streams()
    with pytest.raises(ValueError, match="^classifier_recipe: .* mean 'crop-flip'"):
        Hybrid(classifier_recipe="crop-flop").streams()


def test_hybrid_s_views_have_one_size(dataset):
    with pytest.raises(ValueError, match="^classifier_recipe: .* 16 x 16 .* 224 x 2"):
        build(Hybrid(classifier_recipe="evaluation"), dataset)


def test_psc_prototypes_learn_and_are_saved(dataset):
    psc = Hybrid(contrast="prototypical", views=1, prototypes_per_class=2)
    method = build(psc, dataset)
    batch = {"contrast": make_batch(1, 8, 0), "classifier": make_batch(1, 8, 1)}
    method.begin_epoch(0.2)
    method.loss(batch)["loss"].backward()
    assert method.prototypes.grad.abs().sum() > 0
    assert "prototypes" in method.state_dict()


NAN = float("nan")
BAD_OPTIONS = {
    Hybrid: [
        ({"contrast": "simclr"}, "contrast: expected one of"),
        ({"decay": "cosine"}, "decay: expected one of"),
        ({"views": 0}, "views: expected a whole number >= 1, got 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": NAN}, "temperature"),
        ({"prototypes_per_class": 2}, "'supcon' has no prototypes; expected 1, got 2"),
    ],
    Baseline: [
        ({"loss": "ce"}, "loss: expected one of"),
        ({"reweight_from": 1.5}, "reweight_from: expected a share"),
        ({"weight_beta": 0.9, "reweight_from": 1.0}, "reweight_from: expected a share"),
        ({"tau": 2.0}, "tau: only the loss 'logit-adjusted' uses it; expected 1.0"),
        ({"loss": "ldam", "gamma": 2.0}, "gamma: only the loss 'focal' uses it"),
        ({"weight_beta": 1.0}, r"^weight_beta: expected a number in \[0, 1\), got 1.0"),
        ({"weight_beta": NAN}, "^weight_beta: expected a number"),
        ({"loss": "logit-adjusted", "weight_beta": 0.9}, "weight_beta: "),
        ({"reweight_from": 0.8}, "weight_beta: reweight_from 0.8 needs .*, got 0"),
    ],
    S3H: [
        ({"partner": "teacher"}, "partner: expected one of"),
        ({"partner": "second-head", "heads": 1}, "heads: partner 'second-head' needs"),
        ({"heads": 0}, "heads: expected a whole number >= 1, got 0"),
        ({"views": 0}, "views: expected a whole number >= 1, got 0"),
        ({"ce_weight": -1.0}, "ce_weight: expected a finite number >= 0"),
        ({"cross_weight": NAN}, "cross_weight: expected a finite number"),
        ({"temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"momentum": 1.0}, r"momentum: expected a number in \[0, 1\), got 1.0"),
        ({"momentum_schedule": "step"}, "momentum_schedule: expected one of"),
    ],
    functools.partial(ClasswiseSplitting, Baseline()): [
        ({"max_rows": 0}, "max_rows: expected a whole number >= 1, got 0"),
        ({"split_from": 1.5}, "split_from: expected a share"),
        ({"subclass_weight": -0.1}, "subclass_weight: expected a share"),
        ({"momentum": 1.0}, "momentum: expected a number in"),
        ({"noise": NAN}, "noise: expected a finite number"),
        ({"metric": "cos"}, "metric: expected one of"),
        ({"mapping": "mean"}, "mapping: expected one of"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [(kind, *case) for kind, cases in BAD_OPTIONS.items() for case in cases],
)
def test_bad_options_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize("method", [Baseline, BCL, ClassifierRetraining, Hybrid, S3H])
def test_a_montage_is_not_trained_on_the_label_of_one_image(method):
    with pytest.raises(ValueError, match="one image per view, got 'montage-2x2': a"):
        method(recipe="montage-2x2").streams()
    with pytest.raises(ValueError, match="did you mean 'montage-2x2'"):
        method(recipe="montage").streams()


COUNTS = torch.tensor([40, 20, 5])
WEIGHTS = effective_number_weights(COUNTS, 0.9)


@pytest.mark.parametrize(
    ("options", "classifier", "criterion"),
    [
        (
            {"loss": "logit-adjusted", "tau": 1.5},
            "linear",
            LogitAdjustedLoss(COUNTS, 1.5),
        ),
        (
            {"loss": "focal", "gamma": 2.0, "weight_beta": 0.9},
            "linear",
            lambda logits, labels: FocalLoss(2.0)(logits, labels, WEIGHTS),
        ),
        (
            {"loss": "ldam", "max_margin": 0.3, "weight_beta": 0.9},
            "cosine",
            lambda logits, labels: LDAMLoss(COUNTS, 0.3, 30.0)(logits, labels, WEIGHTS),
        ),
    ],
)
def test_other_losses_are_those_of_their_options(
    dataset, options, classifier, criterion
):
    method = build(Baseline(**options), dataset, classifier).eval()
    batch = make_batch(1, 12, 0)
    expected = criterion(method.model(batch.images[0]), batch.labels)
    plain = F.cross_entropy(method.model(batch.images[0]), batch.labels)
    found = method.loss({"train": batch})["loss"]
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, plain)


@pytest.mark.parametrize("kind", [Baseline, ClassifierRetraining, Hybrid, S3H, BCL])
def test_streams_are_those_of_the_options(kind):
    samplers = {"sampler": "square-root"}
    if kind is Hybrid:
        names = ("contrast_sampler", "classifier_sampler")
        samplers = dict(zip(names, ("square-root", "progressive"), strict=True))
    streams = list(kind(recipe="crop", **samplers).streams().values())
    for stream, sampler in zip(streams, samplers.values(), strict=False):
        assert (stream.sampler, stream.recipe) == (sampler, "crop")


def test_crt_trains_anew_and_class_balanced(dataset):
    method = ClassifierRetraining()
    assert method.streams()["train"].sampler == "class-balanced"
    model = build_model("resnet20", 3)
    before = model.classifier.weight.clone()
    method.build(model, dataset)
    assert not torch.isclose(model.classifier.weight, before).any()


def test_tau_normalisation_divides_by_a_power_of_the_length(dataset):
    model = build_model("resnet20", 3)
    weight = model.classifier.weight.clone()
    TauNormalization(0.5).build(model, dataset)
    expected = weight / weight.norm(dim=1, keepdim=True) ** 0.5
    torch.testing.assert_close(model.classifier.weight, expected)
    assert not model.classifier.bias.any()


def test_the_length_of_a_prototype_means_nothing(dataset):
    method = build(Hybrid(contrast="prototypical"), dataset).eval()
    batch = {"contrast": make_batch(2, 5, 0), "classifier": make_batch(1, 5, 1)}
    before = method.loss(batch)["loss"]
    with torch.no_grad():
        method.prototypes.mul_(3.0)
    torch.testing.assert_close(method.loss(batch)["loss"], before)
