"""The optimiser of a run: what it trains, with which weight decay, and its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from s3h_ext.runs.config import OptimConfig


def parameter_groups(module: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Return groups of what is trained: with weight decay and, if asked, without.

    Without it are batch norm's parameters and biases, which have one dimension. The
    prototypes of PSC are decayed as weights are; the loss sees their directions alone.
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
    """Return SGD over what is trained of a module; over nothing, where nothing is."""
    groups = parameter_groups(module, optim)
    return torch.optim.SGD(
        groups or [{"params": [torch.zeros(0, device=device)]}],
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        fused=True,
    )


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what a checkpoint keeps of an optimiser: plain numbers and tensors."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])  # a tensor where steps are recorded
    return state
