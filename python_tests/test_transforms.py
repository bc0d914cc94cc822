"""The contrastive losses, and the operations below them, under ``torch.func``."""

import pytest
import torch
import torch.nn.functional as F

from s3h_ext import losses, ops

CLASSES, DEPTH, ROWS = 3, 8, 12
LABELS = torch.arange(ROWS) % (CLASSES + 1) - 1
SETTINGS = {"temperature": 0.2}


def rows(n, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, DEPTH, generator=generator, dtype=torch.float64)
    return F.normalize(drawn, dim=1).to(dtype)


def lse(z, centres):
    return ops.similarity_logsumexp(
        z, centres, query_labels=LABELS, key_labels=torch.arange(CLASSES), **SETTINGS
    ).sum()


def symmetric_lse(z, centres):
    return ops.similarity_logsumexp(z, **SETTINGS).square().sum()


def class_sums(z, centres):
    classes = {"query_classes": LABELS, "key_classes": torch.arange(CLASSES)}
    dots = ops.class_sum_dots(z, centres, num_classes=CLASSES, **classes)
    return dots.square().sum()


def supervised(z, centres):
    return ops.supervised_contrastive(z, LABELS, **SETTINGS)[0]


def supcon(z, centres):
    return losses.supcon_loss(z, LABELS, **SETTINGS, num_classes=CLASSES)


def balanced(z, centres):
    return losses.balanced_contrastive_loss(z, LABELS, centres, **SETTINGS)


def prototypical(z, centres):
    return losses.prototypical_supcon_loss(z, LABELS, centres, **SETTINGS)


def cross_model(z, centres):
    return losses.cross_model_contrastive_loss(
        z, LABELS, z.flip(0), LABELS.flip(0), centres=centres, **SETTINGS
    )


LOSSES = [
    *(lse, symmetric_lse, class_sums, supervised, supcon),
    *(balanced, prototypical, cross_model),
]


def gradients(loss, z, centres):
    z, centres = (t.detach().requires_grad_() for t in (z, centres))
    unused = {"allow_unused": True, "materialize_grads": True}
    return torch.autograd.grad(loss(z, centres), (z, centres), **unused)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", LOSSES)
def test_grad_and_vjp(loss, dtype):
    z, centres = rows(ROWS, 0, dtype), rows(CLASSES, 1, dtype)
    expected = gradients(loss, z, centres)
    found = torch.func.grad(loss, argnums=(0, 1))(z, centres)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    value, pull = torch.func.vjp(loss, z, centres)
    assert torch.equal(value, loss(z, centres))
    found = pull(torch.full_like(value, -2.0))
    torch.testing.assert_close(found, tuple(-2 * g for g in expected))
    assert torch.func.grad(loss)(z, centres).requires_grad is False


@pytest.mark.parametrize("loss", LOSSES)
def test_vmap(loss):
    z = torch.stack([rows(ROWS, seed) for seed in range(3)], dim=1)
    centres = rows(CLASSES, 1)
    each = z.unbind(1)
    found = torch.func.vmap(loss, (1, None))(z, centres)
    assert torch.equal(found, torch.stack([loss(one, centres) for one in each]))
    grad = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), (1, None))
    expected = [gradients(loss, one, centres) for one in each]
    expected = tuple(map(torch.stack, zip(*expected, strict=True)))
    torch.testing.assert_close(grad(z, centres), expected, rtol=0, atol=0)
    # The other way round: the gradient of a sum over the batch.
    total = torch.func.grad(
        lambda z: torch.func.vmap(loss, (1, None))(z, centres).sum()
    )
    torch.testing.assert_close(total(z), expected[0].movedim(0, 1))


def test_jacobian():
    z = rows(ROWS, 0)

    def each(z):
        return losses.supcon_loss(z, LABELS, **SETTINGS, reduction="none")

    found = torch.func.jacrev(each)(z)
    leaf = z.clone().requires_grad_()
    values = each(leaf)
    expected = [torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in values]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivatives_are_refused(loss):
    z, centres = rows(ROWS, 0), rows(CLASSES, 1)

    def slope(z):
        return torch.func.grad(loss)(z, centres).sum()

    with pytest.raises(NotImplementedError, match="has no second derivative"):
        torch.func.grad(slope)(z)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        slope(z.requires_grad_()).backward()
