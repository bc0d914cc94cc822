"""Scores that a forward keeps: the backward reads the same bits that it would form."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from python_tests.ops.test_similarity import detached, op_arguments
from python_tests.settings import deterministic, threads
from s3h_ext import losses
from s3h_ext.ops import similarity_logsumexp
from s3h_ext.ops._scores import MOST_SCORES, kept_size

OP, BACKWARD = (
    torch.ops.s3h.similarity_logsumexp,
    torch.ops.s3h.similarity_logsumexp_backward,
)


@pytest.mark.parametrize("counts", [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("temperature", [0.1, 0.004])
@pytest.mark.parametrize("name", ["plain", "bias", "closed", "bias-label-self", "own"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_same_bits(symmetric, name, temperature, counts):
    """Also where the number of threads changes in between, and with long rows."""
    sizes = [(1, 1, 3), (17, 40, 8), (49, 96, 130), (260, 145, 64)]
    kinds = [(torch.float32, 1.0), (torch.bfloat16, 1.0), (torch.float32, 40.0)]
    for (n, m, depth), (dtype, scale) in itertools.product(sizes, kinds):
        q, *rest = detached(op_arguments(n, m, depth, name, symmetric, dtype))
        given = [q * scale, rest[0], temperature, *rest[2:]]
        with threads(counts[0]):
            plain, kept = OP(*given, False), OP(*given, True)
        assert plain[2].numel() == 0
        assert kept[2].numel() == kept_size(n, n if symmetric else m, symmetric)
        assert all(map(torch.equal, plain[:2], kept[:2]))
        grad, needs = torch.linspace(-1, 2, n), (True, not symmetric)
        with threads(counts[1]):
            expected = BACKWARD(grad, *plain, *needs, *given, False)
            found = BACKWARD(grad, *kept, *needs, *given, True)
        assert all(map(torch.equal, found, expected))


def most_saved(function, *tensors, **given):
    """The elements of the largest tensor that is saved."""
    sizes = [0]

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*tensors, temperature=0.1, **given)
    return max(sizes)


@pytest.mark.parametrize("depth", [4, 8])
def test_only_what_fits_the_cache_is_kept(depth):
    def rows(n):
        return F.normalize(torch.randn(n, depth), dim=1).requires_grad_()

    few, many = rows(1000), rows(4000)
    assert most_saved(similarity_logsumexp, few) == kept_size(1000, 1000, True)
    assert most_saved(similarity_logsumexp, many) == many.numel()
    assert most_saved(similarity_logsumexp, many, rows(450)) <= MOST_SCORES
    assert most_saved(similarity_logsumexp, many, rows(450)) > many.numel()
    assert most_saved(similarity_logsumexp, many, rows(600)) == many.numel()
    labels = torch.arange(1000) % 10
    assert most_saved(losses.supcon_loss, few, labels) == kept_size(1000, 1000, True)
    centres = rows(10)
    found = most_saved(losses.prototypical_supcon_loss, few, labels, centres)
    assert found == kept_size(1000, 10, False)
    with deterministic():
        assert most_saved(similarity_logsumexp, few) == few.numel()
        assert most_saved(losses.supcon_loss, few, labels) == few.numel()
    wide = few.detach().double().requires_grad_()
    assert most_saved(similarity_logsumexp, wide) == wide.numel()
    with torch.no_grad():
        assert most_saved(similarity_logsumexp, few) == 0


def test_the_op_keeps_none_where_it_has_none():
    given = detached(op_arguments(9, 7, 4))
    for change in ({0: given[0].double(), 1: given[1].double()}, {10: True}):
        other = [change.get(place, value) for place, value in enumerate(given)]
        with pytest.raises(RuntimeError, match="keep_scores is for sums in float32"):
            OP(*other, True)
    saved = OP(*given, True)
    with pytest.raises(RuntimeError, match="scores must have"):
        BACKWARD(torch.ones(9), *saved[:2], saved[2][1:], True, True, *given, True)
