"""Initial network weights from other programs' files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from s3h_ext.models import Backbone

__all__ = ["load_weights"]

_CLASSIFIER = "fc."


def load_weights(backbone: Backbone, path: Path) -> None:
    """Load a state dictionary with torchvision's names into ``backbone``.

    A classifier (``fc``) in the file is ignored, a ``module.`` prefix is removed, and a
    dictionary under ``"state_dict"`` is unwrapped. The file is one written by
    ``torch.save``; reading it cannot execute code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold a state dictionary, or one of another network.
    """
    if not path.is_file():
        raise FileNotFoundError(f"model.weights: expected a file, got {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise ValueError(
            f"model.weights: {path} cannot be read: {type(error).__name__}: {error}"
        ) from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(
            f"model.weights: expected a dictionary of tensors in {path}, got "
            f"{type(state).__name__}"
        )
    names = {name: str(name).removeprefix("module.") for name in state}
    weights = {
        names[name]: value
        for name, value in state.items()
        if not names[name].startswith(_CLASSIFIER)
    }
    # Files from before PyTorch 0.4.1 have no batch counts.
    for name, value in backbone.state_dict().items():
        if name.endswith("num_batches_tracked"):
            weights.setdefault(name, value)
    try:
        backbone.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"model.weights: {path} does not fit: {error}") from error
