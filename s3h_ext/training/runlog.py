"""The progress of a run: progress bar, log, ``metrics.csv``, TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from s3h_ext.files import open_to_append, write_text
from s3h_ext.runs.folder import RunFolder
from s3h_ext.table_files import format_rows
from s3h_ext.text import printable

Row = Mapping[str, float | int | None]


class RunLog:
    """The log files and terminal output of one run.

    ``history`` holds the rows of the epochs already done; later rows left by an
    interrupted run are dropped.
    """

    def __init__(
        self,
        folder: RunFolder,
        history: Sequence[Row],
        total_steps: int,
        done_steps: int,
    ) -> None:
        self._folder = folder
        self._rows: list[Row] = []
        start = len(history) + 1  # epochs are numbered from 1
        self._tensorboard = SummaryWriter(str(folder.tensorboard), purge_step=start)
        self._bar = tqdm(
            total=total_steps,
            initial=done_steps,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            # In a log file, a line now and then instead of a bar redrawn ten times a
            # second.
            mininterval=0.1 if sys.stderr.isatty() else 30.0,
        )
        self._rows.extend(history)
        self._write_csv()
        self._log = open_to_append(folder.log)

    def step(
        self, epoch: int, loss: float | None, images_per_second: float | None
    ) -> None:
        """Advance the bar by a step; the values may be one or more steps old."""
        postfix = [f"epoch {epoch + 1}"]
        if loss is not None:
            postfix.append(f"loss {loss:.4f}")
        if images_per_second is not None:
            postfix.append(f"{images_per_second:.0f} images/s")
        self._bar.set_postfix_str(", ".join(postfix), refresh=False)
        self._bar.update()

    def epoch(self, row: Row) -> None:
        """Record the results of an epoch."""
        self._rows.append(row)
        self._write_csv()
        known = {name: value for name, value in row.items() if value is not None}
        self.note(", ".join(f"{name} {value:.6g}" for name, value in known.items()))
        for name, value in row.items():
            if value is not None and name != "epoch":
                self._tensorboard.add_scalar(name, value, row["epoch"])

    def _write_csv(self) -> None:
        # Not every epoch is evaluated, so collect the columns of all rows.
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        rows = ([row.get(name) for name in columns] for row in self._rows)
        write_text(self._folder.metrics, format_rows([columns, *rows]))

    def note(self, text: str) -> None:
        """Append a line with the local time to ``train.log``."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        print(now, text, sep="  ", file=self._log, flush=True)

    def tell(self, text: str) -> None:
        """Write a line to ``train.log`` and, above the bar, to the terminal."""
        self.note(text)
        tqdm.write(printable(text), file=sys.stderr)

    def close(self) -> None:
        """Close the bar, the log and the event file."""
        self._bar.close()
        # If the disk is full, an earlier write has already reported it.
        with suppress(OSError):
            self._log.close()
        with suppress(OSError):
            self._tensorboard.close()


class SilentLog(RunLog):
    """A log without files, for all processes but the first."""

    def __init__(self) -> None:
        pass

    def step(
        self, epoch: int, loss: float | None, images_per_second: float | None
    ) -> None:
        """Do nothing."""

    def epoch(self, row: Row) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def tell(self, text: str) -> None:
        """Write a line to the terminal, which shows another process's bar."""
        print(f"\n{printable(text)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Do nothing."""
