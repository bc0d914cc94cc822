"""Which arithmetic a run uses, and that bfloat16 trains what float32 trains."""

from itertools import islice

import pytest
import torch

from python_tests.small_runs import trainer_of
from s3h_ext.runs import precision
from s3h_ext.runs.precision import resolve_precision
from s3h_ext.training.runlog import SilentLog

METHODS = {
    "ce": "",
    "ldam": "--method.loss ldam --model.classifier cosine",
    "sc": "--method Hybrid --method.recipe crop",
    "psc": "--method Hybrid --method.contrast prototypical --method.recipe crop",
    "s3h": "--method S3H --method.recipe crop --model.classifier cosine",
    "bcl": "--method BCL --method.recipe crop",
    "cws": "--method ClasswiseSplitting --method.inner Baseline --method.split_from 0",
}


def train(folder, name, kind):
    short = "--batch_size 32 --epochs 1 --optim.lr 0.01".split()
    trainer = trainer_of(folder, *short, *METHODS[name].split(), "--precision", kind)
    # Two steps: where a CPU has no bfloat16, it takes long.
    epoch = trainer.source.epoch
    trainer.source.epoch = lambda *place: islice(epoch(*place), 2)
    seen = set()
    for module in trainer.method.model.backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    return trainer, trainer.train_epoch(0, SilentLog()), seen


# They see two views, as s3h does.
ALIKE = ("sc", "psc", "bcl")


MARKED = [pytest.param(n, marks=[pytest.mark.slow] * (n in ALIKE)) for n in METHODS]


@pytest.mark.parametrize("name", MARKED)
def test_bfloat16_follows_float32(tmp_path, name):
    _, exact, seen = train(tmp_path / "fp32", name, "fp32")
    assert seen == {torch.float32}
    trainer, rounded, seen = train(tmp_path / "bf16", name, "bf16")
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in trainer.method.parameters()} == {torch.float32}
    terms = exact.keys() - {"lr", "images_per_second"}
    assert terms
    for term in terms:
        assert rounded[term] == pytest.approx(exact[term], rel=0.03, abs=0.01), term


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx512f", "avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"avx2"}, "fp32")],
)
def test_auto_is_bfloat16_where_the_chip_multiplies_it(monkeypatch, flags, expected):
    monkeypatch.setattr(precision, "_cpuinfo", lambda field: " ".join(flags))
    assert resolve_precision("auto", torch.device("cpu")) == expected
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"
