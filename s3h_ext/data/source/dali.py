"""NVIDIA DALI as decoder, with the pixels, order and boxes of the other decoders.

DALI only decodes: samplers, boxes and rendering are ours, so a run draws the same with
every decoder, and its position is a pair of numbers. Complete JPEGs go to DALI,
everything else to Pillow, including files that DALI rejects. A GPU is not required.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from s3h_ext.data.dataset import ImageFiles
from s3h_ext.data.source.decode import (
    LONGEST_SIDE,
    PillowDecoder,
    Unreadable,
    available_cpus,
    decoding_threads,
)

__all__ = ["DaliDecoder"]

#: Number of batches read and decoded ahead.
AHEAD = 2

# A one-pixel JPEG, for batches without an image for DALI.
_PIXEL = np.frombuffer(
    bytes.fromhex(
        "ffd8ffe000104a46494600010100000100010000ffdb004300"
        + "ff" * 64
        + "ffc0000b080001000101011100ffc40014000100000000000000000000000000000003"
        "ffc40014100100000000000000000000000000000000ffda0008010100003f0037ffd9"
    ),
    np.uint8,
)


@dataclass(eq=False)
class _Fed:
    """A batch in flight: positions, and the bytes of the files that DALI decodes."""

    indices: list[int]
    contents: list[NDArray[np.uint8] | None]
    others: dict[int, Future[Tensor | None]]

    @property
    def encoded(self) -> list[NDArray[np.uint8]]:
        return [content for content in self.contents if content is not None]


class DaliDecoder:
    """DALI on the CPU, or on the GPU that needs the batches.

    On a GPU it decodes there (``mixed``), and the images stay there. The arguments are
    those of :class:`~.decode.PillowDecoder` and the device of the batches.

    Raises:
        ImportError: DALI is not installed.
        ValueError: ``workers`` is negative.
    """

    def __init__(
        self,
        files: ImageFiles,
        unreadable: Unreadable,
        *,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        try:
            import nvidia.dali  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "source: 'dali' needs NVIDIA DALI: pip install 's3h-ext[dali-cuda13]' "
                f"(or [dali-cuda12]); {error}"
            ) from error
        self._files = files
        self._pillow = PillowDecoder(files, unreadable, workers=workers)
        self._workers = workers or available_cpus()
        self._device = torch.device(device)

    def images(
        self, batches: Iterable[NDArray[np.int64]], largest: int
    ) -> Iterator[list[Tensor | None]]:
        """See :class:`~.decode.Decoder`."""
        begun: deque[_Fed] = deque()
        again: deque[_Fed] = deque()
        coming = iter(batches)
        with decoding_threads(self._workers) as pool:

            def feed() -> list[NDArray[np.uint8]]:
                # Raises StopIteration at the end, as DALI expects.
                fed = again.popleft() if again else None
                begun.append(fed or self._read(next(coming).tolist(), pool))
                return begun[-1].encoded or [_PIXEL]

            pipeline = self._pipeline(feed, largest)
            while True:
                try:
                    (decoded,) = pipeline.run()
                except StopIteration:
                    return
                except RuntimeError:
                    if not begun:
                        raise
                    # A file of the oldest batch or a later one is damaged. Pillow
                    # decodes the oldest, and DALI restarts with the others.
                    fed = begun.popleft()
                    again.extendleft(reversed(begun))
                    begun.clear()
                    pipeline = self._pipeline(feed, largest)
                    yield list(pool.map(self._pillow.image, fed.indices))
                else:
                    yield _merged(begun.popleft(), decoded)

    def _read(self, indices: list[int], pool: ThreadPoolExecutor) -> _Fed:
        contents = list(pool.map(self._content, indices))
        others = {
            index: pool.submit(self._pillow.image, index)
            for index, content in zip(indices, contents, strict=True)
            if content is None
        }
        return _Fed(indices, contents, others)

    def _content(self, index: int) -> NDArray[np.uint8] | None:
        try:
            content = self._files.path(index).read_bytes()
        except OSError:
            return None
        return np.frombuffer(content, np.uint8) if _for_dali(content) else None

    def _pipeline(
        self, feed: Callable[[], list[NDArray[np.uint8]]], largest: int
    ) -> Any:
        from nvidia.dali import Pipeline, fn, types

        on_gpu = self._device.type == "cuda"
        pipeline = Pipeline(
            batch_size=max(largest, 1),
            num_threads=self._workers,
            device_id=(self._device.index or 0) if on_gpu else None,
            prefetch_queue_depth=AHEAD,
            exec_dynamic=True,
        )
        with pipeline:
            encoded = fn.external_source(source=feed, batch=True, no_copy=True)
            device = "mixed" if on_gpu else "cpu"
            pipeline.set_outputs(
                fn.decoders.image(encoded, device=device, output_type=types.RGB)
            )
        pipeline.build()
        return pipeline


def _merged(fed: _Fed, decoded: Any) -> list[Tensor | None]:
    """Return the images in order: DALI's, without a copy, and the others."""
    places = iter(range(len(decoded)))
    return [
        fed.others[index].result()
        if content is None
        else from_dlpack(decoded[next(places)])
        for index, content in zip(fed.indices, fed.contents, strict=True)
    ]


def _for_dali(content: bytes) -> bool:
    """Return whether this is a complete JPEG that is not CMYK.

    DALI would reject a truncated file, and the pipeline would have to restart. CMYK has
    no standard conversion, so Pillow's is used everywhere. Files with more pixels than
    Pillow accepts are left to Pillow to reject.
    """
    from PIL import Image

    if not (content.startswith(b"\xff\xd8\xff") and content.endswith(b"\xff\xd9")):
        return False
    place = 2
    while place + 10 <= len(content) and content[place] == 0xFF:
        mark = content[place + 1]
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            sides = content[place + 5 : place + 9]
            height, width = sides[0] << 8 | sides[1], sides[2] << 8 | sides[3]
            most = Image.MAX_IMAGE_PIXELS
            return (
                content[place + 9] in (1, 3)
                and max(height, width) <= LONGEST_SIDE
                and (most is None or height * width <= 2 * most)
            )
        place += 2 + (content[place + 2] << 8 | content[place + 3])
    return False
