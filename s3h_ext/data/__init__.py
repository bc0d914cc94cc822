"""Data sets, augmentation recipes and the sources of training batches."""

from s3h_ext.data.dataset import ImageFiles, ImageSet, LongTailDataset
from s3h_ext.data.load import load_dataset, unused_images
from s3h_ext.data.source.batches import Batch
from s3h_ext.data.source.evaluation import EvaluationBatches
from s3h_ext.data.source.feed import Feed
from s3h_ext.data.source.pixels import FilePixels, ResidentPixels
from s3h_ext.data.source.source import Source
from s3h_ext.data.streams import Stream
from s3h_ext.data.views.mixing import Mixing
from s3h_ext.data.views.pictures import thumbnails

__all__ = [
    "Batch",
    "EvaluationBatches",
    "Feed",
    "FilePixels",
    "ImageFiles",
    "ImageSet",
    "LongTailDataset",
    "Mixing",
    "ResidentPixels",
    "Source",
    "Stream",
    "load_dataset",
    "thumbnails",
    "unused_images",
]
