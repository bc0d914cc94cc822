"""Decodes image files and handles unreadable ones."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from s3h_ext.checks import NOT_NEGATIVE, check, check_choice
from s3h_ext.data.dataset import ImageFiles

if TYPE_CHECKING:
    from PIL import Image
    from PIL.Image import Transpose

__all__ = [
    "Decoder",
    "PillowDecoder",
    "Unreadable",
    "UnreadableImageError",
    "UnreadablePolicy",
    "available_cpus",
    "decode_image",
    "decoding_threads",
]

UnreadablePolicy = Literal["error", "skip"]

#: Formats to decode. Not all of Pillow's: for a PostScript file it would start another
#: program on untrusted input.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")

#: Longest side of an image that :func:`s3h_ext.ops.render_views` accepts.
LONGEST_SIDE = 65536
_ORIENTATION = 0x0112
# Pillow's modes whose pixels have no range that could be mapped to 0 .. 255.
_OTHER_NUMBERS = {
    "I": "whole numbers of 32 bits or with a sign",
    "F": "floating-point numbers",
}
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnreadableImageError(ValueError):
    """An image file is missing, damaged or not an image; the message has its path."""


class Unreadable:
    """Image files that could not be read, and how to handle them.

    Args:
        policy: ``"error"``: the first one ends the run. ``"skip"``: the image is
            recorded and left out of its batch, which becomes smaller.

    Attributes:
        errors: Path -> error message.
    """

    def __init__(self, policy: UnreadablePolicy = "error") -> None:
        check_choice("unreadable", policy, get_args(UnreadablePolicy))
        self.policy = policy
        self.errors: dict[str, str] = {}
        self._lock = threading.Lock()

    def record(self, path: str, error: Exception) -> None:
        """Record an image that could not be read, or raise if that is the policy."""
        reason = str(error) or type(error).__name__
        if self.policy == "error":
            raise UnreadableImageError(
                f"{path}: expected an image, got: {reason}. Repair or remove it, or "
                "leave such images out with --data.unreadable skip; python -m "
                "s3h_ext.data check NAME --root DIR --decode lists all of them"
            ) from error
        with self._lock:
            self.errors[path] = reason


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def decoding_threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Open threads, 0 for one per CPU; on exit, jobs not yet started are cancelled."""
    pool = ThreadPoolExecutor(workers or available_cpus(), "s3h-decode")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def decode_image(content: bytes) -> Tensor:
    """Decode an image file with Pillow to uint8 ``[H, W, 3]``.

    EXIF rotation is applied, grey and palettes become RGB, CMYK is converted, alpha is
    dropped, 16-bit images keep the upper 8 bits, and animations their first frame.

    Raises:
        Exception: whatever Pillow raises on a file that is damaged or not an image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("no image of a known format") from None
    with opened:
        image: Image.Image = opened
        if max(image.size) > LONGEST_SIDE:
            raise ValueError(
                f"sides of at most {LONGEST_SIDE} pixels, not {image.size}"
            )
        if opened.format == "TIFF":
            _quieten_libtiff()
        image.load()
        upright = _upright(image)
        if upright is not None:
            image = image.transpose(upright)
        if image.mode.startswith("I;16") or (image.mode, opened.format) == ("I", "PPM"):
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return torch.from_numpy(np.repeat(grey[..., None], 3, axis=-1))
        if image.mode in _OTHER_NUMBERS:
            raise ValueError(
                "pixels of 8 or 16 bits without a sign, not "
                f"{_OTHER_NUMBERS[image.mode]} (mode {image.mode})"
            )
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode != "RGB":
            image = image.convert("RGB")
        # A copy, because the array of an image is read-only.
        return torch.from_numpy(np.array(image))


@cache
def _quieten_libtiff() -> None:
    """Stop libtiff from printing to stderr what Pillow raises as an exception.

    Pillow has no option for it. This looks up the libtiff that Pillow is linked to; if
    the system's loader does not find it, the messages remain.
    """
    from PIL import _imaging

    try:
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):
        return
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    set_handler(None)


def _upright(image: Image.Image) -> Transpose | None:
    """Return the transposition that turns an image upright by its EXIF alone.

    Not ``exif_transpose``: it rewrites all metadata, which fails if any of it is odd,
    and it also consults XMP, which other decoders do not. TIFF images were already
    rotated when they were loaded.
    """
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        value: object = exif.get(_ORIENTATION)
    except Exception:  # the metadata is damaged, the image may be fine
        return None
    turns = Image.Transpose
    return {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(value if isinstance(value, int) else 1)


class Decoder(Protocol):
    """Decodes batch after batch of an image set, ahead of their use."""

    def images(
        self, batches: Iterable[NDArray[np.int64]], largest: int
    ) -> Iterator[list[Tensor | None]]:
        """Decode batches of images.

        A batch holds positions in the image set, int64 ``[B]``; ``largest`` is the
        largest B.

        Returns:
            For each batch its images in order, uint8 ``[H, W, 3]``; ``None`` for those
            that could not be read.

        Raises:
            UnreadableImageError: an image could not be read and the policy is
                ``"error"``.
        """
        ...


class PillowDecoder:
    """Pillow in threads, which run in parallel while decoding.

    ``workers=0`` uses one thread per CPU.

    Raises:
        ValueError: ``workers`` is negative.

    Example:
        >>> files = ImageFiles.of("photos", ["a.jpg"], [0])
        >>> decoder = PillowDecoder(files, Unreadable("skip"))
        >>> list(decoder.images([np.array([0])], largest=1))
        [[None]]
    """

    def __init__(
        self, files: ImageFiles, unreadable: Unreadable, *, workers: int = 0
    ) -> None:
        check(NOT_NEGATIVE, workers=workers)
        self._files = files
        self._unreadable = unreadable
        self._workers = workers

    def image(self, index: int) -> Tensor | None:
        """Return an image, or ``None`` if it cannot be read."""
        path = self._files.path(index)
        try:
            return decode_image(path.read_bytes())
        except Exception as error:  # a damaged file can fail anywhere in a decoder
            of_machine = getattr(error, "errno", None) in _OF_THE_MACHINE
            if of_machine or isinstance(error, MemoryError):
                raise  # not the file's fault
            self._unreadable.record(str(path), error)
            return None

    def images(
        self, batches: Iterable[NDArray[np.int64]], largest: int
    ) -> Iterator[list[Tensor | None]]:
        """See :class:`Decoder`."""
        pending: deque[list[Future[Tensor | None]]] = deque()
        with decoding_threads(self._workers) as pool:
            for batch in batches:
                pending.append([pool.submit(self.image, i) for i in batch.tolist()])
                # Decode one batch while the previous one is in use; more would only
                # take memory, as photographs are kept at full size.
                if len(pending) > 1:
                    yield [future.result() for future in pending.popleft()]
            while pending:
                yield [future.result() for future in pending.popleft()]
