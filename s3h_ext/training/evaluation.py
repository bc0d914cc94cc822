"""A method's predictions on a split, and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from s3h_ext.data import Batch
from s3h_ext.data.source.decode import UnreadableImageError
from s3h_ext.methods import Method
from s3h_ext.report.metrics import Evaluation, evaluate_predictions, macro_auc
from s3h_ext.runs.precision import autocast
from s3h_ext.training.distributed import World
from s3h_ext.training.finite import DivergedError

__all__ = ["Predict", "evaluate_method"]

#: Normalised images ``[B, C, H, W]`` -> logits ``[B, num_classes]``.
Predict = Callable[[Tensor], Tensor]


def evaluate_method(
    method: Method,
    batches: Iterable[Batch],
    class_counts: np.ndarray,
    *,
    precision: str,
    device: torch.device,
    world: World | None = None,
    predict: Predict | None = None,
    auc: bool = False,
) -> Evaluation:
    """Return the metrics of a method on a split; its train/eval mode is restored.

    ``class_counts`` are the *training* images of each class ``[C]``. ``predict``
    replaces the method's own. Each process of ``world`` evaluates a part of the split,
    and all get the result. ``auc`` keeps the probabilities of all classes in memory.

    Raises:
        DivergedError: the logits of an image are not finite.
        UnreadableImageError: no image could be read.
    """
    predict = predict or method.predict
    # Kept on the device until the end, so that no batch synchronises.
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    found: list[tuple[Tensor, ...]] = [(empty, empty, empty.float(), empty.bool())]
    probabilities: list[Tensor] = []
    training = method.training
    method.eval()
    with torch.inference_mode(), autocast(precision, device, cache=False):
        for batch in batches:
            logits = predict(batch.images[0]).float()  # [B, C]
            confidence = (logits.amax(1) - logits.logsumexp(1)).exp()
            finite = logits.isfinite().all(1)
            found.append((batch.labels, logits.argmax(1), confidence, finite))
            if auc:  # on the CPU: with thousands of classes, too much for a GPU
                # In float32, those of a confident network would all be 1.
                probabilities.append(logits.cpu().double().softmax(1))
    method.train(training)
    columns = [*map(torch.cat, zip(*found, strict=True))]
    if probabilities:
        columns.append(torch.cat(probabilities))
    parts = (world or World()).gather([column.cpu().numpy() for column in columns])
    truth, predicted, confidences, sound, *every = map(
        np.concatenate, zip(*parts, strict=True)
    )
    if not len(truth):
        raise UnreadableImageError("evaluation: no image of the split could be read")
    if not sound.all():
        raise DivergedError(
            f"evaluation: the logits of {(~sound).sum()} of {len(sound)} images are "
            "not finite"
        )
    result = evaluate_predictions(truth, predicted, confidences, class_counts)
    return replace(result, auc=macro_auc(truth, *every)) if auc else result
