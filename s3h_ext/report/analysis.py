"""A method's part of the report, from the training images of a finished run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from s3h_ext.data import Batch, LongTailDataset, thumbnails
from s3h_ext.methods import ClasswiseSplitting, Method
from s3h_ext.report.subclasses import write_subclasses
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.precision import autocast

__all__ = ["try_analysis"]


def try_analysis(
    folder: RunFolder,
    method: Method,
    batches: Iterable[Batch],
    dataset: LongTailDataset,
    *,
    precision: str,
    device: torch.device,
) -> None:
    """Write the analysis of sub-classes, or print to stderr why there is none.

    Only CWS has one. ``batches`` are the training images of ``dataset``, without
    augmentation.
    """
    if not isinstance(method, ClasswiseSplitting):
        return
    places: list[Tensor] = []

    def noted() -> Iterator[Batch]:
        # Unreadable images may have been left out.
        for batch in batches:
            places.append(batch.indices)
            yield batch

    try:
        method.eval()
        with torch.inference_mode(), autocast(precision, device):
            arrays = method.analyse(noted())
        method.train()
        if arrays:
            where = torch.cat(places).cpu().numpy()
            write_subclasses(
                folder, arrays, lambda which: thumbnails(dataset.train, where[which])
            )
    except Exception as error:
        print(
            f"warning: the report has no section on {method.label}: "
            f"{type(error).__name__}: {error}",
            file=sys.stderr,
        )
