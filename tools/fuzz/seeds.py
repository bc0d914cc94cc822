"""Write the corpus: sound inputs of every kind, and hostile ones by construction.

``python tools/fuzz/seeds.py``, from the root of a checkout, after a change of a format.
Inputs that a fuzzer found stay; they are named ``found-*``.
"""

import pickle
import struct
from pathlib import Path

import numpy as np
import yaml

from s3h_ext.presets import preset_names
from s3h_ext.runs.options import parse_options
from s3h_ext.runs.presets import preset_arguments

CORPUS = Path(__file__).resolve().parent / "corpus"


def short(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


def integers(values: list[int]) -> bytes:
    return b"](" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"e"


def array(rows: int, columns: int = 3072) -> bytes:
    raw = bytes(range(256)) * (rows * columns // 256)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01"
        + b"".join(b"M" + struct.pack("<H", size) for size in (rows, columns))
        + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + struct.pack("<i", len(raw))
        + raw
        + b"tb"
    )


def split(labels: list[int], data: bytes) -> bytes:
    """Returns a CIFAR-100 split as Python 2 wrote it."""
    return (
        b"\x80\x02}q\x01("
        + (short("filenames") + b"](" + short("a.png") * 2 + b"e")
        + (short("fine_labels") + integers(labels))
        + (short("data") + data)
        + b"u."
    )


def doubling(levels: int, opcode: bytes) -> bytes:
    """Returns instructions for a nest of pairs of the same object: 2**levels parts."""
    return b"".join(
        b"r" + struct.pack("<I", n) + b"j" + struct.pack("<I", n) + opcode
        for n in range(levels)
    )


def archive_seeds() -> dict[str, bytes]:
    rows = np.zeros((1, 3072), np.uint8)
    content = {"fine_labels": [7], "data": rows}
    names = b"](" + b"".join(short(f"n{number}") for number in range(100)) + b"e"
    return {
        "train": b"\x00" + split([3, 99], array(2)),
        "test": b"\x01" + split([5], array(1)),
        "meta": b"\x02\x80\x02}" + short("fine_label_names") + names + b"s.",
        "python3-protocol3": b"\x00" + pickle.dumps(content, 3),
        "python3-protocol4": b"\x00" + pickle.dumps(content, 4),
        "python3-protocol5": b"\x00" + pickle.dumps(content, 5),
        "protocol0": b"\x02" + pickle.dumps({"fine_label_names": ["a"] * 100}, 0),
        "executes": b"\x00cos\nsystem\n(S'true'\ntR.",
        "executes-protocol4": b"\x00\x80\x04\x8c\x02os\x8c\x06system\x93"
        + b"\x8c\x04true\x85R.",
        "label-out-of-range": b"\x00" + split([3, 100], array(2)),
        "huge-memo": b"\x00\x80\x02}r\xff\xff\xff\x7f.",
        "huge-length": b"\x00\x80\x04\x8e" + b"\xff" * 7 + b"\x00x.",
        "huge-bytearray": b"\x00\x80\x05\x96\x00\x00\x00\x00\x20\x00\x00\x00x.",
        "huge-frame": b"\x00\x80\x04\x95\xff\xff\xff\xff\xff\x00\x00\x00}.",
        "slow-key": b"\x00\x80\x02})" + doubling(64, b"\x86") + b"K\x01s.",
        "slow-shape": b"\x00\x80\x02}"
        + short("data")
        + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + b"(K\x01)"
        + doubling(64, b"\x86")
        + b"cnumpy\ndtype\nU\x02u1\x85R\x89U\x00tbs.",
        "long-integer": b"\x00\x80\x02}"
        + short("fine_labels")
        + b"]\x8b"
        + struct.pack("<i", 4000)
        + b"\x7f" * 4000
        + b"as.",
        "deep": b"\x00" + b"(" * 4000 + b"t" * 4000 + b".",
    }


def option_seeds() -> dict[str, bytes]:
    record = parse_options(["--preset", "cifar10-lt/hybrid-psc"])[0].dump()
    bomb = b"a0: &a0 [x, x, x, x, x, x, x, x]\n" + b"".join(
        f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 8)}]\n".encode()
        for n in range(8)
    )
    seeds = {
        f"preset-{name.replace('/', '-')}": b"\n---\n"
        + Path(preset_arguments(name)[1]).read_bytes()
        for name in preset_names()
        if name.startswith("digits")
    }
    return seeds | {
        "record": b"\n---\n" + yaml.safe_dump(record).encode(),
        "arguments": b"--preset\ncifar100-lt/hybrid-sc\n--data.imbalance=50\n"
        b"--method.temperature\n0.5\n--optim.lr=0.25\n--optim.milestones=[0.5,0.6]\n"
        b"--resume",
        "method": b"--method\nBaseline\n--method.loss=logit-adjusted\n--seed=7",
        "preset-without-a-name": b"--preset",
        "config-without-a-name": b"--config",
        "help": b"--help",
        "print-config": b"--print_config",
        "not-utf8": b"\n---\ndata: \xff\xfe\n",
        "null-byte": b"--config=a\x00b\n---\nepochs: \x00\n",
        "not-a-number": b"\n---\noptim: {lr: .nan, warmup_epochs: .inf}\n",
        "huge-number": b"\n---\nepochs: 1" + b"0" * 5000 + b"\n",
        "deep": b"\n---\ndata: " + b"[" * 20000 + b"\n",
        "bomb": b"\n---\n" + bomb + b"data: *a8\n",
        "in-itself": b"\n---\ndata: &a\n  root: *a\n",
        "list": b"\n---\n- epochs\n",
        "executes": b"\n---\n!!python/object/apply:os.system ['true']\n",
        "imports": b"\n---\nmethod: {class_path: os.system, "
        b"init_args: {command: 'true'}}\n",
        "no-class": b"\n---\nmethod: {class_path: [1], init_args: 3}\n",
    }


def main() -> None:
    for target, seeds in {
        "archive": archive_seeds(),
        "options": option_seeds(),
    }.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not path.name.startswith("found-"):
                path.unlink()
        for name, content in seeds.items():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
