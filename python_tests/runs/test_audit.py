import io
import zipfile

import pytest
import torch

from s3h_ext.runs.audit import audit_checkpoint, is_plain
from s3h_ext.runs.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from s3h_ext.runs.folder import RunFolder

RECORDS = {"data.pkl": b"\x80\x02}.", "version": b"3\n", "data/0": bytes(8)}


def write(path, records, compression=zipfile.ZIP_STORED, folder="epoch/"):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(folder + name, content)
    return path


def test_every_kind_of_tensor_passes(tmp_path):
    types = (torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.float64)
    types += (torch.float32, torch.float16, torch.int32, torch.int64, torch.int16)
    state = {str(kind): torch.ones(2, 3, dtype=kind) for kind in types}
    state["view"] = torch.arange(6.0).reshape(2, 3).t()
    state["empty"] = torch.zeros(0, 3)
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    state["module"] = torch.nn.BatchNorm1d(2).state_dict()
    path = save_checkpoint(
        RunFolder(tmp_path), 1, {"config": {"seed": 1}, "method": state}
    )
    loaded = load_checkpoint(path)["method"]
    assert torch.equal(loaded["view"], state["view"])
    assert loaded["module"].keys() == state["module"].keys()


def test_a_sound_file_passes(tmp_path):
    audit_checkpoint(write(tmp_path / "file", RECORDS))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        # PyTorch itself would make a tensor or an array of two gigabytes here.
        (b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "bytearray"),
        (b"\x80\x02ctorch\nTensor\nJ\xff\xff\xff\x7f\x85R.", "torch.Tensor"),
        (b"\x80\x02(X\x07\x00\x00\x00storageK\x04X\x01\x00\x00\x000NK\x03tQ.", "size"),
        (
            b"\x80\x02(X\x07\x00\x00\x00storageK\x04X\x01\x00\x00\x001NK\x02tQ.",
            "no sto",
        ),
        (b"\x80\x02K\x01Q.", "no storage"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "state set on a global"),
    ],
)
def test_what_a_checkpoint_never_asks_for_is_refused(tmp_path, pickled, message):
    path = write(tmp_path / "file", {**RECORDS, "data.pkl": pickled})
    with pytest.raises(Exception, match=message):
        audit_checkpoint(path)
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)


def test_the_file_must_be_laid_out_as_pytorch_does(tmp_path):
    path = tmp_path / "file"
    write(path, {**RECORDS, "data/1": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        audit_checkpoint(path)
    write(path, {**RECORDS, "DATA.PKL": b""})
    with pytest.raises(ValueError, match="twice"):
        audit_checkpoint(path)
    write(path, {"epoch/version": b"", **RECORDS}, folder="")
    with pytest.raises(ValueError, match="one folder"):
        audit_checkpoint(path)
    write(path, {"version": b""})
    with pytest.raises(ValueError, match=r"data\.pkl"):
        audit_checkpoint(path)
    path.write_bytes(b"x" + write(path, RECORDS).read_bytes())
    with pytest.raises(ValueError, match="before the archive"):
        audit_checkpoint(path)


def test_overlapping_records_are_refused(tmp_path):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("epoch/data.pkl", bytes(50_000))
        for number in range(20):
            # Many entries of the directory, one and the same record.
            copy = archive.infolist()[0]
            entry = zipfile.ZipInfo(f"epoch/data/{number}")
            entry.header_offset, entry.CRC = copy.header_offset, copy.CRC
            entry.file_size = entry.compress_size = copy.file_size
            archive.filelist.append(entry)
        archive._didModify = True
    (tmp_path / "file").write_bytes(whole.getvalue())
    with pytest.raises(ValueError, match="more than the file holds"):
        audit_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("missing", ["config", "epochs_done", "method"])
def test_without_what_every_one_has_it_is_no_checkpoint(tmp_path, missing):
    values = {"config": {"seed": 1}, "method": {}} | {missing: None}
    path = save_checkpoint(RunFolder(tmp_path), 1, values)
    with pytest.raises(CheckpointError, match=rf"{missing}: expected .*"):
        load_checkpoint(path)


def test_options_that_never_end_are_refused(tmp_path):
    looped = {}
    looped["again"] = looped
    shared = {"lr": 1}
    for _ in range(100):
        shared = {"a": shared, "b": shared}
    wide = 1
    for _ in range(15):
        wide = [wide] * 10
    for config in (looped, shared, {"x": wide}, {1: 2}, {"x": torch.ones(1)}):
        assert not is_plain(config)
        save_checkpoint(RunFolder(tmp_path), 1, {"config": config})
        with (
            pytest.warns(UserWarning, match="config: expected nested options"),
            pytest.raises(CheckpointError, match="no sound checkpoint"),
        ):
            latest_checkpoint(RunFolder(tmp_path), {"seed": 1})
    assert is_plain({"optim": {"lr": 0.1, "milestones": [0.8, 0.9]}, "root": None})
