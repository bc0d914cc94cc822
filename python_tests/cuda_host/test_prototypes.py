"""The CUDA prototype kernels, executed on the host, against the float64 oracle."""

import pytest
import torch

from python_tests.cuda_host import kernels
from python_tests.ops.test_prototypes import METRICS, draw
from python_tests.ops.test_prototypes_cuda import SETTINGS, by_tensors
from python_tests.settings import every_type
from s3h_ext.ops import update_prototypes_

NAMES = (
    "assignments sums counts distortions far_distances far_features new_prototypes "
    "new_sums new_masses"
).split()


def execute(problem, metric, **execution):
    """Returns what a batch adds, and the state after it."""
    features, labels, prototypes, sums, masses, offsets = problem
    n, depth = features.shape
    rows, classes, real = len(masses), len(offsets) - 1, masses.dtype
    types = [torch.int64, *[real] * 8]
    shapes = [(n,), (rows, depth), (rows,), (rows,), (classes,), (classes, depth)]
    shapes += [(rows, depth), (rows, depth), (rows,)]
    type_number = kernels.SCALARS.index(features.dtype)
    return kernels.execute(
        "prototypes",
        [type_number, metric == "cosine", n, rows, classes, depth],
        list(SETTINGS.values()),
        [features, labels, prototypes, sums, masses, offsets],
        list(zip(types, shapes, strict=True)),
        **execution,
    )


def check(problem, metric, **execution):
    found = execute(problem, metric, **execution)
    exact = by_tensors(problem, metric, wide=True)
    theirs = by_tensors(problem, metric)
    assert torch.equal(found[0], exact[0])
    for name, a, b, c in list(zip(NAMES, found, theirs, exact, strict=True))[1:]:
        allowed = 2 * (b.double() - c).abs().max()
        allowed += 8 * torch.finfo(a.dtype).eps * c.abs().max().clamp(min=1)
        assert (a.double() - c).abs().max() <= allowed, name


@pytest.mark.parametrize("metric", METRICS)
@every_type
@pytest.mark.parametrize("depth", [19, 64])
def test_definition(metric, dtype, depth):
    check(draw(depth=depth, dtype=dtype), metric)


@pytest.mark.parametrize("metric", METRICS)
def test_long_rows_and_large_classes(metric):
    check(draw(n=60, rows=(41, 1, 70), depth=300), metric)
    check(draw(n=60, rows=(41, 1, 70), depth=301, dtype=torch.float32), metric)


def test_many_samples_of_few_classes():
    check(draw(n=5000, rows=(2, 1), depth=8, dtype=torch.float32), "euclidean")


@pytest.mark.parametrize("metric", METRICS)
def test_absent_classes_keep_everything(metric):
    problem = draw()
    _, labels, prototypes, sums, masses, offsets = problem
    labels[labels == 2] = 3
    found = dict(zip(NAMES, execute(problem, metric), strict=True))
    rows = slice(int(offsets[2]), int(offsets[3]))
    assert torch.equal(found["new_prototypes"][rows], prototypes[rows])
    assert torch.equal(found["new_sums"][rows], sums[rows])
    assert torch.equal(found["new_masses"][rows], masses[rows])
    assert found["far_distances"][2] == -1
    assert (found["far_features"][2] == 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_empty_batch(metric):
    problem = draw(n=0)
    found = dict(zip(NAMES, execute(problem, metric), strict=True))
    assert (found["sums"] == 0).all()
    assert (found["counts"] == 0).all()
    assert torch.equal(found["new_prototypes"], problem[2])


@pytest.mark.parametrize("metric", METRICS)
def test_samples_that_are_not_finite_are_ignored(metric):
    problem = draw(dtype=torch.float32)
    problem[0][3], problem[0][17] = torch.nan, torch.inf
    problem[1][3] = problem[1][17] = 2
    found = execute(problem, metric)
    assert found[0][3] == found[0][17] == -1
    assert all(t.isfinite().all() for t in found)
    problem[1][3] = problem[1][17] = -1
    assert all(map(torch.equal, found, execute(problem, metric)))


def test_first_of_equally_far_samples():
    features = torch.tensor([[2.0], [-2.0], [2.0], [1.0]])
    state = (torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1))
    labels, offsets = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1])
    for seed in range(4):
        found = execute((features, labels, *state, offsets), "euclidean", seed=seed)
        assert found[4].item() == 4
        assert found[5].item() == 2


def test_a_label_out_of_range_stops():
    problem = draw()
    problem[1][5] = 5
    with pytest.raises(RuntimeError, match="label is not below"):
        execute(problem, "euclidean")


@pytest.mark.parametrize("metric", METRICS)
def test_bits_do_not_depend_on_the_order_of_blocks(metric):
    problem = draw(n=4500, depth=12, dtype=torch.float32)
    runs = [execute(problem, metric, seed=seed) for seed in (1, 2)]
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("length", [1e-30, 1e-25, 1e-19, 1.8e19, 1e20, 1e30])
@pytest.mark.parametrize("depth", [18, 64])
def test_cosine_knows_no_length(length, depth):
    features, *rest = draw(n=40, depth=depth, dtype=torch.float32)
    features = torch.nn.functional.normalize(features, dim=1)
    right = execute((features, *rest), "cosine")
    found = execute((features * length, *rest), "cosine")
    assert torch.equal(found[0], right[0])
    for name, a, b in list(zip(NAMES, found, right, strict=True))[1:]:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=name)


def test_a_row_too_long_for_its_inverse_is_ignored():
    features, *rest = draw(n=10, dtype=torch.float32)
    features[3] = 3e38
    found = execute((features, *rest), "cosine")
    theirs = by_tensors((features, *rest), "cosine")
    assert torch.equal(found[0], theirs[0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["random", "positive", "identical"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_class_of_thousands_of_rows(metric, kind, dtype):
    features = draw(n=8000, rows=(2,), depth=16, dtype=dtype)[0]
    features = features.abs() if kind == "positive" else features
    features = features[:1].expand(8000, 16) if kind == "identical" else features
    state = (torch.eye(2, 16), torch.eye(2, 16), torch.ones(2))
    labels, offsets = torch.zeros(8000, dtype=torch.int64), torch.tensor([0, 2])
    problem = (features.contiguous(), labels, *state, offsets)
    found = dict(zip(NAMES, execute(problem, metric), strict=True))
    exact = dict(zip(NAMES, by_tensors(problem, metric, wide=True), strict=True))
    theirs = dict(zip(NAMES, by_tensors(problem, metric), strict=True))
    for name in ("sums", "counts", "distortions", "new_sums", "new_prototypes"):
        allowed = 2 * (theirs[name].double() - exact[name]).norm()
        allowed += 2 * torch.finfo(torch.float32).eps * exact[name].norm()
        assert (found[name].double() - exact[name]).norm() <= allowed, name


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("depth", [16, 33, 128, 512])
@pytest.mark.parametrize("count", [3, 64])
def test_equal_samples_are_not_split(metric, depth, count):
    generator = torch.Generator().manual_seed(depth + count)
    rows, classes = 3, 8
    samples = torch.randn(classes, depth, generator=generator)
    samples *= torch.logspace(-3, 3, classes)[:, None]
    features = samples.repeat(count, 1)
    labels = torch.arange(classes).repeat(count)
    offsets = torch.arange(0, rows * classes + 1, rows)
    state = [*torch.zeros(2, rows * classes, depth), torch.zeros(rows * classes)]
    for _ in range(6):
        problem = (features, labels, *state, offsets)
        state = list(execute(problem, metric)[-3:])
        assert ((state[2] > 0).view(classes, rows).sum(dim=1) == 1).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("spread", [1e-6, 1e-2, 1.0])
def test_every_form_splits_the_same_rows(metric, spread):
    generator = torch.Generator().manual_seed(1)
    classes, depth = 30, 32
    centre = torch.randn(classes, depth, generator=generator)
    offsets = torch.arange(0, 4 * classes + 1, 4)
    labels = torch.arange(classes).repeat(6)
    zeros = torch.zeros(4 * classes, depth), torch.zeros(4 * classes)
    states = [[zeros[0].clone(), zeros[0].clone(), zeros[1].clone()] for _ in range(3)]
    for _ in range(4):
        noise = torch.randn(len(labels), depth, generator=generator)
        batch = centre[labels] + spread * noise
        # All forms from the same state, or they might drift apart.
        problem = (batch, labels, *states[0], offsets)
        states[2] = [t.clone() for t in states[0]]
        states[1] = by_tensors(problem, metric)[-3:]
        state = (*states[2], offsets)
        update_prototypes_(batch, labels, *state, metric=metric, **SETTINGS)
        states[0] = list(execute(problem, metric)[-3:])
        # Which rows are born: near ones may win a sample in one form or another.
        born = [state[2] > 0 for state in states]
        assert torch.equal(born[0], born[1])
        assert torch.equal(born[0], born[2])
    count = born[0].view(classes, 4).sum(dim=1)
    assert (count == 1).all() if spread < 1e-5 else (count == 4).all()


SANITIZED = {
    "bf16": (100, (3, 1, 5), 16, torch.bfloat16, {}),
    "fp32-odd": (100, (3, 40, 5), 13, torch.float32, {}),
    "fp64-skipped": (60, (3, 1, 5), 8, torch.float64, {"skip": 8}),
    "fp16-chunks": (40, (2, 9), 260, torch.float16, {"multiprocessors": 1}),
}


@pytest.mark.parametrize("metric", kernels.first_quick(METRICS))
@pytest.mark.parametrize("variant", ["address", "thread"])
@pytest.mark.parametrize("case", kernels.first_quick(SANITIZED))
def test_under_sanitizers(case, variant, metric):
    n, rows, depth, dtype, execution = SANITIZED[case]
    check(draw(n, rows, depth, dtype), metric, **execution, variant=variant)
