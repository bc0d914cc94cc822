"""Every public operation and loss under ``torch.compile``, in one graph.

Each case is called three times by the same compiled function, with another size and
another number: first both are constants of the graph, then symbols. It gives what it
gives uncompiled: values, gradients, and what it wrote into its arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from s3h_ext import losses, ops
from s3h_ext.ops.view_constraints import FOUR_CORNERS, Constraint, RandomResizedCrop

CLASSES = 3
OFFSETS = torch.tensor([0, 2, 3, 5])
COUNTS = [50, 20, 3]
SIDES = Constraint(RandomResizedCrop((0.3, 1.0)), FOUR_CORNERS)


@dataclass
class Case:
    """What is called.

    Attributes:
        call: with a number and the tensors.
        tensors: of a size; those that require a gradient are differentiated.
        numbers: a number for each call.
    """

    call: Callable[..., object]
    tensors: Callable[[int], list[Tensor]]
    numbers: tuple[float, ...] = (0.1, 0.2, 0.35)


def rows(n: int, *, grad: bool = True) -> Tensor:
    return F.normalize(torch.randn(n, 8), dim=1).requires_grad_(grad)


def labels(n: int) -> Tensor:
    return torch.arange(n) % (CLASSES + 1) - 1


def contrast(n: int) -> list[Tensor]:
    return [rows(n), labels(n)]


def with_centres(n: int) -> list[Tensor]:
    return [rows(n), labels(n), rows(CLASSES)]


def with_keys(n: int) -> list[Tensor]:
    return [*contrast(n), rows(n), labels(n), rows(CLASSES), *contrast(2 * n)]


def classified(n: int) -> list[Tensor]:
    logits = torch.randn(n, CLASSES).requires_grad_()
    return [logits, labels(n), torch.rand(CLASSES) + 0.5]


def clusters(n: int) -> list[Tensor]:
    state = [torch.randn(5, 8), torch.randn(5, 8), torch.rand(5) * 4 + 1]
    return [rows(n, grad=False), labels(n), *state]


def pictures(n: int) -> list[Tensor]:
    return [torch.randint(0, 256, (n, 12, 10, 3), dtype=torch.uint8)]


def maps(n: int) -> list[Tensor]:
    x = torch.randn(n, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    return [x.requires_grad_(), (torch.rand(3) + 0.5).requires_grad_(), torch.rand(3)]


def batch_norm(number, x, weight, bias):
    return ops.batch_norm_relu(x, weight, bias, x, eps=number)


def function(loss):
    def call(number, *tensors):
        value, stats = loss(*tensors, temperature=number, return_stats=True)
        return value, *stats

    return call


def module(loss, name="temperature"):
    """A module whose setting of a name is the number."""

    def call(number, *tensors, **given):
        setattr(loss, name, number)
        return loss(*tensors, **given)

    return call


def views(n: int) -> list[Tensor]:
    return [rows(2 * n).detach().unflatten(0, (n, 2)).requires_grad_()]


def supcon_with_keys(number, z, y, keys, key_labels):
    weights = torch.linspace(0, 1, len(z))
    given = {"keys": keys, "key_labels": key_labels, "self_index": torch.arange(len(z))}
    return losses.supcon_loss(z, y, **given, weights=weights, temperature=number)


def supcon_with_mask(number, z, mask):
    return losses.supcon_loss(z, mask=mask, contrast_mode="one", temperature=number)


def supcon_of_views(number, z):
    return losses.supcon_loss(z, temperature=number)


MOCO = module(losses.SupConLoss(contrast_mode="one", in_batch=False))


def moco(number, z, keys, key_labels):
    return MOCO(number, z, keys=keys, key_labels=key_labels)


def with_means(n: int) -> list[Tensor]:
    return [*contrast(n), 0.5 * rows(CLASSES, grad=False), torch.tensor(COUNTS)]


def with_logits(n: int) -> list[Tensor]:
    return [*contrast(n), classified(n)[0], *contrast(2 * n)]


def cross(loss):
    def call(number, z, y, keys, key_labels, centres, queue, queue_labels):
        given = {"queue": queue, "queue_labels": queue_labels, "centres": centres}
        given["self_index"] = torch.arange(len(z))
        return loss(number, z, y, keys, key_labels, **given)

    return call


def cross_function(number, *tensors, **given):
    return losses.cross_model_contrastive_loss(*tensors, temperature=number, **given)


LOGIT_ADJUSTED, LDAM = losses.LogitAdjustedLoss(COUNTS), losses.LDAMLoss(COUNTS)
FOCAL = module(losses.FocalLoss(), "gamma")


def mixed(number, logits, labels, _):
    weight = labels.new_full(labels.shape, 0.25, dtype=logits.dtype)
    two = losses.MixedLabels(labels, labels.flip(0), weight)
    return number * losses.mixed_cross_entropy(logits, two)


def similarity(number, queries, query_labels, keys, key_labels):
    given = {"query_labels": query_labels, "key_labels": key_labels}
    given |= {"temperature": number, "same_label_bias": -2 * number}
    return ops.similarity_logsumexp(queries, keys, **given)


def class_sums(number, queries, query_classes, keys, key_classes):
    given = {"query_classes": query_classes, "key_classes": key_classes}
    return number * ops.class_sum_dots(queries, keys, num_classes=CLASSES, **given)


def prototypical(number, z, y, centres):
    return ops.prototypical_contrastive(z, centres, y, temperature=number)


def accumulate(number, features, y, prototypes, sums, masses):
    return ops.accumulate_prototypes(features, y, prototypes, masses, OFFSETS)


def apply(number, features, y, prototypes, sums, masses):
    update = ops.accumulate_prototypes(features, y, prototypes, masses, OFFSETS)
    settings = {"momentum": number, "expire_below": number}
    ops.apply_prototypes_(prototypes, sums, masses, OFFSETS, update, **settings)
    return update.assignments


def all_reduce(number, features, y, prototypes, sums, masses):
    update = ops.accumulate_prototypes(features, y, prototypes, masses, OFFSETS)
    return ops.all_reduce_update(update)


def update(number, features, y, prototypes, sums, masses):
    state = (prototypes, sums, masses, OFFSETS)
    return ops.update_prototypes_(features, y, *state, momentum=number)


def augment(number, images):
    count = len(images)
    operations = torch.full((count, 1), int(ops.Operation.ROTATE))
    magnitudes = torch.full((count, 1), 90.0, dtype=torch.float64) * number
    return ops.augment_images(images, operations, magnitudes)


def gather(number, z, y):
    (every, _), start = ops.gather_rows(z, y)
    return number * every + start


def render(number, images):
    index = torch.arange(len(images))
    patches = ops.Patches(
        image=index,
        box=torch.tensor([0, 0, 6, 6]).repeat(len(images), 1),
        affine=torch.eye(2, 3).repeat(len(images), 1, 1) * 1.5,
        fill=number,
    )
    scale = {"mean": (number,) * 3, "std": (number,) * 3}
    return ops.render_views(images, patches, out_size=8, **scale)


def boxes(number, index):
    address = {"seed": int(number), "epoch": 3, "sample_index": index, "view": 1}
    return ops.sample_view_boxes((40, 50), SIDES, **address)


def pairs(n: int) -> list[Tensor]:
    return [*contrast(n), *contrast(n + 3)]


OPERATIONS = {
    "accumulate_prototypes": Case(accumulate, clusters),
    "all_reduce_update": Case(all_reduce, clusters),
    "apply_prototypes_": Case(apply, clusters),
    "augment_images": Case(augment, pictures),
    "batch_norm_relu": Case(batch_norm, maps),
    "class_sum_dots": Case(class_sums, pairs),
    "gather_rows": Case(gather, contrast),
    "prototypical_contrastive": Case(prototypical, with_centres),
    "render_views": Case(render, pictures),
    "sample_view_boxes": Case(boxes, lambda n: [torch.arange(n)], (1, 2, 30)),
    "similarity_logsumexp": Case(similarity, pairs),
    "supervised_contrastive": Case(
        lambda number, z, y: ops.supervised_contrastive(z, y, temperature=number),
        contrast,
    ),
    "update_prototypes_": Case(update, clusters),
}
LOSSES = {
    "BalancedContrastiveLoss": Case(
        module(losses.BalancedContrastiveLoss()), with_centres
    ),
    "CrossModelContrastiveLoss": Case(
        cross(module(losses.CrossModelContrastiveLoss())), with_keys
    ),
    "FocalLoss": Case(FOCAL, classified),
    "LDAMLoss": Case(lambda number, *t: number * LDAM(*t), classified),
    "LogitAdjustedLoss": Case(
        lambda number, *t: number * LOGIT_ADJUSTED(*t[:2]), classified
    ),
    "PaCoLoss": Case(module(losses.PaCoLoss(COUNTS, smoothing=0.1)), with_logits),
    # Its training has a test of its own.
    "ProCoLoss": Case(module(losses.ProCoLoss(COUNTS, dim=8).eval()), contrast),
    "PrototypicalSupConLoss": Case(
        module(losses.PrototypicalSupConLoss()), with_centres
    ),
    "SupConLoss": Case(module(losses.SupConLoss()), contrast),
    "balanced_contrastive_loss": Case(
        function(losses.balanced_contrastive_loss), with_centres
    ),
    "cross_model_contrastive_loss": Case(cross(cross_function), with_keys),
    "mixed_cross_entropy": Case(mixed, classified),
    "paco_loss": Case(function(losses.paco_loss), with_logits),
    "proco_loss": Case(function(losses.proco_loss), with_means),
    "prototypical_supcon_loss": Case(
        function(losses.prototypical_supcon_loss), with_centres
    ),
    "supcon_loss": Case(function(losses.supcon_loss), contrast),
}
#: The further arguments of SupCon.
VARIANTS = {
    "supcon_loss, keys": Case(
        supcon_with_keys, lambda n: [*contrast(n), *pairs(n)[2:]]
    ),
    "supcon_loss, mask": Case(
        supcon_with_mask, lambda n: [*views(n), torch.rand(n, n)]
    ),
    "supcon_loss, views": Case(supcon_of_views, views),
    "SupConLoss, MoCo": Case(moco, lambda n: [*views(n), *contrast(2 * n)]),
}
CASES = OPERATIONS | LOSSES | VARIANTS
FUNCTIONS = {name for name in LOSSES if name.endswith("_loss")}
#: Types of arguments and results, and what prepares a training on the host.
NOT_CALLED = {"Operation", "Patches", "PrototypeUpdate", "ViewBoxes"}
NOT_COMPILED = {"ContrastiveStats", "MixedLabels", "effective_number_weights"}
#: Compiled in a test of its own: it changes with every call.
NOT_COMPILED |= {"FeatureQueue"}


def test_each_has_a_case():
    assert set(OPERATIONS) == set(ops.__all__) - NOT_CALLED
    assert set(LOSSES) == set(losses.__all__) - NOT_COMPILED


@pytest.fixture
def one_process(tmp_path):
    """A group of one, for what communicates."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def outcome(call, number, tensors):
    """What a call returns, the gradients, and what its arguments are afterwards."""
    own = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    result = call(number, *own)
    parts = list(result) if isinstance(result, tuple) else [result]
    values = [part for part in parts if part.requires_grad]
    wanted = [t for t in own if t.requires_grad]
    grads = []
    if wanted:
        weights = [torch.linspace(-1, 2, v.numel()).reshape(v.shape) for v in values]
        grads = list(torch.autograd.grad(values, wanted, weights, allow_unused=True))
    return [part.detach() for part in parts], grads, [t.detach() for t in own]


@pytest.mark.parametrize("name", CASES)
def test_equals_eager(name, request):
    if name == "all_reduce_update":
        request.getfixturevalue("one_process")
    # The module's graph is its function's: once with its gradients' is enough.
    backend = "eager" if name in FUNCTIONS else "aot_eager"
    check(CASES[name], backend=backend)


def test_the_default_compiler_with_symbols_from_the_first_call_on():
    def call(number, z, y, logits):
        contrast = losses.supcon_loss(z, y, temperature=number)
        return contrast + FOCAL(number, logits, y)

    check(Case(call, lambda n: [*contrast(n), classified(n)[0]]), dynamic=True)


def check(case, **options):
    torch.compiler.reset()
    compiled = torch.compile(case.call, fullgraph=True, **options)
    for number, size in zip(case.numbers, (12, 17, 9), strict=True):
        tensors = case.tensors(size)
        expected = outcome(case.call, number, tensors)
        torch.testing.assert_close(outcome(compiled, number, tensors), expected)
