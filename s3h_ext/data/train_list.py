"""The list of the images that a run trains on, and its hash."""

from __future__ import annotations

import hashlib
from typing import Any

from s3h_ext.data.dataset import ImageFiles, LongTailDataset
from s3h_ext.table_files import format_rows

__all__ = ["list_hash", "train_list"]


def train_list(dataset: LongTailDataset) -> str | None:
    """Returns the training images as CSV, in their order.

    Of files it has the columns ``path`` and ``label``, the class's name, and serves as
    a list of ``--data.lists``. Of an archive's images it has ``index``, the place in
    the archive's training split, and ``label``, the class's number. ``None`` for images
    that are neither, such as a part that somebody took of these.

    Example:
        >>> from s3h_ext.data import load_dataset
        >>> train_list(load_dataset("digits-lt")).splitlines()[:3]
        ['index,label', '226,0', '64,0']
    """
    train, names = dataset.train, dataset.class_names
    rows: list[tuple[Any, ...]]
    labels = train.labels.tolist()
    if isinstance(train, ImageFiles):
        rows = [(train.name(i), names[label]) for i, label in enumerate(labels)]
        return format_rows([("path", "label"), *rows])
    if dataset.indices is None or len(dataset.indices) != len(labels):
        return None
    rows = list(zip(dataset.indices.tolist(), labels, strict=True))
    return format_rows([("index", "label"), *rows])


def list_hash(dataset: LongTailDataset) -> str | None:
    """Returns the SHA-256 of :func:`train_list`, which ``sha256sum`` prints of it."""
    text = train_list(dataset)
    if text is None:
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
