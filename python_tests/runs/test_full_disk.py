"""Writers on a disk that is full."""

from pathlib import Path

import pytest

from python_tests.processes import python
from python_tests.small_runs import DIGITS
from s3h_ext import files
from s3h_ext.files import write_bytes, write_text
from s3h_ext.runs.folder import RunFolder
from s3h_ext.training.runlog import RunLog

FULL = Path("/dev/full")
# A file that grows beyond the limit fails as on a full disk, with an OSError.
LIMITED = """
import resource, sys
import python_tests.small_digits
from s3h_ext.train import main
from s3h_ext.training import run
save = run.save_checkpoint
def limited(folder, epochs_done, state):
    if epochs_done == 1 and not state["unfinished_epoch"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))
    return save(folder, epochs_done, state)
run.save_checkpoint = limited
raise SystemExit(main(sys.argv[1:]))
"""


def test_a_run_ends_with_the_reason_and_its_older_checkpoint(tmp_path):
    options = ["--batch_size", "489", "--epochs", "2", "--output", str(tmp_path)]
    done = python("-c", LIMITED, *DIGITS, *options, status=1)
    assert "Traceback" not in done.stderr
    path = tmp_path / "checkpoints" / "epoch_00001.safetensors"
    assert f"error: [Errno 27] File too large: '{path}'" in done.stderr
    assert f"the last checkpoint is in {tmp_path}" in done.stderr
    kept = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert kept == ["epoch_00000_and_more.safetensors"]


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")
def test_whatever_is_written_says_where_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_text(path, "old")
    monkeypatch.setattr(files, "open_new", lambda path: FULL.open("wb"))
    for content in (b"x", b"x" * 100_000):
        with pytest.raises(OSError, match=r"No space left on device.*a\.json"):
            write_bytes(path, content)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")
def test_a_log_that_cannot_be_written_closes(tmp_path, monkeypatch):
    module = "s3h_ext.training.runlog"
    monkeypatch.setattr(f"{module}.open_to_append", lambda path: FULL.open("a"))
    log = RunLog(RunFolder(tmp_path), [], 1, 0)
    with pytest.raises(OSError, match="No space left"):
        log.note("a line")
    log.close()
