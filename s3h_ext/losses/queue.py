"""A queue of the rows of earlier batches, used as keys of a contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3h_ext.losses._common import check_labels
from s3h_ext.ops import gather_rows
from s3h_ext.ops._arguments import check_matrices


class FeatureQueue(nn.Module):
    """A queue of the most recent rows: XBM's memory, MoCo's queue.

    Pass ``features`` and ``labels`` to :func:`s3h_ext.losses.supcon_loss` as ``keys``
    and ``key_labels``; empty slots have the label -1 and are ignored. All state is in
    buffers, so a run that loads the ``state_dict`` resumes bit for bit. Nothing
    synchronises with the device, so steps can be recorded as CUDA graphs.

    Attributes:
        features: ``[Q, D]``; zeros in empty slots.
        labels: ``[Q]`` int64; -1 in empty slots.
        position: ``[]`` int64, the oldest slot, which is overwritten next.

    Args:
        size: Q, capacity in rows.
        dim: D, dimension of the features.
        dtype: dtype of the stored features. The losses accept a 16-bit queue with
            float32 rows.
        gather: enqueue the rows of all processes in the order of their ranks, so that
            all queues are the same, as ``keys`` must be.

    Raises:
        ValueError: a size is below 1.
        TypeError: ``dtype`` is not floating point.

    Example:
        >>> queue = FeatureQueue(size=4, dim=2)
        >>> queue.enqueue(torch.eye(2), torch.tensor([5, 7]))
        tensor([0, 1])
        >>> queue.labels
        tensor([ 5,  7, -1, -1])
    """

    features: Tensor  # [Q, D]
    labels: Tensor  # [Q]
    position: Tensor  # []

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        gather: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating point, got {dtype}")
        self.gather = gather
        self.register_buffer("features", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        """Return the sizes shown by ``repr``."""
        size, dim = self.features.shape
        return f"size={size}, dim={dim}" + (", gather=True" if self.gather else "")

    @torch.no_grad()
    def enqueue(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Overwrite the oldest rows with new ones.

        The rows are detached. You may enqueue before the backward of a loss that used
        the queue with its labels, because the loss keeps a copy. Of more than Q rows,
        only the last Q are kept.

        Args:
            features: ``[N, D]``, unit rows as the losses expect.
            labels: ``[N]`` integers; a negative one leaves its slot empty. None: 0 for
                every row, for losses without labels.

        Returns:
            ``[N]``, the slots of the rows; -1 for a row that was not kept. Pass it as
            ``self_index`` if a row must not see itself in the queue.

        Raises:
            ValueError: a shape or device does not match the queue.
            TypeError: an argument has the wrong type.
        """
        check_matrices(features, None, "features")
        size, dim = self.features.shape
        if features.shape[1] != dim:
            raise ValueError(
                f"features must be [N, {dim}] like the queue, "
                f"got shape {tuple(features.shape)}"
            )
        if features.device != self.features.device:
            raise ValueError(
                f"features must be on {self.features.device} like the queue, "
                f"got {features.device}"
            )
        if labels is None:
            labels = torch.zeros(
                len(features), dtype=torch.int64, device=features.device
            )
        labels = check_labels("labels", labels, features, "features")
        start, own = 0, len(features)
        if self.gather:
            (features, labels), start = gather_rows(features, labels)
        count = len(features)
        places = (torch.arange(count, device=features.device) + self.position) % size
        self.features[places[-size:]] = features[-size:].to(self.features.dtype)
        self.labels[places[-size:]] = labels[-size:].clamp(min=-1)
        self.position.add_(count).remainder_(size)
        places[: max(0, count - size)] = -1
        return places[start : start + own]
