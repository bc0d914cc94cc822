"""Learning rate as a function of the position in the training."""

from __future__ import annotations

import math

from s3h_ext.runs.config import OptimConfig


def learning_rate(optim: OptimConfig, position: float, epochs: int) -> float:
    """Return the learning rate at ``position`` epochs of ``epochs``.

    A linear rise over ``warmup_epochs`` multiplies the schedule, which itself runs over
    the whole training, so warm-up moves no milestone.

    Args:
        optim: peak rate, warm-up and schedule.
        position: epochs done, a fraction inside an epoch; the rate of the first step of
            an epoch of 100 steps is that of position ``epoch + 0.01``.
        epochs: length of the training.

    Example:
        >>> optim = OptimConfig(lr=0.1, warmup_epochs=5, gamma=0.01)
        >>> [round(learning_rate(optim, e, 200), 6) for e in (1, 5, 159, 160.1, 199)]
        [0.02, 0.1, 0.1, 0.001, 1e-05]
    """
    rate = optim.lr
    if optim.schedule == "cosine":
        rate *= 0.5 * (1.0 + math.cos(math.pi * min(position / epochs, 1.0)))
    elif optim.schedule == "step":
        # Whole epochs: a milestone that falls inside one takes effect at its end.
        passed = sum(position > math.ceil(m * epochs - 1e-9) for m in optim.milestones)
        rate *= optim.gamma**passed
    if position < optim.warmup_epochs:
        rate *= position / optim.warmup_epochs
    return rate
