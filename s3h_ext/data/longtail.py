"""Long-tailed subsets of a balanced data set, by the rule of LDAM-DRW.

Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss",
NeurIPS 2019. Images are selected as in its ``imbalance_cifar.py``, so the official
CIFAR files give exactly the images and counts of the published numbers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from s3h_ext.checks import COUNT, SEED, check, check_choice, number_in

__all__ = ["PROFILES", "class_profile", "hold_out", "pick_subset", "sorted_profile"]

PROFILES = ("exp", "step")


def class_profile(
    num_classes: int, *, largest: int, imbalance: float, profile: str = "exp"
) -> NDArray[np.int64]:
    """Return the number of images that each class keeps.

    ``exp``: ``n_c = int(largest * f ** (c / (C - 1)))`` with ``f = 1 / imbalance``.
    ``step``: the first ``C // 2`` classes keep ``largest``, the others
    ``int(largest * f)``. A value that is an integer up to rounding errors counts as
    one.

    Args:
        num_classes: C, at least 2.
        largest: Images of the largest class, class 0.
        imbalance: Largest class size divided by the smallest, finite and at least 1.
        profile: ``"exp"`` or ``"step"``.

    Returns:
        int64 ``[C]``, in descending order.

    Raises:
        ValueError: an argument is out of range, or a class would keep no image.

    Example:
        >>> class_profile(10, largest=5000, imbalance=100).tolist()
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    check(COUNT, largest=largest)
    if not (math.isfinite(imbalance) and imbalance >= 1):
        raise ValueError(f"imbalance: expected a finite factor >= 1, got {imbalance}")
    check_choice("profile", profile, PROFILES)
    factor = 1 / imbalance
    if profile == "exp":
        counts = [
            _truncated(largest * factor ** (label / (num_classes - 1)))
            for label in range(num_classes)
        ]
    else:
        head, tail = num_classes // 2, _truncated(largest * factor)
        counts = [largest] * head + [tail] * (num_classes - head)
    if counts[-1] < 1:
        raise ValueError(
            f"imbalance: {imbalance:g} leaves no image for class {num_classes - 1} "
            f"when the largest class has {largest}"
        )
    return np.asarray(counts, np.int64)


def _truncated(count: float) -> int:
    """Truncate, as the published counts are, but undo rounding errors.

    A 49th of 49 images is one image, but 49 * (1 / 49) is slightly less.
    """
    nearest = round(count)
    return nearest if math.isclose(count, nearest, rel_tol=1e-12) else int(count)


def sorted_profile(
    available: NDArray[np.int64], *, imbalance: float, profile: str = "exp"
) -> NDArray[np.int64]:
    """Return the number of images that each class keeps, for unequal class sizes.

    The profile runs over the classes from the largest to the smallest. A class with
    fewer images than its target keeps all of them. ``available`` holds the images of
    each class, int64 ``[C]``; ``imbalance`` is the size of the largest class divided by
    the profile's smallest.

    Returns:
        int64 ``[C]``, in the original order of the classes.

    Example:
        >>> available = np.array([33484, 10213, 7754, 46026])
        >>> sorted_profile(available, imbalance=100).tolist()
        [9916, 2136, 460, 46026]
    """
    order = np.argsort(-available, kind="stable")
    counts = np.empty_like(available)
    counts[order] = class_profile(
        len(available),
        largest=int(available.max()),
        imbalance=imbalance,
        profile=profile,
    )
    counts = np.minimum(counts, available)
    if counts.min() < 1:
        raise ValueError(f"available: class {int(counts.argmin())} has no image")
    return counts


def pick_subset(
    labels: NDArray[np.int64], counts: NDArray[np.int64], *, seed: int = 0
) -> NDArray[np.int64]:
    """Pick ``counts[c]`` images of every class, without replacement.

    Uses legacy ``RandomState(seed)``: for each class in ascending order, all indices
    are shuffled and then cut. The shuffle does not depend on the count, so the subset
    of a higher factor is contained in that of a lower one. ``labels`` are int64
    ``[N]``, ``counts`` int64 ``[C]``; seed 0 is the published draw.

    Returns:
        int64 ``[counts.sum()]``, indices into ``labels``, class by class.

    Raises:
        ValueError: a class has fewer images than requested.
    """
    random = np.random.RandomState(seed)
    picks = []
    for label, count in enumerate(counts.tolist()):
        members = np.flatnonzero(labels == label)
        if len(members) < count:
            raise ValueError(
                f"labels: class {label} has {len(members)} images, the profile needs "
                f"{count}; images are never repeated, so use a larger imbalance "
                "factor or a more complete archive"
            )
        random.shuffle(members)
        picks.append(members[:count])
    return np.concatenate(picks)


def hold_out(
    labels: NDArray[np.int64],
    *,
    fraction: float,
    seed: int = 0,
    argument: str = "val_fraction",
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split a training set into a training and a validation part, class by class.

    A class of n images gives ``floor(fraction * n + 1/2)`` of them (halves round up),
    but keeps at least one.

    Args:
        labels: int64 ``[N]``.
        fraction: Fraction to hold out, in [0, 1).
        seed: Seed of the choice, in [0, 2**32).
        argument: Name of ``fraction`` in error messages.

    Returns:
        Indices of the training part and of the validation part, each ascending.

    Raises:
        ValueError: an argument is out of range, or no image would be held out.
    """
    check(number_in("[0, 1)", "a share"), **{argument: fraction})
    check(SEED, seed=seed)
    random = np.random.RandomState(seed)
    held = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        random.shuffle(members)
        count = min(math.floor(fraction * len(members) + 0.5), len(members) - 1)
        held[members[:count]] = True
    if fraction > 0 and not held.any():
        raise ValueError(
            f"{argument}: {fraction} of the largest class "
            f"(size {np.bincount(labels).max()}) is less than one image"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)
