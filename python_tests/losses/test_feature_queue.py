"""The queue of earlier rows: what it holds, and that a resumed run has the same."""

import pytest
import torch
import torch.nn.functional as F

from s3h_ext.losses import FeatureQueue, supcon_loss


def rows(n, dim=4, start=0):
    return torch.arange(start, start + n, dtype=torch.float32)[:, None].repeat(1, dim)


@pytest.mark.parametrize("size", [1, 3, 7, 8])
@pytest.mark.parametrize("counts", [[3, 3, 3, 3], [1, 5, 0, 2], [20], [7, 9], [8]])
def test_it_holds_the_last_rows(size, counts):
    queue, put = FeatureQueue(size, 4), 0
    places = [-1] * size  # the row in each place, by a list
    for count in counts:
        found = queue.enqueue(rows(count, start=put), torch.arange(put, put + count))
        stays = torch.arange(count) >= count - size
        place = (put + torch.arange(count)) % size
        assert torch.equal(found, torch.where(stays, place, -1))
        for row in range(put, put + count):
            places[row % size] = row
        put += count
        assert queue.labels.tolist() == places
        held = torch.tensor(places).clamp(min=0).float()
        assert torch.equal(queue.features, held[:, None].repeat(1, 4))
        assert queue.position == put % size


def test_a_resumed_queue_goes_on_bit_for_bit():
    torch.manual_seed(1)
    batches = [(torch.randn(5, 4), torch.randint(-1, 3, (5,))) for _ in range(6)]
    whole = FeatureQueue(12, 4)
    for step, batch in enumerate(batches):
        if step == 3:
            saved = {name: value.clone() for name, value in whole.state_dict().items()}
        whole.enqueue(*batch)
    resumed = FeatureQueue(12, 4)
    resumed.load_state_dict(saved)
    for batch in batches[3:]:
        resumed.enqueue(*batch)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_state_of_another_size_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch for features"):
        FeatureQueue(12, 4).load_state_dict(FeatureQueue(10, 4).state_dict())


def test_no_gradient_flows_into_it_and_none_is_harmed():
    """Rows may be put in between a loss and its backward."""
    queue = FeatureQueue(6, 4)
    queue.enqueue(F.normalize(torch.randn(4, 4), dim=1), torch.arange(4) % 2)
    gradients = []
    for put in (False, True):
        z = F.normalize(torch.ones(4, 4) + torch.eye(4), dim=1).requires_grad_()
        labels = torch.arange(4) % 2
        loss = supcon_loss(z, labels, keys=queue.features, key_labels=queue.labels)
        if put:
            queue.enqueue(z, labels)
        loss.backward()
        gradients.append(z.grad)
    assert torch.equal(*gradients)
    assert not queue.features.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types(dtype):
    queue = FeatureQueue(6, 4, dtype=dtype)
    z, labels = F.normalize(torch.randn(5, 4), dim=1), torch.arange(5) % 2
    queue.enqueue(z, labels)
    assert queue.features.dtype == dtype
    assert torch.equal(queue.features[:5], z.to(dtype))
    if dtype != torch.float64:  # a wider queue is refused by its name
        loss = supcon_loss(z, labels, keys=queue.features, key_labels=queue.labels)
        wide = queue.features.float()
        assert loss == supcon_loss(z, labels, keys=wide, key_labels=queue.labels)


def test_rows_without_labels_are_filled_places():
    queue = FeatureQueue(6, 4)
    queue.enqueue(torch.randn(4, 4))
    assert queue.labels.tolist() == [0, 0, 0, 0, -1, -1]


def test_a_negative_label_leaves_a_place_empty():
    queue = FeatureQueue(3, 4)
    queue.enqueue(torch.randn(3, 4), torch.tensor([2, -100, 0], dtype=torch.int16))
    assert queue.labels.tolist() == [2, -1, 0]


def test_it_compiles_and_reads_nothing_back():
    queue, plain = FeatureQueue(8, 4), FeatureQueue(8, 4)
    compiled = torch.compile(queue.enqueue, fullgraph=True, backend="aot_eager")
    for count in (3, 5, 12):
        batch = torch.randn(count, 4), torch.arange(count)
        compiled(*batch)
        plain.enqueue(*batch)
        for name, value in plain.state_dict().items():
            assert torch.equal(queue.state_dict()[name], value), name


ROWS = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q: FeatureQueue(0, 4), ValueError, "size must be 1 or more, got 0"),
        (lambda q: FeatureQueue(4, 0), ValueError, "dim must be 1 or more, got 0"),
        (
            lambda q: FeatureQueue(4, 4, dtype=torch.int64),
            *(TypeError, "dtype must be floating point, got torch.int64"),
        ),
        (
            lambda q: q.enqueue(ROWS[:, 1:]),
            *(ValueError, r"features must be \[N, 4\] like the queue, got .*\(2, 3\)"),
        ),
        (
            lambda q: q.enqueue(ROWS.to("meta")),
            *(ValueError, "features must be on cpu like the queue, got meta"),
        ),
        (
            lambda q: q.enqueue(ROWS, torch.ones(3).long()),
            ValueError,
            r"labels must have shape \(2,\)",
        ),
        (
            lambda q: q.enqueue(ROWS, torch.ones(2)),
            TypeError,
            "labels must be integers",
        ),
        (lambda q: q.enqueue([[1.0]]), TypeError, "features must be a tensor"),
    ],
)
def test_what_does_not_fit(call, error, message):
    with pytest.raises(error, match=message):
        call(FeatureQueue(6, 4))
