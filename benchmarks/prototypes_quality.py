"""Clusters of the moving averages against k-means: how many, and how good.

``python -m benchmarks.prototypes_quality [--births NAME] [--output DIR]``

``update_prototypes_`` sees one part of the data after the other, k-means (k-means++,
the best of several starts) all of it at once. Every class of a run is a data set of
another seed. Perplexity, ``exp(-sum p log p)`` of the clusters' shares p, is the number
of clusters in use; the error is the mean distance of a sample to its cluster's centre,
under the metric.

Data: ``isotropic``, a normal distribution without any clusters, and ``zipf``: 20 normal
clusters whose centres have 3 times their standard deviation, the i-th one's share in
proportion to 1 / i. Appends to ``prototypes_quality.csv``.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tables import append
from s3h_ext.ops import update_prototypes_
from s3h_ext.ops.prototypes import Metric

ROOT = Path(__file__).resolve().parent
SAMPLES, SEEDS = 2000, 3


@dataclass(frozen=True)
class Case:
    data: str
    metric: Metric
    depth: int
    rows: int
    batch: int  # of each class
    steps: int
    momentum: float = 0.99


@dataclass(frozen=True)
class Row:
    date: str
    births: str
    data: str
    metric: str
    depth: int
    rows: int
    batch: int
    steps: int
    momentum: float
    perplexity: float
    least_perplexity: float
    error_to_kmeans: float
    greatest_error_to_kmeans: float


def draw(data: str, depth: int, seed: int, samples: int = SAMPLES) -> Tensor:
    """Returns ``[samples, depth]``."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, depth, generator=generator)
    if data == "isotropic":
        return noise
    centres = 3 * torch.randn(20, depth, generator=generator)
    shares = 1 / torch.arange(1.0, 21.0)
    return (
        noise + centres[torch.multinomial(shares, samples, True, generator=generator)]
    )


def centres_of(samples: Tensor, rows: Tensor, count: int, metric: Metric) -> Tensor:
    sums = samples.new_zeros(count, samples.shape[1]).index_add_(0, rows, samples)
    if metric == "cosine":
        return F.normalize(sums, dim=1)
    return sums / torch.bincount(rows, minlength=count).clamp(min=1)[:, None]


def distances(samples: Tensor, centres: Tensor, metric: Metric) -> Tensor:
    if metric == "cosine":
        return 1 - samples @ centres.T
    return torch.cdist(samples, centres).square()


def error_of(samples: Tensor, rows: Tensor, count: int, metric: Metric) -> float:
    """The mean distance to the clusters' own centres."""
    centres = centres_of(samples, rows, count, metric)
    found = distances(samples, centres, metric)
    return float(found.gather(1, rows[:, None]).mean())


def kmeans(samples: Tensor, count: int, metric: Metric, starts: int = 5) -> float:
    """The error of k-means, spherical for cosine: the least of several starts."""
    generator = torch.Generator().manual_seed(0)
    least = float("inf")
    for _ in range(starts):
        first = torch.randint(len(samples), (1,), generator=generator)
        centres = samples[first]
        for _ in range(count - 1):
            gaps = distances(samples, centres, metric).amin(dim=1).clamp(min=0)
            chosen = torch.multinomial(gaps, 1, generator=generator)
            centres = torch.cat((centres, samples[chosen]))
        rows = first.new_full((len(samples),), -1)
        for _ in range(100):
            nearest = distances(samples, centres, metric).argmin(dim=1)
            if torch.equal(nearest, rows):
                break
            rows = nearest
            centres = centres_of(samples, rows, count, metric)
        least = min(least, error_of(samples, rows, count, metric))
    return least


def perplexity(rows: Tensor, count: int) -> float:
    shares = torch.bincount(rows, minlength=count) / len(rows)
    return float(torch.special.entr(shares).sum().exp())


def moving_averages(sets: Tensor, case: Case) -> list[Tensor]:
    """Returns the clusters of each of the sets ``[classes, samples, depth]``."""
    classes, samples, depth = sets.shape
    generator = torch.Generator().manual_seed(0)
    offsets = torch.arange(classes + 1) * case.rows
    prototypes, sums = torch.zeros(2, classes * case.rows, depth)
    masses = torch.zeros(classes * case.rows)
    state = (prototypes, sums, masses, offsets)

    def step(features: Tensor) -> Tensor:
        labels = torch.arange(classes).repeat_interleave(features.shape[1])
        return update_prototypes_(
            features.flatten(0, 1),
            labels,
            *state,
            metric=case.metric,
            momentum=case.momentum,
        ).view(classes, -1)

    order = torch.empty(0, dtype=torch.int64)
    for _ in range(case.steps):
        if len(order) < case.batch:
            order = torch.randperm(samples, generator=generator)
        chosen, order = order.split((case.batch, len(order) - case.batch))
        step(sets[:, chosen])
    return list(step(sets) - offsets[:-1, None])


def measure(case: Case) -> tuple[list[float], list[float]]:
    """Returns each seed's perplexity, and its error divided by that of k-means."""
    sets = torch.stack([draw(case.data, case.depth, seed) for seed in range(SEEDS)])
    if case.metric == "cosine":
        sets = F.normalize(sets, dim=2)
    found = moving_averages(sets, case)
    used = [perplexity(rows, case.rows) for rows in found]
    errors = [
        error_of(samples, rows, case.rows, case.metric)
        / kmeans(samples, case.rows, case.metric)
        for samples, rows in zip(sets, found, strict=True)
    ]
    return used, errors


def cases() -> Iterator[Case]:
    metrics: tuple[Metric, ...] = ("euclidean", "cosine")
    for metric in metrics:
        for depth in (16, 64, 128, 512):
            yield Case("isotropic", metric, depth, 5, 64, 300)
        for rows in (2, 3, 10, 16):
            yield Case("isotropic", metric, 64, rows, 64, 300)
        for rows in (5, 16):
            yield Case("zipf", metric, 64, rows, 64, 400)
            yield Case("zipf", metric, 64, rows, 64, 400, momentum=0.9)
            yield Case("zipf", metric, 64, rows, 2, 2000)
            yield Case("zipf", metric, 64, rows, SAMPLES, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--births", default="split", help="name of the rule of births")
    parser.add_argument("--output", type=Path, default=ROOT / "results")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for case in cases():
        used, errors = measure(case)
        row = Row(
            date=datetime.date.today().isoformat(),
            births=arguments.births,
            **asdict(case),
            perplexity=round(sum(used) / len(used), 3),
            least_perplexity=round(min(used), 3),
            error_to_kmeans=round(sum(errors) / len(errors), 3),
            greatest_error_to_kmeans=round(max(errors), 3),
        )
        print(
            f"{case.data:<10} {case.metric:<10} D {case.depth:<4} K {case.rows:<3} "
            f"batch {case.batch:<5} momentum {case.momentum:<5} perplexity "
            f"{row.perplexity:6.2f} [{row.least_perplexity:.2f}], by k-means' error "
            f"{row.error_to_kmeans:.2f} [{row.greatest_error_to_kmeans:.2f}]",
            flush=True,
        )
        append(arguments.output / "prototypes_quality.csv", [asdict(row)])


if __name__ == "__main__":
    main()
