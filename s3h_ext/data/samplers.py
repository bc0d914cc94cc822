"""Samplers: they draw the images of an epoch, in order.

    instance-balanced  every image once
    class-balanced     p_c = 1 / C
    square-root        p_c proportional to sqrt(n_c)
    progressive        p_c moves from n_c / N to 1 / C with the progress of the training
    M-per-class        M images of a class, then M of the next, anew in every step

Kang et al., "Decoupling representation and classifier for long-tailed recognition",
ICLR 2020, section 3.1 and equation 2.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3h_ext.checks import check, check_choice, number_in
from s3h_ext.ops.philox import philox_words

__all__ = ["SAMPLERS", "EpochOrder", "check_sampler", "class_probabilities"]

SAMPLERS = ("instance-balanced", "class-balanced", "square-root", "progressive")

# The order of stream s draws from stream 128 + s, so that it shares no random numbers
# with the augmentation of any stream.
_ORDER_STREAMS = 128
_KEYS, _CLASSES = 0, 1


def images_per_class(sampler: str) -> int | None:
    """Return M of ``"M-per-class"``, ``None`` for other samplers."""
    found = re.fullmatch(r"([1-9]\d{0,8})-per-class", sampler)
    return int(found[1]) if found else None


def check_sampler(argument: str, sampler: str) -> None:
    """Check that ``sampler`` is one of :data:`SAMPLERS` or ``"M-per-class"``.

    Example:
        >>> check_sampler("sampler", "4-per-class")
        >>> check_sampler("sampler", "square-rot")
        Traceback (most recent call last):
        ValueError: sampler: expected one of instance-balanced, class-balanced, \
square-root, progressive, 4-per-class, got 'square-rot'; did you mean 'square-root'?
    """
    if images_per_class(sampler) is None:
        check_choice(argument, sampler, (*SAMPLERS, "4-per-class"))


def class_probabilities(
    sampler: str, class_counts: NDArray[np.int64], *, progress: float = 0.0
) -> NDArray[np.float64]:
    """Return the probability of drawing each class.

    Args:
        sampler: One of :data:`SAMPLERS`.
        class_counts: int64 ``[C]``; a class without images is never drawn.
        progress: Epochs done / total epochs, in [0, 1]; for ``"progressive"``.

    Returns:
        float64 ``[C]``, sum 1.

    Raises:
        ValueError: an unknown sampler, a progress out of range, or no images.

    Example:
        >>> class_probabilities("square-root", np.array([9, 1])).tolist()
        [0.75, 0.25]
    """
    if class_counts.sum() < 1:
        raise ValueError("class_counts: expected at least one image, got none")
    check(number_in("[0, 1]"), progress=progress)
    counts = class_counts.astype(np.float64)
    present = (counts > 0).astype(np.float64)
    check_choice("sampler", sampler, SAMPLERS)
    weights: NDArray[np.float64]
    if sampler == "instance-balanced":
        weights = counts
    elif sampler == "class-balanced":
        weights = present
    elif sampler == "square-root":
        weights = np.sqrt(counts)
    else:
        instance, balanced = counts / counts.sum(), present / present.sum()
        weights = (1 - progress) * instance + progress * balanced
    weights /= weights.sum()
    return weights


class EpochOrder:
    """Draws whole epochs of sample indices.

    ``instance-balanced`` is a permutation. The other samplers draw a class by its
    probability and then take the next image of that class's own permutation, which
    starts over when used up, so that a class's images are used equally often.

    ``M-per-class`` goes through the classes in rounds, each in its own order, and takes
    the next M images of each, again from the class's own permutation. A class with
    fewer images repeats them. Every step begins with a new class; its last class has
    fewer than M images if its size is not a multiple of M. A step that contains the end
    of a round may contain a class twice. ``labels`` are int64 ``[N]`` on the host; the
    orders are drawn and kept on ``device``.

    Raises:
        ValueError: there are no labels, or a label is out of range.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        num_classes: int,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(labels) == 0:
            raise ValueError("labels: expected at least one, got none")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"labels: expected 0 .. {num_classes - 1}, "
                f"got {labels.min()} .. {labels.max()}"
            )
        self.class_counts = np.bincount(labels, minlength=num_classes).astype(np.int64)
        self._labels = torch.tensor(labels, device=device)
        counts = torch.from_numpy(self.class_counts)
        self._counts = counts.to(device)
        self._starts = (counts.cumsum(0) - counts).to(device)
        self._by_class = self._labels.argsort(stable=True)
        self._present = torch.from_numpy(np.flatnonzero(self.class_counts)).to(device)

    def draw(
        self,
        sampler: str,
        *,
        seed: int,
        epoch: int,
        stream: int = 0,
        progress: float = 0.0,
        steps: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Draw an epoch of N samples; a pure function of its arguments.

        Args:
            sampler: One of :data:`SAMPLERS`, or ``"M-per-class"``.
            seed: Seed, in [0, 2**32).
            epoch: Epoch, in [0, 2**32).
            stream: Number of the stream, in [0, 128).
            progress: Epochs done / total epochs, in [0, 1].
            steps: Steps of the epoch, only for ``"M-per-class"``; step s starts at
                position ``s * N // steps``.

        Returns:
            Sample indices, int64 ``[N]``, and the number of earlier draws of each in
            this epoch, int64 ``[N]``.

        Raises:
            ValueError: an argument is out of range.
        """
        if not 0 <= stream < _ORDER_STREAMS:
            raise ValueError(
                f"stream: expected 0 <= stream < {_ORDER_STREAMS}, got {stream}"
            )
        # Compute probabilities first: that checks the sampler's name.
        together = images_per_class(sampler)
        if together is None:
            probabilities = class_probabilities(
                sampler, self.class_counts, progress=progress
            )
        numbers = torch.arange(len(self._labels), device=self._labels.device)
        address = {"seed": seed, "epoch": epoch, "stream": _ORDER_STREAMS + stream}
        shuffled = _keys(address, numbers, _KEYS).argsort(stable=True)
        if sampler == "instance-balanced":
            return shuffled, torch.zeros_like(shuffled)
        by_class = shuffled[self._labels[shuffled].argsort(stable=True)]
        if together is None:
            words = philox_words(**address, index=numbers, view=_CLASSES, draws=1)
            classes = _class_of(probabilities, words.flatten())
        else:
            classes = self._rounds(together, steps, address)
        rank = _rank_within_class(classes, len(self.class_counts))
        counts = self._counts[classes]
        image = by_class[self._starts[classes] + rank % counts]
        return image, rank // counts

    def _rounds(self, together: int, steps: int, address: dict[str, int]) -> Tensor:
        """Return the classes of an epoch's draws by M-per-class, int64 ``[N]``."""
        total, device = len(self._labels), self._labels.device
        ends = torch.arange(steps + 1, device=device) * total // steps
        sizes = ends.diff()
        groups = -(-sizes // together)  # [steps]
        step = torch.arange(steps, device=device).repeat_interleave(
            sizes, output_size=total
        )
        place = torch.arange(total, device=device) - ends[step]
        group = (groups.cumsum(0) - groups)[step] + place // together
        # An upper bound on the groups, for any sizes of the steps.
        rounds = -(-(total // together + steps) // len(self._present))
        numbers = torch.arange(rounds * len(self._present), device=device)
        keys = _keys(address, numbers, _CLASSES)
        orders = keys.view(rounds, -1).argsort(stable=True)
        return self._present[orders.flatten()[group]]

    def choose(
        self, sampler: str, classes: Tensor, members: Tensor, *, progress: float = 0.0
    ) -> Tensor:
        """Choose images by two random words each, independently of each other.

        ``classes`` and ``members`` are int64 ``[...]``, words in [0, 2**32). The
        sampler sets the class probabilities; within a class all images are equally
        likely.

        Returns:
            Sample indices, int64 ``[...]``.
        """
        probabilities = class_probabilities(
            sampler, self.class_counts, progress=progress
        )
        chosen = _class_of(probabilities, classes)
        rank = (members * self._counts[chosen]) >> 32
        return self._by_class[self._starts[chosen] + rank]


def _keys(address: dict[str, int], numbers: Tensor, view: int) -> Tensor:
    """Return 63-bit keys: sorting by them is a fair shuffle, without ties."""
    high, low = philox_words(**address, index=numbers, view=view, draws=2).unbind(-1)
    return (high << 31) | (low >> 1)


def _class_of(probabilities: NDArray[np.float64], words: Tensor) -> Tensor:
    """Map words in [0, 2**32) to classes, int64 ``[...]``."""
    # Integers, so that every device draws the same classes.
    limits = np.rint(probabilities.cumsum() * 2.0**32).astype(np.int64)
    limits[limits >= limits[-1]] = 1 << 32
    thresholds = torch.from_numpy(limits).to(words.device, non_blocking=True)
    return torch.searchsorted(thresholds, words.contiguous(), right=True)


def _rank_within_class(classes: Tensor, num_classes: int) -> Tensor:
    """Return the number of earlier draws of the same class, int64 ``[N]``."""
    order = classes.argsort(stable=True)
    ordered = classes[order]
    labels = torch.arange(num_classes, device=classes.device)
    starts = torch.searchsorted(ordered, labels)
    numbers = torch.arange(len(classes), device=classes.device)
    return torch.empty_like(order).scatter_(0, order, numbers - starts[ordered])
