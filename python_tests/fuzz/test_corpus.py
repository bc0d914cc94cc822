"""Replays the fuzzers' corpus, without a fuzzer, and says what should come of it."""

import importlib.util
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "tools" / "fuzz"


def load(name):
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", FUZZ / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TARGETS = load("targets")
CORPUS = sorted(p for p in (FUZZ / "corpus").rglob("*") if p.is_file())
# Everything else is refused.
EXPECTED = {
    **dict.fromkeys(
        (
            *("archive/train", "archive/test", "archive/meta", "archive/protocol0"),
            *("archive/python3-protocol3", "archive/python3-protocol4"),
            *("options/arguments", "options/method", "options/record"),
            *(f"options/preset-digits-lt-{m}" for m in ("ce", "hybrid-sc")),
            "options/preset-digits-lt-hybrid-psc",
        ),
        "accepted",
    ),
    **dict.fromkeys(("options/help", "options/print-config"), "left"),
}


@pytest.mark.parametrize(
    "path", CORPUS, ids=[p.relative_to(FUZZ / "corpus").as_posix() for p in CORPUS]
)
def test_every_input_has_its_outcome(path, tmp_path):
    target, name = path.parts[-2:]
    outcome = TARGETS.TARGETS[target](path.read_bytes(), tmp_path)
    assert outcome == EXPECTED.get(f"{target}/{name}", "refused")


def test_the_corpus_is_there_and_small():
    assert {p.parent.name for p in CORPUS} == set(TARGETS.TARGETS)
    assert sum(p.stat().st_size for p in CORPUS) < 200_000
    names = {p.relative_to(FUZZ / "corpus").as_posix() for p in CORPUS}
    assert set(EXPECTED) <= names


def test_the_sentry_sees_what_a_reader_swallows(tmp_path):
    def reader():
        try:
            (tmp_path / "written").write_bytes(b"")
        except OSError:
            return None

    with pytest.raises(TARGETS.Violation, match="open"):
        TARGETS._watch(reader)
    assert not (tmp_path / "written").exists()
    assert TARGETS._watch(tmp_path.exists)
