"""Data classes whose fields are tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

__all__ = ["Tensors"]

_Self = TypeVar("_Self", bound="Tensors")


class Tensors:
    """Base of data classes of tensors, nested data classes and other values."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def each(self: _Self, function: Callable[[Tensor], Tensor]) -> _Self:
        """Return a copy with ``function`` applied to each tensor, in field order."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, Tensors):
                changed[field.name] = value.each(function)
        return replace(self, **changed)

    def to(self: _Self, device: torch.device) -> _Self:
        """Return a copy on a device."""
        return self.each(lambda tensor: tensor.to(device))

    def tensors(self) -> list[Tensor]:
        """Return the tensors in the order of :meth:`each`."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.each(keep)
        return found
