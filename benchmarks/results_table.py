"""``python -m benchmarks.results_table``: tables and plot of the finished runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.published import Row, collect, draw, markdown, read_published
from s3h_ext.files import write_text
from s3h_ext.presets import PUBLISHED

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NOTES = """\
Top-1 accuracy in percent on the balanced test images; ours is the **last** epoch, mean
± standard deviation over n seeds. Many, medium and few: classes with more than 100, 20
to 100 and fewer than 20 training images.

\\* The best of the evaluated epochs, chosen on the test images as most papers do: a
diagnostic, not a result.
"""
UNCHECKED = "† From memory, not checked in a source.\n"


def _tables(rows: Sequence[Row], *, not_run: bool) -> str:
    table = markdown(rows, not_run=not_run)
    return f"{NOTES}{UNCHECKED if '†' in table else ''}\n{table}"


def _page(rows: Sequence[Row]) -> str:
    sources = "".join(
        f"- `{row.preset}`: {row.published.paper}; number read in: "
        f"{row.published.read_in}\n"
        for row in rows
        if row.published is not None
    )
    return (
        "# Results\n\nMade by `python -m benchmarks.results_table` from the folders "
        "beside this file and\n`s3h_ext/presets/published.csv`. Each folder is one "
        "finished run; `python -m s3h_ext.report results/RUN`\ndraws its pictures, "
        "except those of sub-classes, whose arrays are not kept here. Those with "
        "`checkpoints/` hold the\nweights of the last epoch, and `python -m "
        "s3h_ext.evaluate results/RUN --data.root DIR`\nmeasures them again.\n\n"
        f"{_tables(rows, not_run=True)}\n![published against ours](results.png)\n\n"
        f"## Where the published numbers are from\n\n{sources}"
    )


def _insert(readme: str, table: str) -> str:
    before, found, rest = readme.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"readme: expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}{END}{after}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.results_table",
        description="Write FOLDER/README.md, FOLDER/results.png and the table in a "
        "readme from the finished runs in FOLDER and the published numbers.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("results"),
        help="folder whose folders are runs; results if not given",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        help=f"file whose part between {BEGIN} and {END} is replaced",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail where a text would change",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"folder: expected a folder of runs, got {options.folder}")
    try:
        rows = collect(options.folder, read_published(PUBLISHED))
        texts = {options.folder / "README.md": _page(rows)}
        if options.readme is not None:
            readme = options.readme.read_text(encoding="utf-8")
            texts[options.readme] = _insert(readme, _tables(rows, not_run=False))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        stale = [
            path
            for path, text in texts.items()
            if not path.is_file() or path.read_text(encoding="utf-8") != text
        ]
        for path in stale:
            print(f"{path} is not what the runs give; make it anew", file=sys.stderr)
        return 1 if stale else 0
    for path, text in texts.items():
        write_text(path, text)
        print(path)
    draw(rows, options.folder / "results.png")
    print(options.folder / "results.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
