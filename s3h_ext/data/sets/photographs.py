"""Long-tailed data sets of photographs: standard lists, or any image folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from s3h_ext.data.dataset import ImageSet, LongTailDataset
from s3h_ext.data.image_files import ImageFiles
from s3h_ext.data.sets.folders import TEST_FRACTION, read_image_folder
from s3h_ext.data.sets.lists import LISTED, read_listed

__all__ = ["PHOTOGRAPHS", "TEST_FRACTION", "read_photographs"]

#: Data sets that are files on the disk.
PHOTOGRAPHS = (*LISTED, "folder")


def read_photographs(
    name: str,
    root: Path,
    *,
    lists: Path | None = None,
    imbalance: float | None = None,
    profile: str = "exp",
    test_fraction: float | None = None,
    side: int = 224,
) -> LongTailDataset:
    """Reads which photographs there are; opens none of them.

    Args:
        name: One of :data:`PHOTOGRAPHS`.
        root: What the lists' paths are relative to; or the image folder.
        lists: Folder of the list files; ``None`` for ``root``.
        imbalance: Largest over smallest class, for ``"folder"``; ``None`` leaves the
            classes as they are.
        profile: ``"exp"`` or ``"step"``.
        test_fraction: Share of each class that becomes the test split of a folder that
            has none; ``None`` for 0.2, and for one that has test images.
        side: Height and width of the views.

    Raises:
        ValueError: an argument or a list is unusable, or splits share images.
        FileNotFoundError: the images or the lists are not there.
    """
    if name == "folder":
        dataset = read_image_folder(root, imbalance, profile, test_fraction)
    elif imbalance is not None:
        raise ValueError(
            f"imbalance: {name} is long-tailed by its list; expected None, got "
            f"{imbalance:g}"
        )
    else:
        dataset = read_listed(name, root, root if lists is None else lists)

    def sized(images: ImageSet | ImageFiles) -> ImageFiles:
        assert isinstance(images, ImageFiles)
        return replace(images, side=side)

    return replace(
        dataset,
        train=sized(dataset.train),
        val=None if dataset.val is None else sized(dataset.val),
        test=sized(dataset.test),
    )
