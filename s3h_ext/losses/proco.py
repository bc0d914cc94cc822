"""Probabilistic contrastive loss, ProCo (Du et al., TPAMI 2024)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s3h_ext.losses._common import ContrastiveModule, check_labels
from s3h_ext.losses._reduction import (
    ContrastiveStats,
    Reduced,
    reduce,
    with_stats,
)
from s3h_ext.losses.classification import Counts, read_counts
from s3h_ext.ops import gather_rows
from s3h_ext.ops._arguments import (
    Reduction,
    check_matrices,
    check_temperature,
    check_tensor,
    check_vector,
    compute_dtype,
)
from s3h_ext.ops.bessel import log_bessel

#: Largest concentration, as in the released code.
_MOST = 1e5
#: Length of the mean of an unseen class, as in the released code.
_UNSEEN = 0.9


@with_stats
def proco_loss(
    features: Tensor,
    labels: Tensor,
    means: Tensor,
    class_counts: Tensor,
    *,
    temperature: float = 0.1,
    reduction: Reduction = "mean",
    gather: bool = False,
) -> Reduced:
    r"""Contrast with infinitely many keys of estimated distributions (Du et al. 2024).

    ``L_i = −log( π_{y_i} r_{i,y_i} / Σ_j π_j r_ij )``,
    ``r_ij = C_D(κ_ij) / C_D(κ_j)``, ``κ_ij = |κ_j μ_j + z_i/τ|``

    This is the paper's closed form ``L_in`` of the expected loss. The rows of each
    class follow a von Mises-Fisher distribution with direction μ and concentration κ,
    whose normaliser is ``C_D(κ) = (2π)^{D/2} I_{D/2−1}(κ) / κ^{D/2−1}``; π are the
    class shares. A class whose mean has length R has ``κ = D R / (1 − R²)``, at most
    10⁵, as in the released code; the estimate of Banerjee et al. (JMLR 2005),
    ``R (D − R²) / (1 − R²)``, is smaller by a fraction R²/D.

    It computes in float64 and with logarithms, so no dimension or concentration
    overflows. Like a classifier of C classes, it needs a few N × C matrices, but none
    of N × C × D.

    Args:
        features: ``[N, D]``, rows of unit length.
        labels: ``[N]`` integers below C; negative: no class, the row is skipped.
        means: ``[C, D]`` floating point, the mean of each class's rows, of length 0 to
            1; treated as constants.
        class_counts: ``[C]``, training counts or other numbers > 0 in proportion to π.
        temperature: τ, > 0.
        reduction: ``"mean"`` over counted anchors, ``"sum"``, or ``"none"`` ``[N]``.
        gather: count the anchors of all processes, see :mod:`s3h_ext.losses`.
        return_stats: also return :class:`ContrastiveStats`.

    Returns:
        The loss, and the stats if asked for.

    Raises:
        ValueError: a shape, label, temperature or reduction is invalid.
        TypeError: an argument has the wrong type.

    Example:
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> means = torch.stack([z[:4].mean(0), z[4:].mean(0)])
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
        >>> proco_loss(z, labels, means, torch.tensor([90, 10])).shape
        torch.Size([])
    """
    temperature = check_temperature(temperature)
    check_matrices(features, None, "features")
    means = _check_means(means, features)
    check_vector("class_counts", class_counts, len(means), features.device)
    labels = check_labels("labels", labels, features, "features", len(means))
    rows = features.double() / temperature
    dim = features.shape[1]
    length = means.norm(dim=1)
    kappa = (dim * length / (1 - length.square()).clamp(min=0)).clamp(max=_MOST)
    directions = kappa[:, None] * F.normalize(means, dim=1)
    squares = torch.addmm(kappa.square(), rows, directions.T, alpha=2)
    squares = (squares + rows.square().sum(dim=1, keepdim=True)).clamp(min=0)
    # 1 / C_D up to a factor that all classes share.
    order = dim / 2 - 1
    logits = log_bessel(squares, order) - log_bessel(kappa.square(), order)
    logits = logits + class_counts.double().log()
    counted = (labels >= 0) & (labels < len(means))
    losses = F.cross_entropy(logits, labels.masked_fill(~counted, 0), reduction="none")
    losses = losses.to(compute_dtype(features.dtype))
    return reduce(losses, counted, reduction, gather)


def _check_means(means: Tensor, features: Tensor) -> Tensor:
    """Return means ``[C, D]`` in float64, detached."""
    check_tensor("means", means)
    if means.ndim != 2 or means.shape[1] != features.shape[1]:
        raise ValueError(
            f"means must be [C, {features.shape[1]}] like the features, "
            f"got shape {tuple(means.shape)}"
        )
    if not means.is_floating_point():
        raise TypeError(f"means must be floating point, got {means.dtype}")
    if means.device != features.device:
        raise ValueError(f"means must be on {features.device}, got {means.device}")
    return means.detach().double()


class ProCoLoss(ContrastiveModule):
    """:func:`proco_loss` with class means that it estimates during training.

    In training mode, a call first adds its rows to the estimates, as the released code
    does; in eval mode it leaves them unchanged. An epoch starts from the means of the
    previous one and adds its own rows: call :meth:`begin_epoch`. The mean of an unseen
    class has length 0.9 and a random direction. All state is in buffers, so a run that
    loads the ``state_dict`` resumes bit for bit. For two views, the paper calls the
    loss twice and averages.

    Args:
        class_counts: training images of each class, ``C`` numbers >= 1.
        dim: D, dimension of the features.
        temperature: τ, > 0.
        reduction: ``"mean"`` over counted anchors, ``"sum"`` or ``"none"``.
        gather: estimate from the rows of all processes, and count their anchors, see
            :mod:`s3h_ext.losses`.

    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> loss_fn = ProCoLoss([90, 10], dim=16)
        >>> z = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
        >>> loss_fn.begin_epoch()
        >>> loss_fn(z, torch.arange(8) % 2).shape
        torch.Size([])
    """

    class_counts: Tensor  # [C]
    unseen: Tensor  # [C, D]
    sums: Tensor  # [C, D]
    masses: Tensor  # [C]
    next_sums: Tensor  # [C, D]
    next_masses: Tensor  # [C]

    def __init__(
        self,
        class_counts: Counts,
        dim: int,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        gather: bool = False,
    ) -> None:
        super().__init__(temperature, reduction, gather=gather)
        if dim < 1:
            raise ValueError(f"dim must be 1 or more, got {dim}")
        counts = read_counts(class_counts)
        # The same seed in every process.
        generator = torch.Generator().manual_seed(0)
        unseen = F.normalize(
            torch.randn(len(counts), dim, dtype=torch.float64, generator=generator),
            dim=1,
        )
        self.register_buffer("class_counts", counts, persistent=False)
        self.register_buffer("unseen", _UNSEEN * unseen)
        for name in ("sums", "next_sums"):
            self.register_buffer(name, torch.zeros_like(unseen))
        for name in ("masses", "next_masses"):
            self.register_buffer(name, torch.zeros_like(counts))

    def settings(self) -> dict[str, Any]:
        """Return the function's arguments; the counts set the number of classes."""
        settings = super().settings()
        del settings["num_classes"]
        return settings

    def means(self) -> Tensor:
        """Return the estimated class means ``[C, D]``."""
        seen = self.masses[:, None]
        return torch.where(seen > 0, self.sums / seen.clamp(min=1), self.unseen)

    @torch.no_grad()
    def begin_epoch(self) -> None:
        """Start an epoch from the last one's estimates and collect new ones."""
        self.sums.copy_(self.next_sums)
        self.masses.copy_(self.next_masses)
        self.next_sums.zero_()
        self.next_masses.zero_()

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add rows ``[N, D]`` with labels ``[N]`` to the estimates."""
        check_matrices(features, None, "features")
        if features.shape[1] != self.sums.shape[1]:
            raise ValueError(
                f"features must be [N, {self.sums.shape[1]}] like the loss's means, "
                f"got shape {tuple(features.shape)}"
            )
        classes = len(self.masses)
        labels = check_labels("labels", labels, features, "features", classes)
        if self.gather:
            (features, labels), _ = gather_rows(features, labels)
        known = (labels >= 0) & (labels < classes)
        place, share = torch.where(known, labels, 0), known.to(self.sums.dtype)
        # masked_fill, as 0 times the content of a row without a class may be NaN.
        rows = features.to(self.sums.dtype).masked_fill(~known[:, None], 0)
        for sums, masses in (
            (self.sums, self.masses),
            (self.next_sums, self.next_masses),
        ):
            sums.index_add_(0, place, rows)
            masses.index_add_(0, place, share)

    def forward(
        self, features: Tensor, labels: Tensor, return_stats: bool = False
    ) -> Tensor | tuple[Tensor, ContrastiveStats]:
        """See :func:`proco_loss`: features ``[N, D]``, labels ``[N]``."""
        if self.training:
            self.update(features, labels)
        return proco_loss(
            features,
            labels,
            self.means(),
            self.class_counts,
            return_stats=return_stats,
            **self.settings(),
        )
