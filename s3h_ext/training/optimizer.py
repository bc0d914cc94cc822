"""The optimiser of a run: parameter groups, weight decay and learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from s3h_ext.runs.config import OptimConfig


def parameter_groups(module: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return groups of trained parameters: with weight decay and, if asked, without.

    Batch-norm parameters and biases, which have one dimension, go without. The
    prototypes of PSC are decayed like weights; the loss only uses their directions.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        spared = parameter.ndim < 2 and not optim.decay_norm_and_bias
        (exempt if spared else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    module: nn.Module, optim: OptimConfig, device: torch.device
) -> torch.optim.SGD:
    """Return SGD over the trained parameters of a module, even if there are none."""
    groups = parameter_groups(module, optim)
    return torch.optim.SGD(
        groups or [{"params": [torch.zeros(0, device=device)]}],
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        fused=True,
    )


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimiser for a checkpoint: plain numbers and tensors."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])  # a tensor if steps are recorded
    return state


def learning_rate(optim: OptimConfig, position: float, epochs: int) -> float:
    """Return the learning rate at ``position`` epochs of ``epochs``.

    A linear rise over ``warmup_epochs`` multiplies the schedule, which itself runs over
    the whole training, so warm-up does not move milestones.

    Args:
        optim: peak rate, warm-up and schedule.
        position: epochs done, including a fraction of the current one; the first step
            of an epoch of 100 steps is at position ``epoch + 0.01``.
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
        # Whole epochs: a milestone inside an epoch takes effect at its end.
        passed = sum(position > math.ceil(m * epochs - 1e-9) for m in optim.milestones)
        rate *= optim.gamma**passed
    if position < optim.warmup_epochs:
        rate *= position / optim.warmup_epochs
    return rate
