"""The description of what :func:`s3h_ext.ops.views.render_views` renders."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Patches"]


@dataclass(frozen=True)
class Patches:
    """What to render: P patches, each a part of a source image drawn into a view.

    A patch is cut out of its image, mirrored, resized into its rectangle (or mapped by
    its affine matrix), and coloured, in this order.

    Attributes:
        image: int64 ``[P]``, index of the source image of each patch.
        box: int64 ``[P, 4]``: top, left, height, width in source pixels, sides from 1
            to 65536. Parts outside the image are black.
        flip: bool ``[P]``, mirror the box left to right; ``None`` mirrors no patch.
        colour: float32 ``[P, C, C + 1]``, a matrix applied to pixels in [0, 1]; its
            last column is an offset, and the result is clamped to [0, 1]. ``None`` for
            no change. NaN in a matrix gives NaN pixels.
        affine: float32 ``[P, 2, 3]``: the patch's pixel with centre (x, y) in its
            rectangle shows the point ``(x, y, 1)`` times the transposed matrix, in
            pixels of the (mirrored) box from its top left corner, horizontal coordinate
            first, as in PIL's ``Image.transform``. It replaces the resize and is not
            antialiased. ``None``: the box is resized to the rectangle.
        view: int64 ``[P]``, index of the view that each patch is drawn into; ``None``:
            patch i goes to view i. Later patches cover earlier ones.
        rect: int64 ``[P, 4]``, the destination within the view: top, left, height,
            width; ``None``: the whole view.
        views: Number of views; ``None``: P, or one more than the largest ``view``.
            Uncovered parts of a view are black.
        nearest: Whether affine maps take the nearest pixel instead of interpolating
            bilinearly.
        fill: Value that an affine map shows outside the box, on pixels in [0, 1].
    """

    image: Tensor
    box: Tensor
    flip: Tensor | None = None
    colour: Tensor | None = None
    affine: Tensor | None = None
    view: Tensor | None = None
    rect: Tensor | None = None
    views: int | None = None
    nearest: bool = False
    fill: float = 0.0

    def __len__(self) -> int:
        return self.image.shape[0]

    def count(self) -> int:
        """Return the number of views, V.

        Raises:
            ValueError: ``views`` is negative, or not P while ``view`` is None; or every
                ``view`` is negative.
        """
        if self.views is None:
            if self.view is None:
                return len(self)
            last = int(self.view.max()) if len(self) > 0 else -1
            if len(self) > 0 and last < 0:
                raise ValueError(f"patches.view: expected at least 0, got {last}")
            return last + 1
        if self.views < 0 or (self.view is None and self.views != len(self)):
            expected = f"{len(self)}" if self.view is None else "at least 0"
            raise ValueError(f"patches.views: expected {expected}, got {self.views}")
        return self.views
