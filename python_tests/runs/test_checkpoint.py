import copy

import pytest
import safetensors.torch
import torch

from s3h_ext.runs import checkpoint as module
from s3h_ext.runs.checkpoint import (
    CheckpointError,
    checkpoint_paths,
    differences,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from s3h_ext.runs.folder import RunFolder
from s3h_ext.runs.options import parse_options

CONFIG = {"optim": {"lr": 0.1}, "seed": 0, "output": "a"}


def save(folder, epochs_done):
    weights = {"weights": torch.full((5000,), epochs_done)}
    state = {"config": CONFIG, "method": weights}
    return save_checkpoint(RunFolder(folder), epochs_done, state)


def latest(folder, config=CONFIG, *precision):
    return latest_checkpoint(RunFolder(folder), config, *precision)


def names(folder):
    return [path.name for path in checkpoint_paths(RunFolder(folder))]


def test_the_last_two_are_kept(tmp_path):
    for epoch in (1, 2, 9, 10):
        save(tmp_path, epoch)
    assert names(tmp_path) == ["epoch_00010.safetensors", "epoch_00009.safetensors"]
    path, state = latest(tmp_path)
    assert path.name == "epoch_00010.safetensors"
    assert state["epochs_done"] == 10
    assert (state["method"]["weights"] == 10).all()


def test_nothing_there_is_no_error(tmp_path):
    assert latest(tmp_path / "missing") is None


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -100])
def test_a_truncated_one_is_skipped_for_the_one_before(tmp_path, cut):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    content = newest.read_bytes()
    newest.write_bytes(content[:cut])
    with pytest.warns(UserWarning, match="skipped .*epoch_00002.safetensors: damaged"):
        _, state = latest(tmp_path)
    assert state["epochs_done"] == 1


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path):
    path = save(tmp_path, 3)
    content = path.read_bytes()
    before = load_checkpoint(path)
    # The header first, bit by bit in places, then the weights.
    for place in [*range(0, 900, 3), len(content) // 2, len(content) - 1]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = load_checkpoint(path)
        except CheckpointError:
            continue
        # Spaces behind the header, say nothing.
        assert found["method"]["weights"].equal(before["method"]["weights"]), place
        assert found["epochs_done"] == 3
        assert place < 900


def test_only_damaged_ones_is_an_error(tmp_path):
    save(tmp_path, 1).write_bytes(b"")
    said = "no valid checkpoint among epoch_00001.safetensors"
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(CheckpointError, match=said),
    ):
        latest(tmp_path)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "epoch_00001.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(1)}, path)
    said = "expected format 's3h_ext-checkpoint-2', got None"
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)


def test_other_options_are_refused_by_name_but_paths_may_differ(tmp_path):
    save(tmp_path, 1)
    assert latest(tmp_path, {**CONFIG, "output": "b"}) is not None
    with pytest.raises(CheckpointError, match="optim.lr was 0.1, is 0.2"):
        latest(tmp_path, {**CONFIG, "optim": {"lr": 0.2}})


def test_an_option_younger_than_the_checkpoint_had_its_default(tmp_path):
    save(tmp_path, 1)
    later = {**CONFIG, "data": {**CONFIG.get("data", {}), "val_fraction": 0.0}}
    assert latest(tmp_path, later) is not None
    later["data"]["val_fraction"] = 0.2
    with pytest.raises(CheckpointError, match=r"data\.val_fraction was 0\.0, is 0\.2"):
        latest(tmp_path, later)


def test_a_run_from_before_photographs_can_go_on():
    record = parse_options([])[0].dump()
    old = copy.deepcopy(record)
    for name in ("source", "workers", "unreadable", "lists", "test_fraction"):
        old["data"].pop(name, None)
    old["model"].pop("weights", None)
    assert differences(old, record) == []
    record = parse_options(["--data.test_fraction", "0.5"])[0].dump()
    assert differences(old, record) == ["data.test_fraction was None, is 0.5"]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    kept = save(tmp_path, 1)
    before = kept.read_bytes()

    def full(file_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [kept.name]
    assert kept.read_bytes() == before


def begun(folder, epochs_done, steps=3):
    state = {"config": CONFIG, "method": {}, "unfinished_epoch": {"steps": steps}}
    return save_checkpoint(RunFolder(folder), epochs_done, state)


def test_a_state_inside_an_epoch_takes_no_whole_one_s_place(tmp_path):
    begun(tmp_path, 0)
    assert names(tmp_path) == ["epoch_00000_and_more.safetensors"]
    save(tmp_path, 1)
    save(tmp_path, 2)
    begun(tmp_path, 2)
    begun(tmp_path, 2, steps=5)
    assert names(tmp_path) == [
        "epoch_00002_and_more.safetensors",
        "epoch_00002.safetensors",
        "epoch_00001.safetensors",
    ]
    _, state = latest(tmp_path)
    assert state["unfinished_epoch"]["steps"] == 5
    save(tmp_path, 3)
    assert names(tmp_path) == ["epoch_00003.safetensors", "epoch_00002.safetensors"]
    # A damaged one that would come later is not taken for this one's successor.
    begun(tmp_path, 3).write_bytes(b"")
    assert begun(tmp_path, 2).is_file()


def test_precision_is_what_was_computed_in(tmp_path):
    config = {**CONFIG, "precision": "auto"}
    state = {"config": config, "method": {}, "optimizer": {}}
    save_checkpoint(RunFolder(tmp_path), 1, {**state, "precision": "bf16"})
    named = {**CONFIG, "precision": "bf16"}
    for record in (config, named):
        assert latest(tmp_path, record, "bf16") is not None
        assert latest(tmp_path, record) is not None  # to be evaluated
        with pytest.raises(CheckpointError, match="precision was 'bf16', is 'fp32'"):
            latest(tmp_path, record, "fp32")
    # An older one says what was asked for.
    save_checkpoint(RunFolder(tmp_path), 2, state)
    assert latest(tmp_path, config, "fp32") is not None
    assert latest(tmp_path, CONFIG, "fp32") is not None
    with pytest.raises(CheckpointError, match="precision was 'auto', is 'bf16'"):
        latest(tmp_path, named, "bf16")


def test_more_epochs_are_another_run(tmp_path):
    save(tmp_path / "my run", 1)
    said = r"epochs was 200.*--init_from '.*my run'"
    with pytest.raises(CheckpointError, match=said):
        latest(tmp_path / "my run", {**CONFIG, "epochs": 4})
    with pytest.raises(CheckpointError, match="another --output$"):
        latest(tmp_path / "my run", {**CONFIG, "seed": 1})


def test_a_state_comes_back_exactly(tmp_path):
    types = (torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.float64)
    types += (torch.float32, torch.float16, torch.int32, torch.int64, torch.int16)
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    pool = torch.arange(6.0)
    method = {str(kind): torch.ones(2, 3, dtype=kind) for kind in types} | {
        "view": torch.arange(6.0).reshape(2, 3).t(),
        "parts": [pool[:4], pool[2:]],
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(1.5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "weight": weight,
        "again": weight,
    }
    state = {
        "config": {"seed": 1},
        "method": method,
        "optimizer": {"state": {0: {"momentum_buffer": weight.clone()}}},
        "history": [{"loss": 0.1 + 0.2, "top1": None, "epoch": 1, "lr": 5e-324}],
        "left_out": {"caf\udce9.jpg": "no image"},
    }
    path = save_checkpoint(RunFolder(tmp_path), 1, state)
    found = load_checkpoint(path)
    assert found.pop("epochs_done") == 1
    for name, value in found.pop("method").items():
        expected = method[name]
        if name == "parts":
            assert all(map(torch.equal, value, expected))
            continue
        assert torch.equal(value, expected), name
        assert (value.dtype, value.stride()) == (expected.dtype, expected.stride())
    momentum = found.pop("optimizer")["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, weight)
    assert momentum.stride() == weight.stride()
    assert found == {name: state[name] for name in found}
    assert found.keys() == {"config", "history", "left_out"}
    # A tensor that is there twice is written once.
    alone = save_checkpoint(RunFolder(tmp_path), 2, {"method": {"weight": weight}})
    twice = {"method": {"weight": weight, "again": weight}}
    both = save_checkpoint(RunFolder(tmp_path), 3, twice)
    assert both.stat().st_size - alone.stat().st_size < weight.nbytes


@pytest.mark.parametrize("missing", ["config", "epochs_done", "method"])
def test_without_what_every_one_has_it_is_no_checkpoint(tmp_path, missing):
    values = {"config": {"seed": 1}, "method": {}} | {missing: None}
    path = save_checkpoint(RunFolder(tmp_path), 1, values)
    with pytest.raises(CheckpointError, match=rf"{missing}: expected .*"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"config": {"x": {"$tensor": "a", "$order": []}}}', "KeyError"),
        ('{"method": {"x": {"$tensor": "b", "$order": []}}}', "KeyError"),
        ('{"method": {"x": {"$tensor": "a", "$order": [1]}}}', "damaged"),
        ('{"method": {"$items": [[[], 1]]}}', "damaged"),
        ('{"config": ' + '{"a":' * 2000 + "1" + "}" * 2001, "damaged"),
        ('{"config": ' + "[" * 25 + "]" * 25 + "}", "nested too deep"),
        ("[]", "damaged"),
        ("{", "damaged"),
        ('{"epochs_done": 1' + "0" * 5000 + "}", "damaged"),
    ],
)
def test_a_state_that_was_never_saved_is_refused(tmp_path, text, message):
    tensors = {"a": torch.zeros(3)}
    checksum = str(module._checksum(text, tensors))
    header = {"format": module.FORMAT, "state": text, "checksum": checksum}
    path = tmp_path / "epoch_00001.safetensors"
    safetensors.torch.save_file(tensors, path, header)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
