"""Data classes of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

__all__ = ["Tensors"]

_Self = TypeVar("_Self", bound="Tensors")


class Tensors:
    """A data class of tensors, of others like it, and of what is neither."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def each(self: _Self, function: Callable[[Tensor], Tensor]) -> _Self:
        """Returns a copy with a function of each tensor, in the order of the fields."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif isinstance(value, Tensors):
                changed[field.name] = value.each(function)
        return replace(self, **changed)

    def to(self: _Self, device: torch.device) -> _Self:
        """Returns a copy on a device."""
        return self.each(lambda tensor: tensor.to(device))

    def tensors(self) -> list[Tensor]:
        """Returns the tensors in the order of :meth:`each`."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.each(keep)
        return found
