"""A stand-in for CUDA graphs on the CPU: operations on memory, recorded and replayed.

As in a graph, a replay runs no Python of the recorded function, reads and writes the
same tensors, and knows numbers only as they were when it was recorded.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape:
    """A recorder of :mod:`s3h_ext.training.recording`."""

    def __init__(self):
        self.runs = self.recordings = self.replays = self.forgotten = 0

    def run(self, function):
        self.runs += 1
        return function()

    def forget(self):
        self.forgotten += 1

    def record(self, function):
        self.recordings += 1
        steps = []

        class Recording(TorchDispatchMode):
            def __torch_dispatch__(self, op, types, args=(), kwargs=None):
                if op in SYNCS:
                    raise RuntimeError(f"{op} reads a value on the host")
                made = op(*args, **(kwargs or {}))
                steps.append((op, args, kwargs or {}, made))
                return made

        with Recording():
            result = function()
        # The CPU cannot but do the work that it records.
        done = True

        def replay():
            nonlocal done
            self.replays += 1
            if done:
                done = False
                return
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                for op, args, kwargs, made in steps:
                    keep(made, op(*args, **kwargs))

        return result, replay


def keep(places, results):
    """Puts results where they were when the operation was recorded."""
    for place, result in zip(tree_leaves(places), tree_leaves(results), strict=True):
        if not isinstance(place, torch.Tensor) or not place.numel():
            continue
        # In place, or a view: it is there already.
        if place.data_ptr() != result.data_ptr():
            place.copy_(result)


SYNCS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
}
