"""Every loss and every argument: what does not fit is refused by its name."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from s3h_ext import losses
from s3h_ext.losses import FocalLoss, LDAMLoss, LogitAdjustedLoss

N, D, C = 9, 4, 3
COUNTS = [50, 20, 3]


def rows(n):
    return torch.nn.functional.normalize(torch.randn(n, D), dim=1)


def good(name):
    """The loss of a name and arguments that it takes."""
    labels, logits = torch.arange(N) % C, torch.randn(N, C)
    contrast = {"features": rows(N), "labels": labels}
    keys = {"keys": rows(N + 1), "key_labels": torch.arange(N + 1) % C}
    queue = {"queue": rows(N + 2), "queue_labels": torch.arange(N + 2) % C}
    own, number = {"self_index": torch.arange(N)}, {"num_classes": C}
    classes = {"means": 0.5 * rows(C), "class_counts": torch.rand(C) + 1}
    classified = {"logits": logits, "labels": labels}
    weighted, centres = classified | {"weight": torch.rand(C)}, {"centres": rows(C)}
    contrasted = {
        "supcon": (losses.supcon_loss, number),
        "supcon-keys": (losses.supcon_loss, keys | own | number),
        "balanced": (losses.balanced_contrastive_loss, centres | number),
        "prototypical": (losses.prototypical_supcon_loss, {"prototypes": rows(C)}),
        "paco": (losses.paco_loss, {"logits": logits} | keys),
        "proco": (losses.proco_loss, classes),
        "cross-model": (
            losses.cross_model_contrastive_loss,
            keys | centres | queue | own | number,
        ),
    }
    if name in contrasted:
        loss, more = contrasted[name]
        return loss, contrast | more
    return {
        "logit-adjusted": (LogitAdjustedLoss(COUNTS), classified),
        "focal": (FocalLoss(), weighted),
        "ldam": (LDAMLoss(COUNTS), weighted),
    }[name]


#: The names of contrastive losses, each with its module.
KINDS = {
    "supcon": losses.SupConLoss,
    "supcon-keys": losses.SupConLoss,
    "balanced": losses.BalancedContrastiveLoss,
    "prototypical": losses.PrototypicalSupConLoss,
    "cross-model": losses.CrossModelContrastiveLoss,
    "paco": partial(losses.PaCoLoss, COUNTS),
    "proco": partial(losses.ProCoLoss, COUNTS, D),
}
CLASSIFICATION = ["logit-adjusted", "focal", "ldam"]
NAMES = [*KINDS, *CLASSIFICATION]
LABELS = ("labels", "key_labels", "queue_labels", "self_index")
MATRICES = (
    *("features", "logits", "keys", "queue", "centres", "prototypes", "means"),
    "weight",
)
#: What is done to a good argument, the error, and what it says was expected and came.
BAD = {
    LABELS: {
        "list": (lambda t: t.tolist(), TypeError, "a tensor, got list"),
        "array": (lambda t: t.numpy(), TypeError, "a tensor, got ndarray"),
        "float": (lambda t: t.float(), TypeError, "integers, got torch.float32"),
        "bool": (lambda t: t > 0, TypeError, "integers, got torch.bool"),
        "uint64": (lambda t: t.to(torch.uint64), TypeError, "integers, got .*uint64"),
        "column": (lambda t: t[:, None], ValueError, r"shape .* got \(\d+, 1\)"),
        "short": (lambda t: t[1:], ValueError, r"shape \(\d+,\).* got \(\d+,\)"),
        "device": (lambda t: t.to("meta"), ValueError, "on cpu.*, got meta"),
    },
    LABELS[:3]: {
        "high": (lambda t: t + 1, ValueError, "below 3, the number of classes, got 3"),
    },
    MATRICES: {
        "list": (lambda t: t.tolist(), TypeError, "a tensor, got list"),
        "array": (lambda t: t.numpy(), TypeError, "a tensor, got ndarray"),
        "integer": (lambda t: t.long(), TypeError, "float.*, got torch.int64"),
        "scalar": (lambda t: t.sum(), ValueError, r"\[.*\]|\(3,\).* got .*\(\)"),
    },
    MATRICES[:-1]: {
        "vector": (lambda t: t.flatten(), ValueError, r"\[.*\].* got .*\(\d+,\)"),
    },
    # The others are compared to the device of features and of logits.
    MATRICES[2:]: {
        "device": (lambda t: t.to("meta"), ValueError, "on cpu.*, got meta"),
    },
    ("keys", "queue", "centres", "prototypes", "means", "weight"): {
        "column": (lambda t: t[..., 1:], ValueError, r".*\d.*, got .*\d"),
    },
    ("keys", "queue", "centres", "prototypes"): {
        "wider": (lambda t: t.double(), TypeError, "float32, got torch.float64"),
    },
    ("num_classes",): {
        "other": (lambda c: c + 1, ValueError, "be 3, the number of centres, got 4"),
        "negative": (lambda c: -1, ValueError, "negative, got -1"),
        "float": (lambda c: 3.0, TypeError, "an int or None, got float"),
    },
}


CASES = [
    pytest.param(name, argument, *change, id=f"{name}-{argument}-{kind}")
    for name in NAMES
    for arguments, changes in BAD.items()
    for argument in arguments
    for kind, change in changes.items()
    if argument in good(name)[1]
    # SupCon has nothing that its number of classes could differ from.
    and not (name.startswith("supcon") and (argument, kind) == ("num_classes", "other"))
]


@pytest.mark.parametrize(("name", "argument", "change", "error", "message"), CASES)
def test_an_argument_that_does_not_fit(name, argument, change, error, message):
    loss, arguments = good(name)
    bad = {**arguments, argument: change(arguments[argument])}
    with pytest.raises(error, match=rf"(?s)^{argument} must .*{message}"):
        loss(**bad)


def test_every_loss_is_here():
    functions = {n for n in losses.__all__ if n.endswith("_loss")}
    assert functions == {good(name)[0].__name__ for name in KINDS}
    modules = {n for n in losses.__all__ if n.endswith("Loss")}
    kinds = {getattr(kind, "func", kind).__name__ for kind in KINDS.values()}
    classification = {type(good(name)[0]).__name__ for name in CLASSIFICATION}
    assert modules == kinds | classification


@pytest.mark.parametrize("name", NAMES)
def test_good_arguments(name):
    loss, arguments = good(name)
    assert loss(**arguments).isfinite()


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize("name", ["logit-adjusted", "ldam"])
def test_logits_of_other_classes_than_the_counts(name, columns):
    loss, arguments = good(name)
    arguments |= {"logits": torch.randn(N, columns)}
    arguments |= {"labels": torch.zeros(N).long()}
    arguments.pop("weight", None)
    said = rf"logits must be \[N, 3\].*\({N}, {columns}\)"
    with pytest.raises(ValueError, match=said):
        loss(**arguments)


TEMPERATURES = [
    (0, ValueError, "above 0, got 0"),
    (-1.0, ValueError, "above 0, got -1.0"),
    (math.nan, ValueError, "finite and above 0, got nan"),
    (math.inf, ValueError, "finite and above 0, got inf"),
    ("0.1", TypeError, "a number, got str"),
    (None, TypeError, "a number, got NoneType"),
    (torch.tensor(0.1), TypeError, "a number, got Tensor; to learn it"),
]


@pytest.mark.parametrize(("temperature", "error", "message"), TEMPERATURES)
@pytest.mark.parametrize("name", KINDS)
def test_temperatures(name, temperature, error, message):
    kind = KINDS[name]
    loss, arguments = good(name)
    for call in (kind, partial(loss, **arguments)):
        with pytest.raises(error, match=f"temperature must be .*{message}"):
            call(temperature=temperature)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("name", KINDS)
def test_temperatures_of_numpy(name, kind):
    loss, arguments = good(name)
    arguments["features"].requires_grad_()
    expected = loss(**arguments, temperature=float(kind(2)))
    torch.testing.assert_close(loss(**arguments, temperature=kind(2)), expected)
    assert type(KINDS[name](kind(2)).temperature) is float


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS.values()))
def test_settings_are_checked_when_they_are_made(kind):
    with pytest.raises(ValueError, match="reduction must be .* got 'avg'"):
        kind(reduction="avg")
    if kind in (KINDS["supcon"], KINDS["balanced"], KINDS["cross-model"]):
        with pytest.raises(ValueError, match="num_classes must not be negative"):
            kind(num_classes=-2)


@pytest.mark.parametrize("name", ["tau", "gamma", "max_margin", "scale", "beta"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1", torch.tensor(1.0)])
def test_numbers_of_classification(name, value):
    make = {
        "tau": partial(LogitAdjustedLoss, COUNTS),
        "gamma": FocalLoss,
        "max_margin": partial(LDAMLoss, COUNTS),
        "scale": partial(LDAMLoss, COUNTS),
        "beta": partial(losses.effective_number_weights, COUNTS),
    }[name]
    error = ValueError if isinstance(value, float) else TypeError
    with pytest.raises(error, match=f"{name}: expected a finite number .*, got"):
        make(**{name: value})


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        *((counts, ValueError) for counts in ([3, 0], [3, math.nan], [3, math.inf])),
        *(([], ValueError), ([[3, 2]], ValueError)),
        *(("many", TypeError), ([[3], [2, 1]], TypeError), (None, TypeError)),
    ],
)
@pytest.mark.parametrize(
    "make", [LogitAdjustedLoss, LDAMLoss, losses.effective_number_weights]
)
def test_class_counts(make, counts, error):
    with pytest.raises(error, match="class_counts: expected one count >= 1 for each"):
        make(counts)


INTEGERS = ["int8", "int16", "int32", "uint8", "uint16", "uint32"]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", NAMES)
def test_any_integers_are_labels(name, dtype):
    loss, arguments = good(name)
    expected = loss(**arguments)
    for argument in LABELS:
        if argument in arguments:
            arguments[argument] = arguments[argument].to(getattr(torch, dtype))
    torch.testing.assert_close(loss(**arguments), expected)


@pytest.mark.parametrize("label", [-1, -100, -(2**62)])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_with_a_negative_label_does_not_count(name, label):
    loss, arguments = good(name)
    first = next(iter(arguments))  # features or logits
    arguments[first].requires_grad_()
    arguments["labels"][2] = label
    value = loss(**arguments)
    (grad,) = torch.autograd.grad(value, arguments[first])
    if name in ("supcon", "supcon-keys", "balanced", "paco"):  # a key of the others
        each = loss(**arguments, reduction="none")
        assert each[2] == 0
        torch.testing.assert_close(value, each.sum() / (N - 1))
        return
    assert not grad[2].any()
    per_row = {first: arguments[first], "labels": arguments["labels"]}
    if "self_index" in arguments:
        per_row["self_index"] = arguments["self_index"]
    left = torch.arange(N) != 2
    without = arguments | {k: v[left] for k, v in per_row.items()}
    torch.testing.assert_close(loss(**without), value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [0, N])
def test_without_a_row_that_counts_the_loss_is_0(name, n):
    loss, arguments = good(name)
    first = next(iter(arguments))
    for argument in dict.fromkeys((first, "labels", "logits", "self_index")):
        if argument in arguments:
            arguments[argument] = arguments[argument][:n]
    arguments["labels"].fill_(-100)
    arguments[first].requires_grad_()
    value = loss(**arguments)
    assert value == 0
    value.backward()
    assert not arguments[first].grad.any()


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_per_sample_gradients(name):
    """Labels have no value to look at under vmap."""
    loss, arguments = good(name)
    logits, labels = arguments["logits"], arguments["labels"]

    def one(logits, label):
        return loss(logits[None], label[None])

    found = torch.vmap(torch.func.grad(one))(logits, labels)
    (expected,) = torch.autograd.grad(N * loss(logits.requires_grad_(), labels), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["logit-adjusted", "ldam"])
def test_logits_on_another_device_than_the_loss(name):
    loss, arguments = good(name)
    moved = {argument: tensor.to("meta") for argument, tensor in arguments.items()}
    with pytest.raises(ValueError, match="logits must be on cpu like the loss"):
        loss(**moved)


@pytest.mark.parametrize("name", list(KINDS)[1:])
def test_matrices_of_a_narrower_type(name):
    loss, arguments = good(name)
    names = ("keys", "queue", "centres", "prototypes", "means")
    found = [name for name in names if name in arguments]
    assert found
    for argument in found:
        narrow = arguments[argument].bfloat16()
        expected = loss(**arguments | {argument: narrow.float()})
        torch.testing.assert_close(loss(**arguments | {argument: narrow}), expected)
