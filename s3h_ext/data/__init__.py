"""Data sets, recipes and the sources that training draws its batches from."""

from s3h_ext.data.batches import Batch, EvaluationBatches
from s3h_ext.data.dataset import (
    ImageSet,
    LongTailDataset,
    load_dataset,
    unused_images,
)
from s3h_ext.data.feed import Feed
from s3h_ext.data.file_source import FileBatches, FileSource
from s3h_ext.data.files import ImageFiles
from s3h_ext.data.mixing import Mixing
from s3h_ext.data.resident import ResidentSource
from s3h_ext.data.streams import Stream
from s3h_ext.data.thumbnails import thumbnails

__all__ = [
    "Batch",
    "EvaluationBatches",
    "Feed",
    "FileBatches",
    "FileSource",
    "ImageFiles",
    "ImageSet",
    "LongTailDataset",
    "Mixing",
    "ResidentSource",
    "Stream",
    "load_dataset",
    "thumbnails",
    "unused_images",
]
