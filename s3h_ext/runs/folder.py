"""A run's folder: file names, options, summary, lock."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from s3h_ext.files import open_to_append, write_text

__all__ = ["RunFolder"]

_TAKEN = (errno.EACCES, errno.EAGAIN)
# A POSIX lock belongs to the process and is released when any open file of it is
# closed, so a process keeps one open file per folder.
_held: dict[Path, IO[str]] = {}


class _Inside:
    """A file or folder of a run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunFolder, owner: type | None = None) -> Path:
        return run.path / self.name


class RunFolder:
    """The folder of a run; all other modules get file names from it."""

    config = _Inside("config.yaml")  #: the options
    card = _Inside("dataset.json")  #: the data set without its images
    checkpoints = _Inside("checkpoints")
    log = _Inside("train.log")
    metrics = _Inside("metrics.csv")  #: the results of each epoch
    tensorboard = _Inside("tensorboard")
    summary = _Inside("summary.json")  #: the results of a finished run
    per_class = _Inside("per_class.csv")  #: the accuracy of each class
    confusion = _Inside("confusion.csv")  #: the cells of the confusion matrix
    calibration = _Inside("calibration.csv")  #: confidence against accuracy
    subclasses = _Inside("subclasses.npz")  #: data of the report on sub-classes
    report = _Inside("report.html")  #: with its pictures beside it

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    def evaluation(
        self, split: str, classifier: str = "head", weights: str = "average"
    ) -> Path:
        """Return an evaluation's folder, ``evaluation-SPLIT[-CLASSIFIER][-last]``."""
        name = f"evaluation-{split}"
        name += "" if classifier == "head" else f"-{classifier}"
        return self.path / (name + ("-last" if weights == "last" else ""))

    def export(self, form: str) -> Path:
        """Return the path of the exported network, ``model.onnx`` or ``model.pt2``."""
        return self.path / f"model.{form}"

    def write_config(self, options: Mapping[str, Any]) -> None:
        """Write ``config.yaml``; ``options`` are plain values."""
        write_text(self.config, yaml.safe_dump(dict(options), sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        """Read ``config.yaml`` as plain values.

        Raises:
            ValueError: the file is not a mapping of options.
            FileNotFoundError: the file does not exist.
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
            FileNotFoundError: the run is not finished, or this is not a run.
            ValueError: the file is not a JSON object.
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

    def create(self) -> None:
        """Create the folder if it does not exist.

        Raises:
            OSError: it cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"output: cannot create the folder {self}: {error.strerror}"
            ) from error

    def check_free(self) -> None:
        """Check that the folder does not hold a run.

        Raises:
            FileExistsError: it does.
        """
        if self.config.exists() or any(self.checkpoints.glob("epoch_*")):
            raise FileExistsError(
                f"output: {self} already holds a run; add --resume to continue it, "
                "or give another --output"
            )

    def lock(self) -> None:
        """Keep other processes from training here until :meth:`unlock`.

        The system releases the lock when the process ends, for whatever reason; an
        empty file remains. File systems without locks are not protected.

        Raises:
            FileExistsError: another process trains here, or a sub-folder that a run
                writes to is a link to another location.
        """
        for inside in (self.checkpoints, self.tensorboard):
            if inside.is_symlink():
                raise FileExistsError(
                    f"output: {inside} is a link, and links are not followed; link the "
                    "run folder itself, or name it with --output"
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
                    f"output: another process is training in {place}; wait "
                    "until it ends, or give another --output"
                ) from None
        _held[place] = file

    def unlock(self) -> None:
        """Let other processes train here again."""
        if file := _held.pop(self.path.resolve(), None):
            file.close()
