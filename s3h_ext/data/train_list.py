"""The list of a run's training images, and its hash."""

from __future__ import annotations

import hashlib
from typing import Any

from s3h_ext.data.dataset import ImageFiles, LongTailDataset
from s3h_ext.table_files import format_rows

__all__ = ["list_hash", "train_list"]


def train_list(dataset: LongTailDataset) -> str | None:
    """Return the training images as CSV, in order.

    For files, the columns are ``path`` and ``label``, the class name, as in a list for
    ``--data.lists``. For images of an archive they are ``index``, the position in the
    archive's training split, and ``label``, the class number. ``None`` for other
    images, such as a subset made by hand.

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
    """Return the SHA-256 of :func:`train_list`, as ``sha256sum`` prints it."""
    text = train_list(dataset)
    if text is None:
        return None
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
