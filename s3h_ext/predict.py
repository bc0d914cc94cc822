"""``python -m s3h_ext.predict RUN IMAGES...``: classes of image files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from s3h_ext.command_line import FAILURES, predict_parser

if __name__ == "__main__":
    predict_parser().parse_args()  # before PyTorch is imported

import torch

from s3h_ext.data.views.pictures import find_pictures, read_picture
from s3h_ext.files import write_pieces
from s3h_ext.ops._library import CPU
from s3h_ext.runs.loading import Run, load_run
from s3h_ext.runs.precision import autocast
from s3h_ext.table_files import format_row
from s3h_ext.text import printable
from s3h_ext.training.finite import DivergedError

#: Path of an image, and an error or its classes by rank: (class, name, probability).
Answer = tuple[str, str | None, list[tuple[int, str, float]]]


def predict(
    run: Run, paths: Iterable[Path], *, top: int = 5, batch_size: int = 64
) -> Iterator[Answer]:
    """Yield a run's predictions for image files, in order.

    A path that cannot be read yields an error. The ``top`` most probable classes are
    returned, or all if there are fewer.
    """
    card = run.card
    prepare = card.preprocessing
    top = min(top, len(card.classes))
    waiting = iter(paths)
    while part := list(islice(waiting, batch_size)):
        images, errors = [], {}
        for place, path in enumerate(part):
            try:
                # One at a time, as a photograph is much larger than the input.
                images.append(prepare([read_picture(path, card.image_shape[2])]))
            except (ValueError, OSError) as error:
                errors[place] = str(error)
        found: list[list[tuple[int, str, float]]] = []
        if images:
            batch = torch.cat(images).to(run.device)
            with torch.inference_mode(), autocast(run.precision, run.device):
                probabilities = run.method.predict(batch).float().softmax(1)  # [B, C]
            if not bool(probabilities.isfinite().all()):
                raise DivergedError(
                    f"{run.folder}: its network's logits are not finite; the run has "
                    "diverged"
                )
            values, classes = (part.tolist() for part in probabilities.topk(top))
            found = [
                [(c, card.classes[c], p) for c, p in zip(*row, strict=True)]
                for row in zip(classes, values, strict=True)
            ]
        good = iter(found)
        for place, path in enumerate(part):
            if place in errors:
                yield str(path), errors[place], []
            else:
                yield str(path), None, next(good)


def _to_csv(answers: Iterable[Answer], top: int) -> Iterator[str]:
    names = ("class", "name", "probability")
    columns = [f"{name}_{k + 1}" for k in range(top) for name in names]
    yield format_row(["path", "error", *columns])
    for path, error, ranked in answers:
        cells = [cell for entry in ranked for cell in entry]
        empty = [""] * (3 * top - len(cells))
        yield format_row([path, error or "", *cells, *empty])


def _to_json(answers: Iterable[Answer]) -> Iterator[str]:
    yield "["
    comma = "\n"
    for path, error, ranked in answers:
        entry: dict[str, Any] = {"path": path}
        if error is not None:
            entry["error"] = error
        else:
            entry["predictions"] = [
                {"class": number, "name": name, "probability": probability}
                for number, name, probability in ranked
            ]
        yield comma + json.dumps(entry)
        comma = ",\n"
    yield "\n]\n"


def _places(given: Sequence[str]) -> Iterator[Path]:
    for place in given:
        if place != "-":
            yield Path(place)
            continue
        for line in sys.stdin.buffer:
            if name := line.rstrip(b"\r\n"):
                yield Path(os.fsdecode(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = predict_parser()
    options = parser.parse_args(arguments)
    for name in ("top", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}")
    suffix = options.output.suffix if options.output else ""
    form = options.format or ("json" if suffix == ".json" else "csv")
    try:
        CPU.require()
        run = load_run(options.run, device=options.device)
        paths = find_pictures(_places(options.images))
        first = next(paths, None)
        if first is None:
            raise ValueError(f"images: none in {' '.join(options.images)}")
    except FAILURES as error:
        return parser.failed(error)
    failed = 0

    def answers() -> Iterator[Answer]:
        nonlocal failed
        every = (path for part in ([first], paths) for path in part)
        for answer in predict(
            run, every, top=options.top, batch_size=options.batch_size
        ):
            if answer[1] is not None:
                failed += 1
                print(f"{printable(answer[0])}: {answer[1]}", file=sys.stderr)
            yield answer

    top = min(options.top, len(run.card.classes))
    pieces = _to_csv(answers(), top) if form == "csv" else _to_json(answers())
    # Names that are not valid in the file system's encoding pass through as bytes.
    coded = (piece.encode("utf-8", "surrogateescape") for piece in pieces)
    try:
        if options.output is not None:
            write_pieces(options.output, coded)
        else:
            for piece in coded:
                sys.stdout.buffer.write(piece)
            sys.stdout.flush()
    except (DivergedError, OSError) as error:
        return parser.failed(error)
    if failed:
        print(f"{failed} of the images could not be read", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
