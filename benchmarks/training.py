"""Trainer against the bare loop: what does everything around the network cost?

Trains ResNet-32 on batches of random 32x32 images twice over: once through ``Trainer``
(sampling, augmentation, schedule, losses, meter, progress bar, logs) and once as a bare
forward + backward + step on as many images that never change, with batch norm,
addition and ReLU as the modules of PyTorch. Where S3H has a momentum
copy, the bare loop also does the copy's bare forward of the montages, so the ratio is
what all of S3H costs beside its convolutions. The two take turns in one process;
medians of their rates are compared.

    python -m benchmarks.training [--precision auto] [--rounds 7] [--steps 30]
    python -m benchmarks.training --preset cifar100-lt/s3h --batch_size 256 --steps 4

The bare loop is launched kernel by kernel, and so is the trainer's step unless
``--graphs`` says otherwise; the row's ``preset`` says which.
Options that are not listed go to ``python -m s3h_ext.train``.
Appends a row to ``training.csv`` in ``--output`` and prints it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from s3h_ext import huge_pages

if __name__ == "__main__":
    huge_pages.restart(sys.argv[1:])  # before PyTorch is imported

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.tables import append
from s3h_ext.command_line import Parser
from s3h_ext.data import ImageSet, LongTailDataset
from s3h_ext.methods import S3H
from s3h_ext.models import build_model, momentum_copy, normalisation
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.options import parse_options
from s3h_ext.runs.precision import autocast, device_name
from s3h_ext.training.runlog import RunLog
from s3h_ext.training.trainer import Trainer


def random_dataset(images: int, classes: int) -> LongTailDataset:
    """Return random bytes in the shape of CIFAR; the cost is that of any content."""
    rng = np.random.default_rng(0)
    split = ImageSet(
        rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8),
        rng.integers(0, classes, images),
    )
    names = tuple(map(str, range(classes)))
    return LongTailDataset("random", split, None, split, names, (0.5,) * 3, (0.25,) * 3)


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_rate(trainer: Trainer, steps: int, batch_size: int) -> float:
    """Return views/s of forward + backward + step and nothing else."""
    device = trainer.device
    torch.manual_seed(0)
    layout = torch.channels_last
    model = build_model("resnet32", 100).to(device).to(memory_format=layout)
    streams = trainer.method.streams().values()
    size = batch_size * sum(stream.views for stream in streams)
    images = torch.randn(size, 3, 32, 32, device=device)
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(0, 100, (size,), device=device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4, fused=True
    )
    method = trainer.method
    copied = None
    if isinstance(method, S3H) and method.partner == "momentum":
        copied = momentum_copy(model.backbone)

    def step() -> None:
        with autocast(trainer.precision, device):
            logits = model(images)
            if copied is not None:
                with torch.no_grad():
                    copied.feature_map(images[batch_size:])
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    for _ in range(min(3, steps)):
        step()
    wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return steps * size / (time.perf_counter() - started)


def main() -> None:
    """Run the comparison."""
    parser = Parser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--preset", default="cifar100-lt/ce")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results"
    )
    options, rest = parser.parse_known_args()
    if not any(word.partition("=")[0] == "--graphs" for word in rest):
        rest.append("--graphs=off")

    config, _ = parse_options(
        [
            f"--preset={options.preset}",
            f"--precision={options.precision}",
            f"--device={options.device}",
            f"--batch_size={options.batch_size}",
            *rest,
        ]
    )
    dataset = random_dataset(options.steps * options.batch_size, 100)
    rates: dict[str, list[float]] = {"trainer": [], "bare": []}
    # The progress bar is drawn as in a training, and nobody has to see it.
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as null,
        contextlib.redirect_stderr(null),
    ):
        trainer = Trainer(config, Path(folder), dataset=dataset)
        log = RunLog(RunFolder(Path(folder)), [], options.steps * config.epochs, 0)
        for turn in range(options.rounds + 1):
            through = trainer.train_epoch(turn, log)["images_per_second"]
            with mock.patch.object(normalisation, "fuses", return_value=False):
                alone = bare_rate(trainer, options.steps, options.batch_size)
            if turn:  # the first turn warms up
                rates["trainer"].append(through)
                rates["bare"].append(alone)
        log.close()
        row = {
            "date": datetime.date.today().isoformat(),
            "machine": device_name(trainer.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "preset": " ".join((options.preset, *rest)),
            "precision": trainer.precision,
            "batch_size": options.batch_size,
            "trainer_images_per_second": round(statistics.median(rates["trainer"]), 1),
            "bare_images_per_second": round(statistics.median(rates["bare"]), 1),
            "ratio": round(
                statistics.median(
                    a / b for a, b in zip(rates["trainer"], rates["bare"], strict=True)
                ),
                4,
            ),
        }
    for name, value in row.items():
        print(f"{name:28} {value}")
    options.output.mkdir(parents=True, exist_ok=True)
    append(options.output / "training.csv", [row])


if __name__ == "__main__":
    main()
