"""Every benchmark at least starts; the small one runs."""

import csv
import importlib
import sys
from pathlib import Path

import pytest

import benchmarks.prototypes

PROGRAMS = sorted(
    path.stem for path in Path(benchmarks.prototypes.__file__).parent.glob("*.py")
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_imports_without_its_peers(name):
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_prototypes_are_timed_in_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks.prototypes, "TARGET", (64, 4, 2, 8))
    monkeypatch.setattr(benchmarks.prototypes.torch, "compile", lambda step: step)
    monkeypatch.setattr(
        sys, "argv", ["it", "--quick", "--seconds", "0", "--output", str(tmp_path)]
    )
    benchmarks.prototypes.main()
    with (tmp_path / "prototypes.csv").open(newline="") as stream:
        rows = {row["peer"]: row for row in csv.DictReader(stream)}
    assert {"s3h_ext", "s3h_ext, two ops", "eager", "compiled"} <= set(rows)
    assert all(float(row["median_ms"]) > 0 for row in rows.values())
    assert (tmp_path / "prototypes.png").stat().st_size > 0
