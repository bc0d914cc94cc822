"""Prototype clustering against a loop in float64, and what a state must survive."""

import math

import pytest
import torch

from python_tests.settings import assert_same_bits, on_devices
from s3h_ext.ops import (
    PrototypeUpdate,
    accumulate_prototypes,
    apply_prototypes_,
    update_prototypes_,
)
from s3h_ext.ops.plain import prototypes as plain_forms

METRICS = ("euclidean", "cosine")


def draw(n=200, rows=(3, 1, 5, 2, 7), depth=19, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offsets = torch.tensor([0, *rows]).cumsum(0)
    total = int(offsets[-1])
    centres = torch.nn.functional.normalize(normal(total, depth), dim=1)
    masses = torch.randint(0, 4, (total,), generator=generator).double()
    sums = centres * masses[:, None]
    labels = torch.randint(-1, len(rows), (n,), generator=generator)
    state = dtype if dtype == torch.float64 else torch.float32
    return (
        normal(n, depth).to(dtype),
        labels,
        centres.to(state),
        sums.to(state),
        masses.to(state),
        offsets,
    )


def by_loop(features, labels, rows_of, masses, offsets, metric):
    """The definition, one sample after the other."""
    features, rows_of = features.double(), rows_of.double()
    rows, classes = len(rows_of), len(offsets) - 1
    assignments = torch.full_like(labels, -1)
    sums, counts = torch.zeros_like(rows_of), torch.zeros(rows).double()
    distortions = torch.zeros(rows).double()
    far = torch.full((classes,), -1.0).double()
    far_features = torch.zeros(classes, rows_of.shape[1]).double()
    for i, label in enumerate(labels.tolist()):
        if label < 0:
            continue
        f = features[i]
        if metric == "cosine":
            f = f / f.norm()
        best, row = math.inf, -1
        for k in range(int(offsets[label]), int(offsets[label + 1])):
            if k != offsets[label] and masses[k] == 0:
                continue
            p = rows_of[k]
            distance = 1 - f @ p if metric == "cosine" else (f - p).square().sum()
            if distance < best:
                best, row = float(distance), k
        assignments[i] = row
        sums[row] += f
        counts[row] += 1
        distortions[row] += best
        if best > far[label]:
            far[label], far_features[label] = best, f
    return PrototypeUpdate(assignments, sums, counts, distortions, far, far_features)


def close(ours, right, **tolerance):
    for name, a, b in zip(PrototypeUpdate._fields, ours, right, strict=True):
        torch.testing.assert_close(
            a, b.to(a.dtype), msg=lambda m, name=name: f"{name}: {m}", **tolerance
        )


# In one dimension every cosine distance is a tie, or all but one.
@pytest.mark.parametrize(
    ("metric", "depth"),
    [("euclidean", 1), *((m, d) for m in METRICS for d in (4, 19, 64, 131))],
)
def test_accumulate_is_its_definition(metric, depth):
    f, y, p, _, m, o = draw(depth=depth, seed=depth)
    right = by_loop(f, y, p, m, o, metric)
    close(accumulate_prototypes(f, y, p, m, o, metric=metric), right)
    plain = plain_forms.accumulate(f, y, p, m, o, metric == "cosine")
    close(plain, right)


@pytest.mark.parametrize("metric", METRICS)
def test_the_plain_form_is_not_rounded_under_autocast(metric):
    f, y, p, _, m, o = draw(n=500, depth=64)
    arguments = (f, y, p, m, o, metric == "cosine")
    right = plain_forms.accumulate(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = plain_forms.accumulate(*arguments)
    assert all(map(torch.equal, found, right))


def assert_lawful(ours, plain, exact):
    for a, b, c in zip(ours, plain, exact, strict=True):
        allowed = 2 * (b.double() - c).abs().max() + 1e-6 * c.abs().max()
        assert (a.double() - c).abs().max() <= allowed


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_the_law_of_errors(metric, dtype):
    f, y, p, _, m, o = draw(n=3000, depth=100, dtype=dtype)
    ours = accumulate_prototypes(f, y, p, m, o, metric=metric)
    wide = (f.double(), y, p.double(), m.double(), o, metric == "cosine")
    exact = plain_forms.accumulate(*wide)
    plain = plain_forms.accumulate(f, y, p, m, o, wide[-1])
    assert torch.equal(ours.assignments, exact[0])
    assert ours.sums.dtype == torch.float32
    assert_lawful(ours[1:], plain[1:], exact[1:])


def test_float16_subnormals_and_extremes_are_widened_exactly():
    values = torch.tensor([[6e-8, -6.1e-5, 65504.0, -0.0, 1.5, 3e-6]]).half()
    zero = torch.zeros(1, 6)
    update = accumulate_prototypes(
        values, torch.tensor([0]), zero, torch.zeros(1), torch.tensor([0, 1])
    )
    assert torch.equal(update.sums, values.float())


def of_batch(update):
    """What apply reads."""
    return update.sums, update.counts, update.distortions, update.far_features


def states(seed=0, dtype=torch.float64, depth=19):
    f, y, p, s, m, o = draw(depth=depth, dtype=dtype, seed=seed)
    return f, y, o, [p.clone(), s.clone(), m.clone()]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("expire_below", [0.0, 0.3])
def test_apply_is_its_definition(metric, expire_below):
    f, y, o, ours = states()
    y[y == 2] = 3  # class 2 is absent
    ours[2][:3] = 0  # class 0 is unborn
    ours[2][[10, 12, 15]] = 0  # and a row of class 3, two of class 4
    p, s, m = (t.clone() for t in ours)
    plain = [t.clone() for t in ours]
    update = accumulate_prototypes(f, y, p, m, o, metric=metric)
    settings = {"momentum": 0.9, "expire_below": expire_below}
    apply_prototypes_(*ours, o, update, metric=metric, **settings)
    births = 0
    for c in range(len(o) - 1):
        rows = slice(int(o[c]), int(o[c + 1]))
        if not (y == c).any():
            continue
        known = m[rows].sum() > 0
        m[rows] = 0.9 * m[rows] + update.counts[rows]
        s[rows] = 0.9 * s[rows] + update.sums[rows]
        moved = torch.arange(len(p))[rows][update.counts[rows] > 0]
        p[moved] = s[moved] / m[moved, None]
        if metric == "cosine":
            p[moved] = torch.nn.functional.normalize(s[moved], dim=1)
        least = expire_below * m[rows].mean()
        if known and m[rows].min() <= least:
            child = int(o[c]) + int(m[rows].argmin())
            errors = update.distortions.clone()
            errors[child] = 0
            parent = int(o[c]) + int(errors[rows].argmax())
            if errors[parent] == 0:
                continue
            shift = 0.03 * m[parent] * (update.far_features[c] - p[parent])
            s[child], s[parent] = (s[parent] + shift) / 2, (s[parent] - shift) / 2
            m[child] = m[parent] = m[parent] / 2
            for k in (child, parent):
                p[k] = s[k] / (s[k].norm() if metric == "cosine" else m[k])
            births += 1
    assert births == 2
    for a, b in zip(ours, (p, s, m), strict=True):
        torch.testing.assert_close(a, b)
    plain_forms.apply_prototypes_(
        *plain, o, *of_batch(update), 0.9, expire_below, metric == "cosine"
    )
    for a, b in zip(plain, (p, s, m), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("metric", METRICS)
def test_apply_in_float32_keeps_the_law_of_errors(metric):
    f, y, *start, o = draw(n=3000, depth=100, dtype=torch.float32)
    update = accumulate_prototypes(f, y, start[0], start[2], o, metric=metric)
    ours, plain = ([t.clone() for t in start] for _ in range(2))
    exact, batch = [t.double() for t in start], of_batch(update)
    apply_prototypes_(*ours, o, update, metric=metric)
    for state, added in ((plain, batch), (exact, [t.double() for t in batch])):
        settings = (0.99, 0.1, metric == "cosine")
        plain_forms.apply_prototypes_(*state, o, *added, *settings)
    assert_lawful(ours, plain, exact)


def test_absent_classes_and_empty_batches_change_no_bit():
    f, y, o, state = states()
    before = [t.clone() for t in state]
    for part in (slice(0, 0), y < 0):
        update = accumulate_prototypes(f[part], y[part], state[0], state[2], o)
        assert (update.far_distances == -1).all()
        assert not update.counts.any()
        assert (update.assignments == -1).all()
        apply_prototypes_(*state, o, update)
    assert all(map(torch.equal, state, before))
    update = accumulate_prototypes(f[y == 4], y[y == 4], state[0], state[2], o)
    apply_prototypes_(*state, o, update)
    kept = slice(0, int(o[4]))
    assert all(
        torch.equal(a[kept], b[kept]) for a, b in zip(state, before, strict=True)
    )
    assert not torch.equal(state[0], before[0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_samples_that_are_not_finite_are_ignored(metric, bad):
    f, y, p, _, m, o = draw()
    f[7, 3] = bad
    y[7] = 2
    update = accumulate_prototypes(f, y, p, m, o, metric=metric)
    y[7] = -1
    expected = accumulate_prototypes(f, y, p, m, o, metric=metric)
    assert all(map(torch.equal, update, expected))
    y[7] = 2
    plain = plain_forms.accumulate(f, y, p, m, o, metric == "cosine")
    close(plain, expected)


@pytest.mark.parametrize("length", [1e-30, 1e-23, 1e-19, 1.8e19, 1e30])
def test_cosine_knows_no_length(length):
    f, y, p, _, m, o = draw(dtype=torch.float32)
    f = torch.nn.functional.normalize(f, dim=1)
    p, m = p.float(), m.float()
    expected = accumulate_prototypes(f, y, p, m, o, metric="cosine")
    for form in (
        accumulate_prototypes(f * length, y, p, m, o, metric="cosine"),
        plain_forms.accumulate(f * length, y, p, m, o, True),
    ):
        assert torch.equal(form[0], expected.assignments)
        close(form, expected)


def test_zero_features_and_sums_that_cancel_keep_the_direction():
    o = torch.tensor([0, 1])
    state = [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.ones(1)]
    f = torch.tensor([[0.0, 0.0], [-1.0, 0.0]])
    update = accumulate_prototypes(
        f, torch.tensor([0, 0]), state[0], state[2], o, metric="cosine"
    )
    assert update.far_distances.item() == 2
    update = update._replace(sums=torch.tensor([[-0.5, 0.0]]))
    apply_prototypes_(*state, o, update, metric="cosine", momentum=0.5)
    assert state[0].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("metric", METRICS)
def test_same_bits_for_any_number_of_threads(metric, dtype):
    f, y, *state, o = draw(n=4000, rows=[1, 8, 16] * 30, depth=67, dtype=dtype)

    def step():
        p, s, m = (t.clone() for t in state)
        update = accumulate_prototypes(f, y, p, m, o, metric=metric)
        apply_prototypes_(p, s, m, o, update, metric=metric)
        return *update, p, s, m

    assert_same_bits(step)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(3, 1, 5, 2, 7), [1, 8, 16] * 30])
def test_update_is_accumulate_and_apply_to_the_bit(metric, dtype, rows):
    f, y, *state, o = draw(n=4000, rows=rows, depth=67, dtype=dtype)
    y[y == 2] = -1  # an absent class
    y[:2000] = 1  # and one that threads share
    settings = {"metric": metric, "momentum": 0.9, "expire_below": 0.3}
    two, plain = ([t.clone() for t in state] for _ in range(2))
    update = accumulate_prototypes(f, y, two[0], two[2], o, metric=metric)
    apply_prototypes_(*two, o, update, **settings)
    plain_forms.update_prototypes_(f, y, *plain, o, 0.9, 0.3, metric == "cosine")

    def at_once():
        one = [t.clone() for t in state]
        return update_prototypes_(f, y, *one, o, **settings), *one

    assignments, *one = assert_same_bits(at_once, (1, 2, 3))
    assert torch.equal(assignments, update.assignments)
    assert all(map(torch.equal, one, two))
    assert all(map(torch.equal, one, plain))


def test_any_strides():
    f, y, p, _, m, o = draw()
    expected = accumulate_prototypes(f, y, p, m, o)
    for features, prototypes in ((f, p.T.contiguous().T), (f.T.contiguous().T, p)):
        assert not (features.is_contiguous() and prototypes.is_contiguous())
        found = accumulate_prototypes(features, y, prototypes, m, o)
        assert all(map(torch.equal, found, expected))


def test_autograd_sees_that_the_state_has_changed():
    f, y, p, s, m, o = draw()
    f.requires_grad_()
    for change in (
        lambda: update_prototypes_(f, y, p, s, m, o),
        lambda: apply_prototypes_(p, s, m, o, accumulate_prototypes(f, y, p, m, o)),
    ):
        loss = (f @ p.T).sum()
        change()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@on_devices
def test_memory_is_used_again_on_request(device):
    f, y, p, _, m, o = (t.to(device) for t in draw())
    expected = accumulate_prototypes(f, y, p, m, o)
    other = accumulate_prototypes(f + 1, y, p, m, o)
    again = accumulate_prototypes(f, y, p, m, o, out=other)
    assert all(map(torch.equal, again, expected))
    assert again.sums.data_ptr() == other.sums.data_ptr()
    with pytest.raises(RuntimeError, match=r"out\.counts must have the state's"):
        accumulate_prototypes(f, y, p, m, o, out=other._replace(counts=m[1:]))


@pytest.mark.parametrize("metric", METRICS)
def test_plain_form_as_it_runs_on_cuda(metric):
    f, y, p, _, m, o = draw()
    expected = accumulate_prototypes(f, y, p, m, o, metric=metric)
    results = [torch.full_like(t, 7) for t in expected[1:]]
    assignments = plain_forms.accumulate_prototypes(
        f, y, p, m, o, *results, metric == "cosine"
    )
    close((assignments, *results), expected)


@pytest.mark.parametrize("cosine", [True, False])
def test_opcheck(cosine):
    f, y, p, s, m, o = draw()
    operators = torch.ops.s3h
    update = accumulate_prototypes(f, y, p, m, o)
    torch.library.opcheck(
        operators.accumulate_prototypes.default,
        (f, y, p, m, o, *(torch.empty_like(t) for t in update[1:]), cosine),
    )
    torch.library.opcheck(
        operators.apply_prototypes_.default,
        (p, s, m, o, *of_batch(update), 0.9, 0.1, cosine),
    )
    torch.library.opcheck(
        operators.update_prototypes_.default, (f, y, p, s, m, o, 0.9, 0.1, cosine)
    )


def test_compiled_without_a_break():
    f, y, o, state = states(dtype=torch.float32)
    expected = [t.clone() for t in state]
    apply_prototypes_(
        *expected, o, accumulate_prototypes(f, y, expected[0], expected[2], o)
    )

    @torch.compile(fullgraph=True)
    def step(f, y, p, s, m):
        update = accumulate_prototypes(f, y, p, m, o)
        apply_prototypes_(p, s, m, o, update)
        return update.assignments

    step(f, y, *state)
    assert all(map(torch.equal, state, expected))


def test_nothing_is_differentiated():
    f, y, p, _, m, o = draw()
    update = accumulate_prototypes(f.requires_grad_(), y, p, m, o)
    assert not any(t.requires_grad for t in update)


HIGH = r"labels\[11\] is 5"
METRIC = "metric: expected one of"


def test_bad_input():
    f, y, p, s, m, o = draw()
    high = y.clone()
    high[11] = 5
    for given, error, message in (
        ((f, high, p, m, o), RuntimeError, HIGH),
        ((f, y, p, m, torch.tensor([0, 4, 4, 18])), RuntimeError, "class 1 has no row"),
        ((f, y, p, m, o[:-1]), RuntimeError, "offsets must run from 0"),
        ((f, y, p.float(), m, o), RuntimeError, "prototypes must be float32"),
        ((f, y.float(), p, m, o), TypeError, "labels must be integers, got .*float32"),
        ((f, y, p, m, o[:0]), ValueError, r"offsets must be \[C \+ 1\], got .*\(0,\)"),
        ((f, y, p, m[1:], o), RuntimeError, r"masses must have .* \[18\], got \[17\]"),
    ):
        with pytest.raises(error, match=message):
            accumulate_prototypes(*given)
    with pytest.raises(RuntimeError, match="labels must be below"):
        plain_forms.accumulate(f, high, p, m, o, False)
    with pytest.raises(ValueError, match=METRIC):
        accumulate_prototypes(f, y, p, m, o, metric="manhattan")
    update = accumulate_prototypes(f, y, p, m, o)
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\)"):
        apply_prototypes_(p, s, m, o, update, momentum=1.0)
    across = s.T.contiguous().T
    with pytest.raises(RuntimeError, match="must be contiguous"):
        apply_prototypes_(p, across, m, o, update)
    before = [t.clone() for t in (p, s, m)]
    for given, more, error, message in (
        ((f, high, p, s, m, o), {}, RuntimeError, HIGH),
        ((f, y, p, s[1:], m, o), {}, RuntimeError, "sums must have the state's shape"),
        ((f, y, p, across, m, o), {}, RuntimeError, "must be contiguous"),
        (
            (f, y, p, s, m, o.double()),
            {},
            TypeError,
            "offsets must be .*, got .*float64",
        ),
        ((f, y, p, s, m, o), {"expire_below": -0.1}, ValueError, "expire_below: expec"),
        ((f, y, p, s, m, o), {"metric": "manhattan"}, ValueError, METRIC),
    ):
        with pytest.raises(error, match=message):
            update_prototypes_(*given, **more)
    assert all(map(torch.equal, before, (p, s, m)))
