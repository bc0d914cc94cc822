"""Hashes of the final weights of short runs, to compare two states of the code.

    python tools/run_bits.py record before.json     # on the old code
    python tools/run_bits.py compare before.json    # on the new code, same machine

Runs each kind of training for a few epochs on the built-in data and on a folder of made
images: every method, second stages, a run that was stopped and resumed, two processes.
Refactoring must leave all hashes equal. They hold for one machine and one PyTorch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from s3h_ext.runs.checkpoint import load_checkpoint

DIGITS = ["--model.backbone", "resnet20", "--epochs", "3"]
FOLDER = [
    *("--data.root", "images", "--data.size", "32", "--batch_size", "16"),
    *("--model.backbone", "resnet20", "--epochs", "2"),
]
CASES: dict[str, list[str]] = {
    **{
        name: ["--preset", f"digits-lt/{name}", *DIGITS]
        for name in ("bcl", "cb-ce", "ce", "cws", "hybrid-psc", "hybrid-sc", "s3h")
    },
    "ldam-drw": [
        *("--preset", "digits-lt/ce", *DIGITS, "--model.classifier", "cosine"),
        *("--method.loss", "ldam", "--method.weight_beta", "0.99"),
        *("--method.reweight_from", "0.5"),
    ],
    "cws-hybrid": [
        *("--preset", "digits-lt/cws", *DIGITS, "--method.inner", "Hybrid"),
        *("--method.split_from", "0.3", "--batch_size", "64"),
    ],
    "s3h-second-head": [
        *("--preset", "digits-lt/s3h", *DIGITS, "--method.partner", "second-head"),
        *("--method.cross_weight", "0", "--method.heads", "2"),
    ],
    "s3h-cosine": [
        *("--preset", "digits-lt/s3h", *DIGITS),
        *("--method.momentum_schedule", "cosine", "--seed", "3"),
    ],
    "crt": [
        *("--preset", "digits-lt/ce", *DIGITS, "--method", "ClassifierRetraining"),
        *("--init_from", "ce"),
    ],
    "tau-norm": [
        *("--preset", "digits-lt/ce", *DIGITS, "--method", "TauNormalization"),
        *("--init_from", "ce"),
    ],
    "folder-ce": ["--preset", "folder/ce", *FOLDER],
    "folder-hybrid-psc": ["--preset", "folder/hybrid-psc", *FOLDER],
    "folder-s3h": ["--preset", "folder/s3h", *FOLDER],
}
RESUMED = {"resumed-cws": "cws", "resumed-folder-s3h": "folder-s3h"}
TWO_PROCESSES = {"two-processes": "hybrid-psc"}


def command(case: str, output: str, *launcher: str) -> list[str]:
    options = [*CASES[case], "--output", output, "--report", "false", "--device", "cpu"]
    start = [sys.executable, "-m", *launcher]
    return [*start, "s3h_ext.train", *options, "--precision", "fp32"]


def make_images(folder: Path) -> None:
    """Write a small long-tailed folder of noise."""
    rng = np.random.default_rng(0)
    for label, count in enumerate((40, 14, 5)):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (36 + number % 5, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number:03d}.png")


def run(arguments: list[str], scratch: Path) -> None:
    done = subprocess.run(arguments, cwd=scratch, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr[-3000:]}")


def run_in_two_parts(case: str, output: str, scratch: Path) -> None:
    """Stop a run after its first epoch, wherever that finds it, and resume it."""
    arguments = command(case, output)
    started = subprocess.Popen(arguments, cwd=scratch, stderr=subprocess.DEVNULL)
    metrics = scratch / output / "metrics.csv"
    while started.poll() is None:
        if metrics.is_file() and len(metrics.read_text().splitlines()) > 1:
            started.send_signal(signal.SIGTERM)
            break
        time.sleep(0.02)
    if started.wait() == 0:
        raise SystemExit(f"{case}: was over before it could be stopped")
    run([*arguments, "--resume"], scratch)


def weights_hash(folder: Path) -> str:
    """Return a hash of a finished run's weights and buffers, whatever their names."""
    newest = max((folder / "checkpoints").glob("epoch_*"))
    tensors = load_checkpoint(newest)["method"].values()
    digests = []
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            plain = tensor.detach().contiguous().cpu().reshape(-1)
            data = plain.view(torch.uint8).numpy().tobytes()
            head = f"{tuple(tensor.shape)} {tensor.dtype} ".encode()
            digests.append(hashlib.sha256(head + data).hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:24]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=("record", "compare"))
    parser.add_argument("file", type=Path, help="the hashes, JSON")
    parser.add_argument("--only", nargs="*", help="these cases")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    wanted = options.only or [*CASES, *RESUMED, *TWO_PROCESSES]
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_images(scratch / "images")
        for case in wanted:
            if case in RESUMED:
                run_in_two_parts(RESUMED[case], case, scratch)
            elif case in TWO_PROCESSES:
                launcher = ("torch.distributed.run", "--nproc-per-node=2", "-m")
                run(command(TWO_PROCESSES[case], case, *launcher), scratch)
            else:
                run(command(case, case), scratch)
            found[case] = weights_hash(scratch / case)
            print(f"{case}: {found[case]}", flush=True)
    for case, whole in RESUMED.items():
        if case in found and whole in found and found[case] != found[whole]:
            raise SystemExit(f"{case}: not the bits of {whole}")
    if options.mode == "record":
        options.file.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    recorded = json.loads(options.file.read_text())
    differing = [case for case in found if found[case] != recorded.get(case)]
    print(f"differ: {', '.join(differing)}" if differing else "all equal")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
