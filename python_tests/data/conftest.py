import struct
from pathlib import Path

import numpy as np
import pytest

from .photographs import load
from .sources import noisy_images


def python2_pickle(value):
    """Writes the opcodes that Python 2 with numpy wrote the official archives in."""
    return b"\x80\x02" + _emit(value) + b"."


def _emit(value):
    if isinstance(value, dict):
        items = b"".join(_emit(key) + _emit(item) for key, item in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_emit(item) for item in value) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, (str, bytes)):
        raw = value.encode("latin1") if isinstance(value, str) else value
        if len(raw) < 256:
            return b"U" + bytes([len(raw)]) + raw
        return b"T" + struct.pack("<i", len(raw)) + raw
    assert isinstance(value, np.ndarray)
    assert value.dtype.isnative
    code = value.dtype.str[1:]
    order = "|" if value.dtype.itemsize == 1 else "<"
    shape = b"(" + b"".join(_emit(int(size)) for size in value.shape) + b"t"
    dtype = (
        b"cnumpy\ndtype\n"
        + _emit(code)
        + b"K\x00K\x01\x87R(K\x03"
        + _emit(order)
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + dtype + b"\x89" + _emit(value.tobytes()) + b"tb"
    )


@pytest.fixture(name="python2_pickle")
def python2_pickle_fixture():
    return python2_pickle


KINDS = {"fine": 100, "coarse": 20}


class TinyCifar:
    """Writes small archives in the official form, with recognisable pixels."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def rows(labels, salt):
        """Returns uint8 [N, 3072], red plane = label, rest from a generator."""
        pixels = np.random.RandomState(salt).randint(0, 256, (len(labels), 3072))
        pixels[:, :1024] = np.asarray(labels)[:, None]
        return pixels.astype(np.uint8)

    @staticmethod
    def write(path, content):
        path.write_bytes(python2_pickle(content))
        return path.parent

    def cifar10(self, counts=(40,) * 10, test_per_class=3):
        folder = self.root / "cifar-10-batches-py"
        folder.mkdir()
        labels = np.repeat(np.arange(10), counts)
        labels = np.random.RandomState(5).permutation(labels)
        for number, part in enumerate(np.array_split(labels, 5), start=1):
            content = {
                "batch_label": f"training batch {number} of 5",
                "labels": part.tolist(),
                "data": self.rows(part, number),
                "filenames": [f"{i}.png" for i in range(len(part))],
            }
            self.write(folder / f"data_batch_{number}", content)
        test = np.repeat(np.arange(10), test_per_class)
        content = {"labels": test.tolist(), "data": self.rows(test, 9)}
        self.write(folder / "test_batch", content)
        names = {"label_names": [f"thing{i}" for i in range(10)]}
        return self.write(folder / "batches.meta", names)

    def cifar100(self, per_class=6):
        folder = self.root / "cifar-100-python"
        folder.mkdir()
        for name, count in (("train", per_class), ("test", 1)):
            labels = np.repeat(np.arange(100), count)
            content = {
                "fine_labels": labels.tolist(),
                "coarse_labels": (labels // 5).tolist(),
                "data": self.rows(labels, count),
            }
            self.write(folder / name, content)
        fine, coarse = ([f"{k}{i}" for i in range(n)] for k, n in KINDS.items())
        names = {"fine_label_names": fine, "coarse_label_names": coarse}
        return self.write(folder / "meta", names)


@pytest.fixture
def tiny_cifar(tmp_path):
    return TinyCifar(tmp_path)


@pytest.fixture(scope="module")
def image_set():
    return noisy_images(16, 16)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return load(tmp_path_factory.mktemp("photographs"))
