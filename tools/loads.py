"""Check that the libraries beside the package load into this PyTorch, and work.

Run by tools/oldest_torch.sh from the root of a checkout. Every operator that the
sources register must have its native kernel in PyTorch's dispatcher; a loss and its
gradient are calculated on the CPU. Needs no GPU.
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from s3h_ext.losses import supcon_loss
from s3h_ext.ops._library import CPU, CUDA


def registrations(key: str) -> dict[str, str]:
    """Return operator -> the file that registers it under a dispatch key."""
    found = {}
    for path in sorted(Path("csrc/torch").glob("*.cpp")):
        for block in path.read_text().split("STABLE_TORCH_LIBRARY_IMPL(s3h, ")[1:]:
            if block.startswith(("S3H_DISPATCH_KEY,", f"{key},")):
                for name in re.findall(r'library\.impl\(\s*"(\w+)"', block):
                    found[name] = path.name
    return found


def main() -> None:
    dump: Any = torch._C._dispatch_dump
    loaded = {"CPU": CPU, **({"CUDA": CUDA} if CUDA is not None else {})}
    for key, library in loaded.items():
        if not library.loaded:
            raise SystemExit(f"{library.path}: {library.error}")
        wanted = registrations(key)
        missing = [
            name
            for name, file in wanted.items()
            if not re.search(rf"^{key}: .*/{file}:", dump(f"s3h::{name}"), re.MULTILINE)
        ]
        if missing or not wanted:
            raise SystemExit(f"{library.path}: no {key} kernel of {missing or 'any'}")
        print(f"  PyTorch {torch.__version__}: {len(wanted)} {key} kernels registered")
    rows = F.normalize(torch.randn(64, 16, dtype=torch.float64), dim=1)
    labels = torch.arange(64) % 4
    scores = (rows @ rows.T / 0.1).fill_diagonal_(-torch.inf)
    same = (labels[:, None] == labels).double().fill_diagonal_(0)
    terms = same * scores.log_softmax(dim=1).nan_to_num(neginf=0)
    right = -(terms.sum(dim=1) / same.sum(dim=1)).mean()
    leaf = rows.float().requires_grad_()
    loss = supcon_loss(leaf, labels, temperature=0.1)
    loss.backward()
    assert leaf.grad is not None
    torch.testing.assert_close(loss.double(), right, rtol=1e-5, atol=0)
    assert leaf.grad.isfinite().all()
    assert leaf.grad.abs().max() > 0


if __name__ == "__main__":
    main()
