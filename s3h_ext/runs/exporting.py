"""A run's network as an ONNX model or a ``torch.export`` program."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3h_ext import __version__
from s3h_ext.checks import check_choice
from s3h_ext.command_line import FORMATS, CommandError
from s3h_ext.files import write_bytes
from s3h_ext.methods import Method
from s3h_ext.runs.loading import Run

__all__ = ["ExportError", "export_run", "metadata"]

#: Largest difference between logits, relative to the largest logit.
TOLERANCE = 1e-4


class ExportError(CommandError):
    """The exported network differs from the original; nothing was written."""


class Prediction(nn.Module):
    """A method's prediction as a network, ``[B, C, H, W] -> [B, num_classes]``."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of normalised ``images``."""
        return self.method.predict(images).float()


def metadata(run: Run) -> dict[str, str]:
    """Return the file's metadata as strings, structures as JSON."""
    card = run.card
    return {
        "run": run.name,
        "method": run.method.label,
        "dataset": card.name,
        "epochs_done": str(run.epochs_done),
        "s3h_ext": __version__,
        "input": "images",
        "output": "logits, one for each class; softmax gives probabilities",
        "preprocessing": json.dumps(card.preprocessing.describe()),
        "classes": json.dumps(list(card.classes)),
    }


def export_run(run: Run, images: Tensor, path: Path, form: str) -> float:
    """Export a run's network, verify the file's content, write the file.

    The batch size is variable, the image size is the network's own.

    Args:
        run: a run loaded on the CPU.
        images: real inputs for the check, ``[B, C, H, W]``, B >= 1.
        path: file to write; it appears complete or not at all.
        form: ``"onnx"`` or ``"pt2"``.

    Returns:
        The largest difference between logits of the file and the network.

    Raises:
        ImportError: ONNX is requested but its packages are not installed.
        ExportError: logits or predicted classes differ.
    """
    check_choice("format", form, FORMATS)
    make = _onnx if form == "onnx" else _pt2
    # A copy: contiguous memory and frozen weights are needed for the export only.
    method = copy.deepcopy(run.method).requires_grad_(False)
    # torch's stubs lack this overload.
    method.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network = Prediction(method).eval()
    with torch.inference_mode():
        expected = network(images)
    # Two images, because one would make the batch size a constant. Outside of inference
    # mode, whose tensors cannot be traced.
    example = images[:1].repeat(2, 1, 1, 1).contiguous()
    content, call = make(network, example, metadata(run))
    difference = 0.0
    for part in (slice(None), slice(1)):  # the batch size must be variable
        found, wanted = call(images[part]), expected[part]
        limit = TOLERANCE * max(1.0, float(wanted.abs().max()))
        difference = max(difference, float((found - wanted).abs().max()))
        if not bool(wanted.isfinite().all()):
            raise ExportError(f"{form}: the network's logits are not finite")
        agree = torch.equal(found.argmax(1), wanted.argmax(1))
        if not (difference <= limit and agree):
            raise ExportError(
                f"{form}: logits differ by up to {difference:.3g} from the network's "
                f"(allowed {limit:.3g}), predicted classes "
                f"{'agree' if agree else 'differ'}; nothing was written"
            )
    write_bytes(path, content)
    return difference


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    return torch.export.export(network, (example,), dynamic_shapes=shapes)


def _pt2(
    network: nn.Module, example: Tensor, about: dict[str, str]
) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    file = io.BytesIO()
    extra = {"metadata.json": json.dumps(about, indent=1)}
    torch.export.save(_program(network, example), file, extra_files=extra)
    content = file.getvalue()
    loaded: Callable[[Tensor], Tensor] = torch.export.load(io.BytesIO(content)).module()
    return content, loaded


def _onnx(
    network: nn.Module, example: Tensor, about: dict[str, str]
) -> tuple[bytes, Callable[[Tensor], Tensor]]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it and says less
    except ImportError as error:
        raise ImportError(
            f"format: onnx needs the package {error.name}, which is not installed: "
            "pip install 's3h_ext[export]', or take --format pt2"
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its internals
        exported = torch.onnx.export(
            _program(network, example),
            input_names=["images"],
            output_names=["logits"],
            # The program's own names for its axes are lost.
            dynamic_shapes={"images": {0: "batch"}},
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    model: Any = exported.model_proto
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def call(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits)

    return content, call
