"""``python -m s3h_ext.export RUN``: write a run's network as one portable file."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from contextlib import suppress
from pathlib import Path

from s3h_ext.command_line import FAILURES, export_parser

if __name__ == "__main__":
    export_parser().parse_args()  # before PyTorch is imported

import numpy as np
import torch
from torch import Tensor

from s3h_ext.data import ImageSet
from s3h_ext.data.views.pictures import Preprocessing, find_pictures, read_picture
from s3h_ext.ops._library import CPU
from s3h_ext.runs.exporting import export_run
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.loading import Run, load_run, split_images
from s3h_ext.text import printable


def check_images(
    run: Run,
    places: Sequence[Path] = (),
    *,
    root: str | None = None,
    lists: str | None = None,
    limit: int = 64,
) -> Tensor:
    """Return up to ``limit`` real inputs ``[B, C, H, W]`` for a run's network.

    Args:
        run: run loaded by :func:`~s3h_ext.runs.loading.load_run`.
        places: image files and folders; if empty, test images of the data set are used.
        root: folder of the data, if it differs from the run's.
        lists: folder of the list files, if it differs.
        limit: largest number of images, spread over all available ones.

    Raises:
        ValueError: a file is not an image, or there are no images.
        FileNotFoundError: the data do not exist.
    """
    prepare = run.card.preprocessing
    if places:
        paths = list(find_pictures(places))
        if not paths:
            raise ValueError(f"images: none in {' '.join(map(str, places))}")
        return torch.cat([_prepared(prepare, paths[i]) for i in _spread(paths, limit)])
    test = split_images(run, "test", root, lists).test
    chosen = _spread(test, limit)
    if isinstance(test, ImageSet):
        return prepare([test.images[i] for i in chosen])
    images = []
    for i in chosen:
        # Errors that an evaluation would report or skip do not matter here.
        with suppress(ValueError):
            images.append(_prepared(prepare, test.path(i)))
    if not images:
        raise ValueError(
            f"images: none of {len(chosen)} test images can be read; give other images"
        )
    return torch.cat(images)


def _spread(images: Sized, limit: int) -> list[int]:
    """Return at most ``limit`` spread positions: images are often sorted by class."""
    count = min(limit, len(images))
    return [int(i) for i in np.linspace(0, len(images) - 1, count)]


def _prepared(prepare: Preprocessing, path: Path) -> Tensor:
    """Read an image file as the network's input ``[1, C, H, W]``."""
    try:
        return prepare([read_picture(path, prepare.image_shape[2])])
    except (ValueError, OSError) as error:
        raise ValueError(f"images: {path}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = export_parser()
    options = parser.parse_args(arguments)
    output = options.output or RunFolder(options.run).export(options.format)
    try:
        CPU.require()
        torch.manual_seed(0)
        run = load_run(options.run, device="cpu")
        images = check_images(
            run, options.images, root=options.root, lists=options.lists
        )
        difference = export_run(run, images, output, options.format)
    except FAILURES as error:
        return parser.failed(error)
    print(
        f"{printable(output)}: on {len(images)} images the logits differ by at most "
        f"{difference:.1e} from the network's, and the predicted classes agree"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
