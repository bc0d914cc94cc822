"""Checks that run in several processes; test_distributed.py starts this as a module.

It compares, in float64, what the processes get together with what one gets alone.
"""

import dataclasses
import os
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

import python_tests.small_digits  # noqa: F401
from s3h_ext.losses import (
    BalancedContrastiveLoss,
    CrossModelContrastiveLoss,
    FeatureQueue,
    PaCoLoss,
    ProCoLoss,
    PrototypicalSupConLoss,
    SupConLoss,
)
from s3h_ext.methods import Hybrid
from s3h_ext.models import ImageClassifier, build_classifier
from s3h_ext.ops import gather_rows
from s3h_ext.runs.config import DistributedConfig
from s3h_ext.runs.options import parse_options
from s3h_ext.train import main as train
from s3h_ext.training.distributed import exit_process, join_world
from s3h_ext.training.trainer import Trainer


class SmallBackbone(nn.Module):
    """Two convolutions and batch norms: the machine's time goes elsewhere."""

    feature_dim = 16

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 16, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        )

    def feature_map(self, images):
        return self.layers(images)

    def forward(self, images):
        return self.feature_map(images).mean((2, 3))


def small_model(name, num_classes, *, classifier, scale, in_channels):
    head = build_classifier(classifier, SmallBackbone.feature_dim, num_classes, scale)
    return ImageClassifier(SmallBackbone(), head)


small = mock.patch("s3h_ext.runs.loading.build_model", small_model)

QUICK = (
    "--data.imbalance 100 --batch_size 90 --epochs 2 "
    "--optim.warmup_epochs 0 --optim.lr 0.02 --device cpu --precision fp32 "
    "--report false --distributed.sync_batch_norm true"
).split()
RUNS = {
    "cb-ce": ["--preset", "digits-lt/cb-ce"],
    "hybrid-sc": ["--preset", "digits-lt/hybrid-sc"],
    "hybrid-psc": ["--preset", "digits-lt/hybrid-psc"],
    "bcl": ["--preset", "digits-lt/bcl"],
    "s3h": ["--preset", "digits-lt/s3h"],
    "mixed": [
        *["--preset", "digits-lt/bcl", "--method.mixing.kind", "cutmix"],
        *["--optim.ema_decay", "0.7"],
    ],
    "mixed-batches": [
        *["--preset", "digits-lt/ce", "--method.recipe", "crop"],
        *["--method.mixing.kind", "mixup", "--method.mixing.unit", "batch"],
    ],
    "cws": ["--preset", "digits-lt/cws", "--method.split_from", "0"],
    "cws-reduced": [
        *["--preset", "digits-lt/cws", "--method.split_from", "0"],
        *["--method.inner.weight_beta", "0", "--distributed.gather", "false"],
        *["--batch_size", "118"],
    ],
}


@small
@mock.patch.object(torch.Tensor, "float", torch.Tensor.double)
def double_run(folder, name, world=None):
    """Trains shortly, with float64 wherever float32 is meant; returns what came out."""
    config, _ = parse_options([*QUICK, *RUNS[name]])
    method = config.method
    build, predict = method.build, method.predict

    def build_double(model, dataset):
        build(model, dataset)
        method.double()

    method.build = build_double
    method.predict = lambda images: predict(images.double())
    trainer = Trainer(config, folder, world=world)
    epoch = trainer.source.epoch

    def double_epoch(*position):
        for step in epoch(*position):
            yield {
                key: dataclasses.replace(batch, images=batch.images.double())
                for key, batch in step.items()
            }

    trainer.source.epoch = double_epoch
    gradients = {}

    def note(*_):
        if not gradients:
            gradients.update(
                (name, parameter.grad.clone())
                for name, parameter in method.named_parameters()
                if parameter.requires_grad
            )

    trainer.optimizer.register_step_pre_hook(note)
    trainer.fit()
    averages = trainer.average.state_dict()["sums"] if trainer.average else {}
    return {
        "state": {**method.state_dict(), **averages},
        "gradients": gradients,
        "history": trainer.state.history,
        "images": trainer.state.images_trained,
    }


LABELS = torch.tensor([0, 1, 0, 2, 0, 1, -1, 1, 3, 0, 0, 2, 1])


def losses():
    """Name -> (loss of features, labels and the rest; what it needs)."""
    generator = torch.Generator().manual_seed(1)
    unit = lambda *shape: F.normalize(  # noqa: E731
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )
    centres, queue = unit(4, 6), unit(5, 6)
    queue_labels = torch.tensor([0, 1, -1, 3, 3])

    def cross(module, rows, *others):
        given = {"centres": centres, "queue": queue, "queue_labels": queue_labels}
        return module(rows, *others, **given, self_index=torch.arange(len(rows)))

    in_queue = {"keys": queue, "key_labels": queue_labels}

    def views(z, k):
        return torch.stack([z, k], dim=1)

    def mask(y):  # what the batch of all processes has as positives
        return 0.5 * (y[:, None] == LABELS).double() + 0.1 * (y[:, None] > LABELS)

    logits = unit(6, 5)
    first = partial(SupConLoss, contrast_mode="one")
    return {
        "supcon": (SupConLoss, lambda m, z, y, k, yk: m(z, y)),
        "keys": (SupConLoss, lambda m, z, y, k, yk: m(z, y, **in_queue)),
        "weights": (SupConLoss, lambda m, z, y, k, yk: m(z, y, weights=y.abs() / 3)),
        "simclr": (SupConLoss, lambda m, z, y, k, yk: m(views(z, k))),
        "first views": (first, lambda m, z, y, k, yk: m(views(z, k), y)),
        "moco": (
            partial(first, in_batch=False),
            lambda m, z, y, k, yk: m(views(z, k), **in_queue),
        ),
        "mask": (SupConLoss, lambda m, z, y, k, yk: m(z, mask=mask(y))),
        "mask of views": (first, lambda m, z, y, k, yk: m(views(z, k), mask=mask(y))),
        "balanced": (BalancedContrastiveLoss, lambda m, z, y, k, yk: m(z, y)),
        "centres": (
            BalancedContrastiveLoss,
            lambda m, z, y, k, yk: m(z, y, centres),
        ),
        "paco": (
            partial(PaCoLoss, None, alpha=0.3),
            lambda m, z, y, k, yk: m(z, y, k @ logits, *in_queue.values()),
        ),
        "proco": (
            partial(ProCoLoss, [40, 20, 9, 2, 1], 6),
            lambda m, z, y, k, yk: m(z, y),
        ),
        "cross": (CrossModelContrastiveLoss, cross),
        "prototypical": (
            PrototypicalSupConLoss,
            lambda m, z, y, k, yk: m(z, y, centres),
        ),
    }


def check_losses(world):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(13, 6, generator=generator, dtype=torch.float64)
    other = torch.randn(13, 6, generator=generator, dtype=torch.float64)
    labels = LABELS
    cut = [slice(0, 4), slice(4, 13)] if world.size == 2 else [slice(0, 13)]
    own = cut[world.rank]
    for name, (module, call) in losses().items():

        def loss(module, z, k, part=slice(None), call=call):
            z, k = F.normalize(z, dim=1), F.normalize(k, dim=1)
            return call(module, z, labels[part], k, labels[part])

        for reduction in ("mean", "sum"):
            whole, keys = (t.clone().requires_grad_() for t in (rows, other))
            expected = loss(module(0.2, reduction), whole, keys)
            expected.backward()
            part, key_part = (t[own].clone().requires_grad_() for t in (rows, other))
            share = loss(module(0.2, reduction, gather=True), part, key_part, own)
            share.backward()
            message = f"{name} {reduction}"
            mean = world.mean(share.detach())
            assert abs(mean - expected) < 1e-12, (message, mean, expected)
            for found, wanted in ((part, whole), (key_part, keys)):
                if wanted.grad is None:
                    continue
                # What the mean over processes differentiates to.
                error = (found.grad / world.size - wanted.grad[own]).abs().max()
                assert error < 1e-12, (message, error)


def check_queue(world):
    """Every process's queue holds the rows of all, in the order of the ranks."""
    queue = FeatureQueue(5, 2, gather=True)
    for step in range(3):
        rows = torch.full((world.rank + 1, 2), 10.0 * step + world.rank)
        places = queue.enqueue(rows, torch.full((world.rank + 1,), world.rank))
        assert torch.equal(queue.features[places], rows)
    states = world.gather(queue.state_dict())
    alone = FeatureQueue(5, 2)
    for step in range(3):
        for rank in range(world.size):
            rows = torch.full((rank + 1, 2), 10.0 * step + rank)
            alone.enqueue(rows, torch.full((rank + 1,), rank))
    for name, value in alone.state_dict().items():
        assert all(torch.equal(value, state[name]) for state in states), name


def check_gather(world):
    rows = torch.full((world.rank + 1, 2), float(world.rank), requires_grad=True)
    labels = torch.full((world.rank + 1,), world.rank)
    (every, numbers), start = gather_rows(rows, labels)
    assert numbers.tolist() == [r for r in range(world.size) for _ in range(r + 1)]
    assert torch.equal(every.detach()[:, 0], numbers.float())
    assert start == sum(range(1, world.rank + 1))
    (every * (world.rank + 1)).sum().backward()
    total = sum(range(1, world.size + 1))
    assert torch.equal(rows.grad, torch.full_like(rows, float(total)))


def slow_step(method):
    time.sleep(float(os.environ["STEP_SECONDS"]))


def main():
    if sys.argv[1] == "train":
        if "STEP_SECONDS" in os.environ:
            Hybrid.after_step = slow_step
        with small:
            return train(sys.argv[2:])
    folder = Path(sys.argv[1])
    world = join_world("cpu", DistributedConfig(timeout=120))
    check_gather(world)
    check_losses(world)
    check_queue(world)
    for name in sys.argv[2:] or RUNS:
        found = double_run(folder / name, name, world)
        states = world.gather(found["state"])
        for key, value in states[0].items():
            assert all(
                torch.equal(value, s[key]) or value.isnan().any() for s in states
            ), key
        if world.first:
            torch.save(found, folder / f"{name}.pt")
    world.close()
    return 0


if __name__ == "__main__":
    exit_process(main())
