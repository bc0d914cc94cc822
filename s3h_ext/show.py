"""``python -m s3h_ext.show``: a picture of a training step.

It shows the originals with the boxes of their crops, and the views beside them.

matplotlib is imported only to draw a picture, and draws without a display.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from s3h_ext.checks import COUNT, check
from s3h_ext.command_line import FAILURES, Parser
from s3h_ext.data.dataset import ImageFiles, ImageSet, LongTailDataset
from s3h_ext.data.source.batches import Batch, MixedViews
from s3h_ext.data.source.decode import decode_image
from s3h_ext.data.source.feed import Feed
from s3h_ext.data.streams import Stream
from s3h_ext.data.views.recipes import ViewSpec, get_recipe
from s3h_ext.ops._library import CPU
from s3h_ext.runs.loading import open_dataset
from s3h_ext.runs.options import parse_options
from s3h_ext.text import printable
from s3h_ext.training.distributed import World
from s3h_ext.training.reading import read_once

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_views", "main", "view_figure"]

# Paul Tol's bright scheme, distinct for colour-blind readers, and two more.
_COLOURS = (
    *("#EE6677", "#4477AA", "#CCBB44", "#228833"),
    *("#66CCEE", "#AA3377", "#EE7733", "#BBBBBB"),
)
_INK, _PAPER = "#1A1A1A", "#F2F2F2"
_CELL = 1.25  # inches
_GAP = 0.35  # between streams, in cells

_Image = NDArray[np.floating[Any]] | NDArray[np.uint8]


def draw_views(
    dataset: LongTailDataset,
    streams: Mapping[str, Stream],
    *,
    dpi: int = 110,
    **which: Any,
) -> bytes:
    """Return the picture of :func:`view_figure` as a PNG file.

    Each image is 1.25 inches wide, with ``dpi`` pixels per inch.

    Raises:
        ValueError: an argument is out of range, or a photograph cannot be read.
    """
    from matplotlib import style

    with style.context("default", after_reset=True):
        figure = view_figure(dataset, streams, **which)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def view_figure(
    dataset: LongTailDataset,
    streams: Mapping[str, Stream],
    *,
    images: int = 4,
    seed: int = 0,
    epoch: int = 0,
    epochs: int | None = None,
    step: int = 0,
) -> Figure:
    """Draw the views of one training step with very small batches.

    Each stream is a block of columns and each image of its batch a row: the original
    with the boxes of its crops, then its views before normalisation, framed in the
    colour of their box. The quadrants of a montage show crops of other rows: each is
    framed in the colour of its box and labelled with the row's letter and the class. A
    view with another image mixed in has that image's share and class above it, and the
    pasted part has a dashed frame.

    Args:
        dataset: Data set with the images, in memory or photographs.
        streams: Name -> how to draw.
        images: Images of the batch, at least 1.
        seed: Seed of the training.
        epoch: Number of the epoch.
        epochs: Length of the training, which ``"progressive"`` streams need; ``None``
            to end with ``epoch``.
        step: Step of that epoch, with batches of ``images``; some batches are smaller
            by one, so the next full one is shown.

    Raises:
        ValueError: an argument is out of range, or a photograph cannot be read.
    """
    from matplotlib.figure import Figure

    check(COUNT, images=images)
    total = len(dataset.train)
    source = Feed().training(
        dataset,
        streams,
        batch_size=images,
        epochs=max(epoch, 0) + 1 if epochs is None else epochs,
        seed=seed,
    )
    if not 0 <= step < source.steps_per_epoch:
        raise ValueError(
            f"step: expected 0 <= step < {source.steps_per_epoch}, got {step}"
        )
    steps = source.steps_per_epoch
    starts = [number * total // steps for number in range(steps + 1)]
    full = (s for s in range(step, steps) if starts[s + 1] - starts[s] == images)
    step = next(full, step)
    crops = source.crops(epoch, step)
    batches = next(source.epoch(epoch, step))
    widths = [1 + stream.views for stream in streams.values()]
    rows = max(len(batch.labels) for batch in batches.values())
    columns = sum(widths) + _GAP * (len(widths) - 1)
    head, foot = 0.36, 0.08
    height = _CELL * 1.16 * rows + head + foot
    figure = Figure(figsize=(_CELL * columns, height), facecolor="white")

    def cell(row: int, column: float) -> Axes:
        size = 0.93
        return figure.add_axes(
            (
                (column + (1 - size) / 2) / columns,
                1 - (head + _CELL * (1.16 * (row + 1) - 0.02)) / height,
                size / columns,
                size * _CELL / height,
            )
        )

    left = 0.0
    for (name, stream), width in zip(streams.items(), widths, strict=True):
        title = name if name == stream.recipe else f"{name}: {stream.recipe}"
        figure.text(
            (left + 0.04) / columns,
            1 - 0.2 / height,
            title,
            # No wider than its block: a bold letter takes about 0.009 inches per point.
            size=min(11, _CELL * width / (0.009 * len(title))),
            weight="bold",
            color=_INK,
            va="center",
            parse_math=False,
        )
        block = _Block(dataset, batches[name], crops[name])
        for row in range(len(batches[name].labels)):
            block.original(cell(row, left), row)
            for view in range(stream.views):
                block.view(cell(row, left + 1 + view), view, row)
        left += width + _GAP
    return figure


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


class _Block:
    """The columns of one stream."""

    def __init__(self, dataset: LongTailDataset, batch: Batch, crops: ViewSpec) -> None:
        self.dataset, self.batch, self.crops = dataset, batch, crops
        mean, std = np.asarray(dataset.mean), np.asarray(dataset.std)
        pixels = batch.images.permute(0, 1, 3, 4, 2).numpy() * std + mean
        self.pixels = pixels.clip(0, 1)  # [V, B, h, w, C]
        self.originals = [_original(dataset.train, int(i)) for i in batch.indices]
        # Room for boxes outside the image, the same on all sides and in all rows.
        self.room = 0.03
        for row, image in enumerate(self.originals):
            corner, side = crops.box[:, row].split(2, dim=-1)
            sides = torch.tensor(image.shape[:2])
            over = max(float(-corner.min()), float((corner + side - sides).max()))
            self.room = max(self.room, (over + 0.5) / max(image.shape[:2]))

    def original(self, axes: Axes, row: int) -> None:
        """Draw an image and the boxes of its crops."""
        label = int(self.batch.labels[row])
        image = self.originals[row]
        height, width = image.shape[:2]
        room = self.room * max(height, width)
        _show(axes, image)
        axes.set_facecolor(_PAPER)
        axes.set_xlim(-0.5 - room, width - 0.5 + room)
        axes.set_ylim(height - 0.5 + room, -0.5 - room)
        _name(axes, f"{_letter(row)}  {self.dataset.class_names[label]}")
        for number in range(len(self.crops.flip)):
            style: dict[str, Any] = {
                "edgecolor": _colour(number),
                "linewidth": 1.6,
                "clip_on": False,
            }
            _frame(axes, *self.crops.box[number, row].tolist(), **style)

    def view(self, axes: Axes, view: int, row: int) -> None:
        """Draw a view, framed in the colour of its box."""
        _show(axes, self.pixels[view, row])
        if self.batch.quadrants is not None:
            self._quadrants(axes, view, row)
            return
        for spine in axes.spines.values():
            spine.set(visible=True, color=_colour(view), linewidth=2.2)
        mixed = self.batch.mixed
        if mixed is not None and mixed.boxes[view, row, 2] > 0:
            self._mixed(axes, mixed, view, row)
        elif self.crops.flip[view, row]:
            _name(axes, "mirrored", grey=True)

    def _mixed(self, axes: Axes, mixed: MixedViews, view: int, row: int) -> None:
        share = 100 * (1 - float(mixed.weights[view, row]))
        name = self.dataset.class_names[int(mixed.labels[view, row])]
        _name(axes, f"{share:.0f} % {name}")
        box = mixed.boxes[view, row].tolist()
        if tuple(box[2:]) != self.pixels.shape[2:4]:
            style: dict[str, Any] = {
                "edgecolor": "white",
                "linewidth": 1.2,
                "linestyle": (0, (2, 2)),
            }
            _frame(axes, *box, **style)

    def _quadrants(self, axes: Axes, view: int, row: int) -> None:
        quadrants = self.batch.quadrants
        assert quadrants is not None
        height, width = (side // 2 for side in self.pixels.shape[2:4])
        letters = {int(index): k for k, index in enumerate(self.batch.indices)}
        # Half of a line lies outside its rectangle.
        inset = width * 0.04
        for place in range(4):
            top, left = place // 2 * height, place % 2 * width
            inner = (top + inset, left + inset, height - 2 * inset, width - 2 * inset)
            number = int(quadrants.crops[view, row, place])
            _frame(axes, *inner, edgecolor=_colour(number), linewidth=1.6)
            letter = _letter(letters[int(quadrants.indices[view, row, place])])
            label = int(quadrants.labels[view, row, place])
            name = self.dataset.class_names[label]
            axes.text(
                left - 0.5 + 2.2 * inset,
                top - 0.5 + height - 2.2 * inset,
                f"{letter} {name if len(name) <= 9 else name[:8] + '…'}",
                size=5.5,
                color="white",
                va="bottom",
                parse_math=False,
                bbox={"facecolor": _INK, "alpha": 0.75, "pad": 1, "linewidth": 0},
            )


def _frame(
    axes: Axes, top: float, left: float, height: float, width: float, **style: Any
) -> None:
    from matplotlib.patches import Rectangle

    # Pixel centres are integers.
    corner = left - 0.5, top - 0.5
    axes.add_patch(Rectangle(corner, width, height, fill=False, **style))


def _original(images: ImageSet | ImageFiles, index: int) -> NDArray[np.uint8]:
    if isinstance(images, ImageSet):
        pixels: NDArray[np.uint8] = images.images[index]
        return pixels
    return decode_image(images.path(index).read_bytes()).numpy()


def _show(axes: Axes, image: _Image) -> None:
    grey = image.shape[-1] == 1
    axes.imshow(
        image[..., 0] if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=255 if image.dtype == np.uint8 else 1,
        interpolation="nearest",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _name(axes: Axes, text: str, grey: bool = False) -> None:
    axes.set_title(
        text,
        size=7,
        color="#6B6B6B" if grey else _INK,
        loc="left",
        pad=2.5,
        parse_math=False,
    )


def _letter(row: int) -> str:
    return chr(ord("A") + row) if row < 26 else str(row + 1)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m s3h_ext.show",
        description="Draw the views of a training step, with the boxes they were cut "
        "from.",
        epilog="All options of s3h_ext.train are understood: --preset cifar100-lt/ce, "
        "--data.root DIR, --seed 3, ...",
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, help="PNG file to write")
    parser.add_argument("--images", type=int, default=4, help="images in the step")
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--step", type=int, default=0)
    parser.add_argument(
        "--recipe",
        nargs="+",
        help="show these recipes on the same images instead of the method's streams",
    )
    return parser


def _streams_of_recipes(recipes: Sequence[str]) -> dict[str, Stream]:
    """Return one stream per recipe, all with the images of the first one."""
    leader = recipes[0]
    return {
        name: Stream(
            recipe=name,
            views=1 if get_recipe(name).montage else 2,
            follows=None if name == leader else leader,
        )
        for name in recipes
    }


def _draw(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    CPU.require()
    config, _ = parse_options(arguments)
    dataset = open_dataset(config.data)
    if config.data.unreadable == "skip":  # as at the start of a training
        feed = Feed("auto", config.data.workers, "skip")
        dataset = read_once(dataset, feed, World())
    streams = (
        _streams_of_recipes(options.recipe)
        if options.recipe
        else config.method.streams()
    )
    picture = draw_views(
        dataset,
        streams,
        images=options.images,
        seed=config.seed,
        epoch=options.epoch,
        epochs=config.epochs,
        step=options.step,
    )
    Path(options.out).write_bytes(picture)
    print(printable(f"{', '.join(streams)} of {dataset.name} are in {options.out}"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0, 1 for an error, or 130."""
    options, others = _parser().parse_known_args(arguments)
    try:
        _draw(options, others)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
