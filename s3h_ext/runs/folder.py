"""A run's folder: what its files are called, its options and summary, its lock."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from s3h_ext.files import open_to_append, write_text

__all__ = ["RunFolder"]

_TAKEN = (errno.EACCES, errno.EAGAIN)
# A POSIX lock belongs to the process and ends when any file of it is closed, so a
# process keeps one open file per folder.
_held: dict[Path, IO[str]] = {}


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run; every other module asks it for the names of files.

    Args:
        path: of the folder, which need not exist yet.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """The options, ``config.yaml``."""
        return self.path / "config.yaml"

    @property
    def card(self) -> Path:
        """The data set without its images, ``dataset.json``."""
        return self.path / "dataset.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """The log, ``train.log``."""
        return self.path / "train.log"

    @property
    def metrics(self) -> Path:
        """The results of each epoch, ``metrics.csv``."""
        return self.path / "metrics.csv"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def summary(self) -> Path:
        """The results of a finished run, ``summary.json``."""
        return self.path / "summary.json"

    @property
    def per_class(self) -> Path:
        """The accuracy of each class, ``per_class.csv``."""
        return self.path / "per_class.csv"

    @property
    def confusion(self) -> Path:
        """The confusion matrix, ``confusion.csv``."""
        return self.path / "confusion.csv"

    @property
    def calibration(self) -> Path:
        """Confidence against accuracy, ``calibration.csv``."""
        return self.path / "calibration.csv"

    @property
    def subclasses(self) -> Path:
        """What the report shows of sub-classes, ``subclasses.npz``."""
        return self.path / "subclasses.npz"

    @property
    def report(self) -> Path:
        """The report, ``report.html``; its pictures are beside it."""
        return self.path / "report.html"

    def evaluation(self, split: str) -> Path:
        """The folder of a later evaluation, ``evaluation-SPLIT``."""
        return self.path / f"evaluation-{split}"

    def export(self, form: str) -> Path:
        """The exported network, ``model.onnx`` or ``model.pt2``."""
        return self.path / f"model.{form}"

    def write_config(self, options: Mapping[str, Any]) -> None:
        """Write ``config.yaml``; ``options`` are plain values."""
        write_text(self.config, yaml.safe_dump(dict(options), sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        """Read ``config.yaml`` as plain values.

        Raises:
            ValueError: the file is no mapping of options.
            FileNotFoundError: there is none.
        """
        from s3h_ext.runs.plain_yaml import load_yaml

        try:
            options = load_yaml(self.config.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{self.config}: not YAML: {error}") from None
        if not isinstance(options, dict):
            raise ValueError(f"{self.config}: expected options, got {options!r:.60}")
        return options

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        write_text(self.summary, json.dumps(summary, indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """Read ``summary.json``.

        Raises:
            FileNotFoundError: the run is not finished, or this is no run.
            ValueError: the file is no JSON object.
        """
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"run: expected the folder of a finished run, got {self}, which has "
                f"no {self.summary.name}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{self.summary}: not JSON: {error}") from None
        if not isinstance(summary, dict):
            raise ValueError(f"{self.summary}: expected an object")
        return summary

    def check_free(self) -> None:
        """Refuse a folder that holds a run.

        Raises:
            FileExistsError: it does.
        """
        if self.config.exists() or any(self.checkpoints.glob("epoch_*")):
            raise FileExistsError(
                f"output: {self} already holds a run; add --resume to go on with it, "
                "or give another --output"
            )

    def lock(self) -> None:
        """Keep other processes from training here until :meth:`unlock`.

        The system releases the lock when the process ends, however that ends; what
        stays is an empty file. On a file system without locks nothing is locked.

        Raises:
            FileExistsError: another process trains here, or a folder in here that a run
                writes to is a link to elsewhere.
        """
        for inside in (self.checkpoints, self.tensorboard):
            if inside.is_symlink():
                raise FileExistsError(
                    f"output: {inside} is a link, which is not followed; link the "
                    "folder of the run itself, or name it with --output"
                )
        place = self.path.resolve()
        if place in _held:
            return
        file = open_to_append(place / ".lock")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                file.close()
                raise FileExistsError(
                    f"output: another process is training in {place}; wait for its "
                    "end, or give another --output"
                ) from None
        _held[place] = file

    def unlock(self) -> None:
        """Let other processes train here again."""
        if file := _held.pop(self.path.resolve(), None):
            file.close()
