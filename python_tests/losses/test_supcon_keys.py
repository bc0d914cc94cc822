"""SupCon with keys, masks, views and weights, against the equation by a matrix."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from python_tests.losses import backends
from python_tests.losses.law import assert_law, unit
from s3h_ext.losses import SupConLoss, supcon_loss

TAU, B, D, M, C = 0.2, 7, 6, 11, 3


def equation(z, given, mode="all", in_batch=True):
    """Each anchor's loss and whether it counts; ``z [B, V, D]``, all by matrices.

    ``-sum_p m_ip log(exp(s_ip) / sum_a exp(s_ia)) / sum_p m_ip`` over what i sees.
    """
    batch, views, _ = z.shape
    rows = z.flatten(0, 1)
    sample = torch.arange(batch).repeat_interleave(views)
    keys = given.get("keys", rows[:0])
    every = torch.cat([rows, keys.nan_to_num(0, 0, 0)])
    there = torch.ones(len(every), dtype=torch.bool)
    if given.get("key_labels") is not None:
        there[len(rows) :] = given["key_labels"] >= 0
    sees = ~torch.eye(len(rows), len(every), dtype=torch.bool) & there
    if given.get("self_index") is not None:
        step = views if mode == "one" else 1
        index = torch.full((len(rows),), -1)
        index[::step] = given["self_index"][::step]
        sees[:, len(rows) :] &= index[:, None] != torch.arange(len(keys))
    own = sample[:, None] == sample
    if not in_batch:
        sees[:, : len(rows)] &= own
    same = torch.zeros(len(rows), len(every), dtype=z.dtype)
    if given.get("labels") is not None:
        labels = given["labels"][sample]
        key_labels = given.get("key_labels", labels[:0])
        equal = labels[:, None] == torch.cat([labels, key_labels])
        same = (equal & (labels >= 0)[:, None]).to(z.dtype)
    elif given.get("mask") is not None:
        mask = given["mask"].to(z.dtype)[sample]
        columns = batch if in_batch else 0
        same[:, : len(rows)] = mask[:, sample] if in_batch else own
        same[:, len(rows) :] = mask[:, columns:]
    else:
        same[:, : len(rows)] = own.to(z.dtype)
    same = same * sees
    scores = rows @ every.T / TAU
    log_prob = scores - scores.masked_fill(~sees, -math.inf).logsumexp(1, keepdim=True)
    number = same.sum(1)
    losses = -torch.where(same > 0, same * log_prob, 0).sum(1)
    losses = losses / torch.where(number > 0, number, 1)
    losses = torch.where(number > 0, losses, 0)
    step = views if mode == "one" else 1
    return losses[::step], (number > 0)[::step]


def arguments(positives, keys, views=2, in_batch=True, dtype=torch.float64):
    """What a case gives to the loss; a row and a key have no class."""
    z = unit(B, views, D).to(dtype)
    given = {}
    if keys != "none":
        given["keys"] = unit(M, D).to(dtype)
        given["key_labels"] = torch.arange(M) % C
        if keys == "self":
            given["self_index"] = torch.arange(B * views) % (M + 2) - 1
        if keys in ("empty", "self"):
            given["key_labels"][[2, 5]] = -1
            given["keys"][2] = math.nan
        elif positives != "labels":
            del given["key_labels"]
    if positives == "labels":
        given["labels"] = torch.tensor([0, 1, 1, 2, -1, 5, 0])
    if positives.startswith("mask"):
        columns = (B if in_batch else 0) + (M if keys != "none" else 0)
        given["mask"] = torch.rand(B, columns) < 0.3
        given["mask"][3] = False
        if positives == "mask-weights":
            given["mask"] = given["mask"] * torch.rand(B, columns).double()
    return z, given


CASES = [
    SimpleNamespace(positives=p, keys=k, in_batch=b, mode=m, views=v)
    for p, k, b, m, v in itertools.product(
        ["labels", "views", "mask", "mask-weights"],
        ["none", "full", "empty", "self"],
        [True, False],
        ["all", "one"],
        [1, 2, 3],
    )
    if (b or k != "none") and (p != "views" or v > 1)
    if v == 2 or k in ("none", "empty")
]


def name_of(case):
    alone = "" if case.in_batch else "-alone"
    return f"{case.positives}-{case.keys}-{case.mode}-{case.views}{alone}"


def call(case, z, given, **options):
    if case.mode == "one" and "self_index" in given:
        given = given | {"self_index": given["self_index"][:: z.shape[1]]}
    options |= {"in_batch": case.in_batch, "contrast_mode": case.mode}
    return supcon_loss(z, **given, temperature=TAU, **options)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


EVERYWHERE = [
    pytest.param(case, backend, id=f"{name_of(case)}-{backend}")
    for case in CASES
    for backend in backends.NAMES
    # The slow one.
    if backend != "cuda-host" or (case.views == 2 and case.keys != "full")
]


@pytest.mark.parametrize(("case", "backend"), EVERYWHERE)
def test_equation(monkeypatch, case, backend):
    backends.use(monkeypatch, backend)
    z, given = arguments(case.positives, case.keys, case.views, case.in_batch)
    leaves = [z.requires_grad_()]
    if "keys" in given:
        leaves.append(given["keys"].requires_grad_())
    losses, counted = equation(z, given, case.mode, case.in_batch)
    found, stats = call(case, z, given, reduction="none", return_stats=True)
    assert (stats.counted, stats.skipped) == (counted.sum(), (~counted).sum())
    mean = losses.sum() / counted.sum().clamp(min=1)
    assert_close(call(case, z, given), mean)
    upstream = torch.linspace(-1, 2, len(losses), dtype=losses.dtype)
    expected = torch.autograd.grad(losses, leaves, upstream)
    for ours, right in zip(
        [found, *torch.autograd.grad(found, leaves, upstream)],
        [losses, *expected],
        strict=True,
    ):
        assert_close(ours, right)
        assert ours.isfinite().all()


TYPES = [torch.float32, torch.bfloat16, torch.float16]
LAWFUL = [c for c in CASES if c.views == 2 and c.keys != "full"]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", LAWFUL, ids=name_of)
def test_law_in_lower_precision(case, dtype):
    z, given = arguments(case.positives, case.keys, 2, case.in_batch, dtype)

    def differentiate(wide, ours):
        rows = z.to(wide).requires_grad_()
        words = dict(given)
        leaves = [rows]
        if "keys" in given:
            words["keys"] = given["keys"].to(wide).requires_grad_()
            leaves.append(words["keys"])
        if ours:
            losses = call(case, rows, words, reduction="none")
        else:
            losses, _ = equation(rows, words, case.mode, case.in_batch)
        upstream = torch.linspace(-1, 2, len(losses), dtype=losses.dtype)
        return [losses.detach(), *torch.autograd.grad(losses, leaves, upstream)]

    assert_law(differentiate, dtype)


@pytest.mark.parametrize("case", [c for c in CASES if c.views == 2], ids=name_of)
def test_weights_make_the_mean_a_weighted_one(case):
    z, given = arguments(case.positives, case.keys, 2, case.in_batch)
    z.requires_grad_()
    losses, counted = equation(z, given, case.mode, case.in_batch)
    weights = torch.linspace(0, 3, B)
    each = weights.double().repeat_interleave(2 if case.mode == "all" else 1)
    expected = {
        "mean": (each * losses).sum() / each[counted].sum(),
        "sum": (each * losses).sum(),
        "none": each * losses,
    }
    for reduction, right in expected.items():
        found = call(case, z, given, weights=weights, reduction=reduction)
        assert_close(found, right)
    (ours,) = torch.autograd.grad(call(case, z, given, weights=weights), z)
    assert_close(ours, torch.autograd.grad(expected["mean"], z)[0])


def test_weights_of_nothing_that_counts_give_0():
    z, labels = unit(B, D).requires_grad_(), torch.arange(B) % C
    loss = supcon_loss(z, labels, weights=torch.zeros(B))
    assert loss == 0
    loss.backward()
    assert not z.grad.any()


@pytest.mark.parametrize("case", LAWFUL, ids=name_of)
def test_a_batch_without_samples(case):
    z, given = arguments(case.positives, case.keys, case.views, case.in_batch)
    given = {
        name: value if name.startswith("key") else value[:0]
        for name, value in given.items()
    }
    if "mask" in given:
        given["mask"] = given["mask"][:, B if case.in_batch else 0 :]
    z = z[:0].requires_grad_()
    loss, stats = call(case, z, given, return_stats=True)
    assert (loss, stats.counted, stats.skipped) == (0, 0, 0)
    loss.backward()


def test_an_anchor_that_sees_nothing_is_skipped_and_harms_no_gradient():
    """Both log-sum-exps are -inf, where logaddexp has no gradient."""
    z = unit(1, D).requires_grad_()
    keys = unit(M, D).requires_grad_()
    empty = {"keys": keys, "key_labels": -torch.ones(M).long()}
    loss, stats = supcon_loss(z, torch.zeros(1).long(), **empty, return_stats=True)
    assert (loss, stats.skipped) == (0, 1)
    loss.backward()
    assert not z.grad.any()
    assert not keys.grad.any()


def test_the_module_holds_the_settings_of_the_function():
    z, given = arguments("labels", "empty")
    module = SupConLoss(TAU, "sum", 6, in_batch=False, contrast_mode="one")
    options = {"temperature": TAU, "reduction": "sum", "num_classes": 6}
    expected = supcon_loss(z, **given, in_batch=False, contrast_mode="one", **options)
    torch.testing.assert_close(module(z, **given), expected)


def test_autocast_rounds_nothing():
    for positives in ("labels", "mask-weights"):
        z, given = arguments(positives, "empty", dtype=torch.float32)
        for in_batch in (True, False):
            if "mask" in given and not in_batch:
                given["mask"] = given["mask"][:, B:]
            expected = supcon_loss(z, **given, in_batch=in_batch)
            with torch.autocast("cpu", torch.bfloat16):
                found = supcon_loss(z, **given, in_batch=in_batch)
            assert torch.equal(found, expected)


LABELS = {"labels": torch.arange(B)}
KEYS = {"keys": unit(M, D), "key_labels": torch.arange(M)}
COMBINATIONS = [
    ({**LABELS, "mask": torch.ones(B, B)}, "labels and mask must not be given"),
    ({**LABELS, "key_labels": torch.arange(M)}, "key_labels must be None without keys"),
    ({**LABELS, "self_index": torch.arange(B)}, "self_index must be None without keys"),
    ({**LABELS, "keys": unit(M, D)}, "key_labels must be given with labels and keys"),
    ({**LABELS, "in_batch": False}, "keys must be given with in_batch=False"),
    ({}, "features must be .* at least two views if labels and mask are None"),
    (KEYS, "features must be .* at least two views if labels and mask are None"),
    ({**LABELS, "contrast_mode": "one"}, "features must be .*contrast_mode='one'"),
    ({**LABELS, "contrast_mode": "two"}, "contrast_mode must be 'all' or 'one'"),
]


@pytest.mark.parametrize(("given", "message"), COMBINATIONS)
def test_arguments_that_do_not_fit_each_other(given, message):
    with pytest.raises(ValueError, match=message):
        supcon_loss(unit(B, D), **given)


@pytest.mark.parametrize(
    ("keys", "in_batch", "columns"),
    [("none", True, B), ("full", True, B + M), ("full", False, M)],
)
def test_the_columns_of_a_mask(keys, in_batch, columns):
    z, given = arguments("mask", keys, in_batch=in_batch)
    given["mask"] = torch.ones(B, columns + 1)
    said = rf"mask must have shape \({B}, {columns}\), got"
    with pytest.raises(ValueError, match=said):
        supcon_loss(z, **given, in_batch=in_batch)


AMOUNTS = {
    "integer": (lambda t: t.long(), TypeError, "bool or float.*, got torch.int64"),
    "negative": (lambda t: t - 0.5, ValueError, "0 or more, got -0.5"),
    "nan": (lambda t: t * math.nan, ValueError, "0 or more, got nan"),
    "gradient": (lambda t: t.requires_grad_(), ValueError, "not require a gradient"),
    "short": (lambda t: t[1:], ValueError, "shape .* got"),
    "device": (lambda t: t.to("meta"), ValueError, "on cpu, got meta"),
    "list": (lambda t: t.tolist(), TypeError, "a tensor, got list"),
}


@pytest.mark.parametrize(("change", "error", "message"), AMOUNTS.values(), ids=AMOUNTS)
@pytest.mark.parametrize("name", ["mask", "weights"])
def test_masks_and_weights_that_do_not_fit(name, change, error, message):
    amounts = {"mask": torch.eye(B), "weights": torch.zeros(B)}
    with pytest.raises(error, match=f"^{name} must .*{message}"):
        supcon_loss(unit(B, 2, D), **{name: change(amounts[name])})
