"""Data sets, recipes and the sources that training draws its batches from."""

from s3h_ext.data.batches import Batch, EvaluationBatches
from s3h_ext.data.dataset import ImageSet, LongTailDataset, load_dataset
from s3h_ext.data.resident import ResidentSource
from s3h_ext.data.streams import Stream

__all__ = [
    "Batch",
    "EvaluationBatches",
    "ImageSet",
    "LongTailDataset",
    "ResidentSource",
    "Stream",
    "load_dataset",
]
