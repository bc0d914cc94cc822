"""``python -m s3h_ext.report RUN``: redraw a run's report from its folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from s3h_ext.report.page import write_report
from s3h_ext.runs.folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m s3h_ext.report",
        description="Draw report.html and its pictures from the files of a finished "
        "run. Nothing is trained or evaluated.",
    )
    parser.add_argument("run", nargs="+", type=Path, help="folder of a finished run")
    failed = False
    for folder in parser.parse_args(arguments).run:
        try:
            print(write_report(RunFolder(folder)))
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
    return 2 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
