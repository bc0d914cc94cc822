"""Classifiers and projection heads on pooled features."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _linear_logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return logits in at least 32 bits, even under autocast.

    With 16 bits, two classes can tie for the highest logit. The first one then wins,
    which in long-tailed data is the more frequent one.
    """
    device = features.device.type
    # Enter no context without autocast: an export would keep it.
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return _linear_logits(features, weight, bias)
    bias = None if bias is None else _wide(bias)
    return F.linear(_wide(features), _wide(weight), bias)


def _cosine_logits(features: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Return ``scale * cos``; at a scale of 30, 16 bits are too coarse to train."""
    features, weight = (F.normalize(_wide(x), dim=1) for x in (features, weight))
    return scale * _linear_logits(features, weight, None)


class LinearClassifier(nn.Linear):
    """A linear layer with the Kaiming-normal initialisation of the CIFAR-LT codebases.

    In evaluation its logits are float32, even under autocast.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of ``features [B, D]``."""
        if self.training:
            return super().forward(features)
        return _linear_logits(features, self.weight, self.bias)

    def reset_parameters(self) -> None:
        """Initialise weight and bias."""
        nn.init.kaiming_normal_(self.weight)
        if self.bias is not None:
            bound = 1.0 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)


class CosineClassifier(nn.Module):
    """``logits = scale * cos(features, weight)``, a cosine classifier.

    Args:
        in_features: feature dimension ``D``.
        out_features: number of classes ``C``.
        scale: factor of the cosine; LDAM-DRW trains with 30.

    Example:
        >>> import torch
        >>> CosineClassifier(64, 10)(torch.randn(4, 64)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self, in_features: int, out_features: int, scale: float = 30.0
    ) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale: expected a finite number > 0, got {scale}")
        self.in_features, self.out_features, self.scale = (
            in_features,
            out_features,
            scale,
        )
        self.weight = nn.Parameter(torch.empty(out_features, in_features))  # [C, D]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights: uniform, then normalised."""
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight.uniform_(-1, 1), dim=1))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of features ``[B, D]``, float32 for 16-bit input."""
        return _cosine_logits(features, self.weight, self.scale)


MappingName = Literal["logsumexp", "max"]


class GroupedClassifier(nn.Module):
    """A classifier over sub-classes, mapped back to classes (CWS's group mapping).

    Class c owns the outputs ``offsets[c] .. offsets[c + 1] - 1``. Its logit is their
    log-sum-exp, which makes the class's probability the sum of theirs, or their
    maximum. Before :meth:`split_` only the first output of each class is used.

    Args:
        classifier: a classifier over the C classes; its weights initialise the first
            outputs.
        offsets: int64 ``[C + 1]``, rising from 0 to S.
        mapping: from sub-class to class logits, ``"logsumexp"`` or ``"max"``.

    Example:
        >>> import torch
        >>> head = GroupedClassifier(LinearClassifier(64, 2), torch.tensor([0, 3, 4]))
        >>> head(torch.randn(5, 64)).shape
        torch.Size([5, 2])
        >>> head.subclass_logits(torch.randn(5, 64)).shape
        torch.Size([5, 4])
    """

    offsets: Tensor  # [C + 1]
    places: Tensor  # [C, K]: outputs of each class, padded with S
    owner: Tensor  # [S]: class of each output
    is_split: Tensor  # []

    def __init__(
        self,
        classifier: LinearClassifier | CosineClassifier,
        offsets: Tensor,
        mapping: MappingName = "logsumexp",
    ) -> None:
        super().__init__()
        if mapping not in get_args(MappingName):
            raise ValueError(
                f"mapping: expected one of {get_args(MappingName)}, got {mapping!r}"
            )
        rows = offsets.diff()
        sound = len(rows) == len(classifier.weight) and bool((rows >= 1).all())
        if not sound or int(offsets[0]) != 0:
            raise ValueError(
                f"offsets: expected {len(classifier.weight)} classes with a row each, "
                f"from 0 on, got {offsets.tolist()}"
            )
        if isinstance(classifier, LinearClassifier) and classifier.bias is None:
            raise ValueError("classifier: expected a linear one with a bias, got none")
        self.mapping: MappingName = mapping
        owner = torch.repeat_interleave(rows)
        steps = torch.arange(int(rows.max()))
        places = offsets[:-1, None] + steps
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer(
            "places",
            torch.where(steps < rows[:, None], places, len(owner)),
            persistent=False,
        )
        self.register_buffer("is_split", torch.tensor(False))
        self._known: bool | None = False
        hook: Any = self.register_load_state_dict_post_hook  # no annotations
        hook(_forget)
        # Draw no weights: the random numbers of other methods must stay the same.
        weight = classifier.weight.detach()[owner]
        self.weight = nn.Parameter(weight.clone())  # [S, D]
        self.scale = classifier.scale if isinstance(classifier, CosineClassifier) else 0
        self.bias = (
            nn.Parameter(classifier.bias.detach()[owner].clone())
            if isinstance(classifier, LinearClassifier)
            else None
        )

    @property
    def active(self) -> bool:
        """Whether the classes have been split; cached on the host, free to read."""
        if self._known is None:
            self._known = bool(self.is_split)
        return self._known

    @torch.no_grad()
    def split_(self, noise: float) -> None:
        """Start using all outputs: each becomes a copy of the first one of its class.

        Normal noise of ``noise`` times the norm of the weight row lets the copies
        diverge. With log-sum-exp, the bias is lowered by the logarithm of the number of
        copies, which keeps the class's logit; without a bias, the logit rises by it.
        """
        first, rows = self.offsets[:-1], self.offsets.diff()[self.owner]
        copies = self.weight[first][self.owner]
        lengths = copies.norm(dim=1, keepdim=True) / math.sqrt(copies.shape[1])
        drawn = copies + noise * lengths * torch.randn_like(copies)
        self.weight.copy_(torch.where(rows[:, None] > 1, drawn, copies))
        if self.bias is not None:
            bias = self.bias[first][self.owner]
            self.bias.copy_(bias - rows.log() if self.mapping == "logsumexp" else bias)
        self.is_split.fill_(True)
        self._known = True

    def subclass_logits(self, features: Tensor) -> Tensor:
        """Return logits ``[B, S]`` of ``features [B, D]``."""
        if self.bias is not None:
            linear = F.linear if self.training else _linear_logits
            return linear(features, self.weight, self.bias)
        return _cosine_logits(features, self.weight, self.scale)

    def group(self, logits: Tensor) -> Tensor:
        """Return float32 class logits ``[B, C]`` of sub-class logits ``[B, S]``."""
        logits = logits.float()
        if not self.active:
            return logits.index_select(1, self.offsets[:-1])
        padded = F.pad(logits, (0, 1), value=-math.inf)
        of_class = padded[:, self.places]  # [B, C, K]
        if self.mapping == "max":
            return of_class.amax(dim=2)
        return of_class.logsumexp(dim=2)

    def forward(self, features: Tensor) -> Tensor:
        """Return class logits ``[B, C]`` of ``features [B, D]``."""
        return self.group(self.subclass_logits(features))


def _forget(module: nn.Module, incompatible: object) -> None:
    if isinstance(module, GroupedClassifier):
        module._known = None


class MLPHead(nn.Sequential):
    """Projection head with one hidden layer: ``D -> hidden -> out``, ReLU between.

    Used by Hybrid (Wang et al., CVPR 2021); the output is not normalised here.

    Example:
        >>> import torch
        >>> MLPHead(64, 64, 128)(torch.randn(4, 64)).shape
        torch.Size([4, 128])
    """

    def __init__(self, in_features: int, hidden: int, out_features: int) -> None:
        super().__init__(
            nn.Linear(in_features, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out_features),
        )
