"""An exponential moving average of a network's weights, evaluated in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["WeightAverage", "averaged_state"]


class WeightAverage:
    r"""Moving average of a network's weights and batch-norm statistics over the steps.

    .. math:: \bar\theta_t = \frac{1 - d}{1 - d^t} \sum_{k=1}^t d^{t-k} \theta_k

    Dividing by ``1 - d^t`` removes the initial weights, as in Adam (Kingma and Ba, ICLR
    2015, section 3). Integers, such as batch norm's count of batches, are taken from
    the latest step.

    PyTorch's ``AveragedModel`` synchronises with the device before every update, so it
    cannot be part of a recorded step. This class does not; the update itself is
    PyTorch's.

    Args:
        model: the network, already on its device; its tensors stay where they are.
        decay: d, in (0, 1); closer to 1 averages over more steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._values = {
            name: value.detach()
            for name, value in model.state_dict(keep_vars=True).items()
            if value.is_floating_point()
        }
        self._statistics = [
            name for name, _ in model.named_buffers() if name in self._values
        ]
        self._sums = {name: torch.zeros_like(v) for name, v in self._values.items()}
        some = next(iter(self._values.values()))
        self._one = torch.ones((), device=some.device)
        self._share = torch.zeros_like(self._one)  # 1 - d^t
        self._update: Any = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Add the weights of the current step to the average."""
        sums = [*self._sums.values(), self._share]
        self._update(sums, [*self._values.values(), self._one], None)

    @property
    def statistics(self) -> list[Tensor]:
        """The averaged batch-norm statistics, which differ between processes."""
        return [self._sums[name] for name in self._statistics]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Load the averages into the network; its own weights are restored on exit."""
        if not float(self._share):  # no step yet
            yield
            return
        with torch.no_grad():
            kept = {name: value.clone() for name, value in self._values.items()}
            try:
                for name, value in self._values.items():
                    value.copy_(self._sums[name] / self._share)
                yield
            finally:
                for name, value in self._values.items():
                    value.copy_(kept[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the sums and their divisor."""
        return {"share": self._share, "sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`.

        Raises:
            RuntimeError: the state is that of another network.
        """
        share, sums = _parts(state)
        different = sums.keys() ^ self._sums.keys()
        if different:
            raise RuntimeError(f"average: {', '.join(sorted(different))}")
        self._share.copy_(share)
        for name, each in self._sums.items():
            if sums[name].shape != each.shape:
                raise RuntimeError(
                    f"average: {name}: expected {list(each.shape)}, got "
                    f"{list(sums[name].shape)}"
                )
            each.copy_(sums[name])


def averaged_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the method's state from a checkpoint, averaged weights if it has any.

    Raises:
        RuntimeError: the averages do not come from :class:`WeightAverage`.
    """
    state = dict(checkpoint["method"])
    if checkpoint.get("average") is not None:
        share, sums = _parts(checkpoint["average"])
        missing = set(sums)
        for key in state if float(share) else ():
            # A wrapped method holds the same network again, as inner.model.
            name = f".{key}".partition(".model.")[2]
            if name in sums:
                state[key] = sums[name] / share
                missing.discard(name)
        if missing and float(share):
            raise RuntimeError(f"average: no weights {', '.join(sorted(missing))}")
    return state


def _parts(state: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
    share, sums = (
        (state.get("share"), state.get("sums"))
        if isinstance(state, Mapping)
        else (None, None)
    )
    if (
        not isinstance(share, Tensor)
        or share.numel() != 1
        or not isinstance(sums, Mapping)
        or not all(isinstance(each, Tensor) for each in sums.values())
    ):
        raise RuntimeError("average: expected a share and named sums")
    return share, sums
