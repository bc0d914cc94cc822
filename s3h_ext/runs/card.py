"""Describes the input and output of a run's network, in the run's folder.

With ``dataset.json`` and a checkpoint, a network can be used without the training
images.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from s3h_ext.data import ImageFiles, ImageSet, LongTailDataset
from s3h_ext.data.sets.naming import some
from s3h_ext.data.views.pictures import Preprocessing
from s3h_ext.files import write_text
from s3h_ext.runs.folder import RunFolder

__all__ = ["DatasetCard", "read_card", "write_card"]


@dataclass(frozen=True)
class DatasetCard:
    """A data set without its images, and how to show images to the network.

    Attributes:
        name: name of the data set.
        classes: class names, in the order of the logits.
        train_images: training images of each class, without the validation split.
        image_shape: height, width and channels of the network's input.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel.
        recipe: evaluation recipe: ``"none"`` for images at their own size,
            ``"evaluation"`` for photographs.
        unreadable: training images left out because they cannot be read: their names
            relative to the root.
    """

    name: str
    classes: tuple[str, ...]
    train_images: tuple[int, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recipe: str = "none"
    unreadable: tuple[str, ...] = ()

    @classmethod
    def of(cls, dataset: LongTailDataset) -> DatasetCard:
        """Return the card of a data set."""
        return cls(
            name=dataset.name,
            classes=tuple(dataset.class_names),
            train_images=tuple(dataset.class_counts.tolist()),
            image_shape=dataset.image_shape,
            mean=tuple(dataset.mean),
            std=tuple(dataset.std),
            recipe="evaluation" if isinstance(dataset.train, ImageFiles) else "none",
            unreadable=dataset.unreadable,
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of images of any size for the network."""
        return Preprocessing(self.image_shape, self.mean, self.std, self.recipe)

    def differences(self, other: DatasetCard) -> list[str]:
        """Describe how ``other`` differs; empty if it does not."""
        found = []
        missing = sorted(set(self.classes) - set(other.classes))
        added = sorted(set(other.classes) - set(self.classes))
        if missing or added:
            parts = (("without", missing), ("with", added))
            found.append(
                "other classes, "
                + " and ".join(f"{word} {some(n, show=str)}" for word, n in parts if n)
            )
        elif self.classes != other.classes:
            found.append("classes in a different order")
        else:
            counts = zip(
                self.classes, self.train_images, other.train_images, strict=True
            )
            changed = [
                f"{name} {then} -> {now}" for name, then, now in counts if then != now
            ]
            if changed:
                found.append(
                    f"different numbers of training images: {some(changed, show=str)}"
                )
        for name in ("name", "image_shape", "mean", "std", "recipe"):
            then, now = getattr(self, name), getattr(other, name)
            if then != now:
                label = f"pixels' {name}" if name in ("mean", "std") else name
                found.append(f"{label} {then} -> {now}")
        return found

    def stand_in(self) -> LongTailDataset:
        """Return a data set with the same class counts and black images.

        A method needs it to build its modules; the images take no memory.
        """
        labels = np.repeat(np.arange(len(self.classes)), self.train_images)
        pixel = np.zeros((1,) * 4, np.uint8)
        images = np.broadcast_to(pixel, (len(labels), *self.image_shape))
        train = ImageSet(images, labels.astype(np.int64))
        return LongTailDataset(
            name=self.name,
            train=train,
            val=None,
            test=train,
            class_names=self.classes,
            mean=self.mean,
            std=self.std,
        )


def write_card(folder: RunFolder, dataset: LongTailDataset) -> None:
    """Write ``dataset.json``."""
    # ASCII, because class names that are not UTF-8 must survive unchanged.
    text = json.dumps(asdict(DatasetCard.of(dataset)), indent=1)
    write_text(folder.card, text + "\n")


def read_card(folder: RunFolder) -> DatasetCard | None:
    """Read ``dataset.json``; ``None`` if an older run left none.

    Raises:
        ValueError: the file has invalid contents.
    """
    path = folder.card
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content.items()
        }
        card = DatasetCard(**fields)
        if len(card.classes) != len(card.train_images) or len(card.image_shape) != 3:
            raise ValueError("the fields do not fit together")
        for name in card.classes:
            os.fsencode(name)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from None
    return card
