import pickle
import struct
import time
import tracemalloc

import pytest

from s3h_ext.data.sets.pickles import RefusedGlobalError, load_plain
from s3h_ext.text import describe_value

PLAIN = {"a": [1, -1, 2**40, 1.5, None, True], "b": ("x", b"y", ()), 3: {}}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_come_back(protocol):
    content = {k: v for k, v in PLAIN.items() if protocol > 2 or k != "b"}
    assert load_plain(pickle.dumps(content, protocol), {}) == content


def doubling(levels):
    """Returns instructions for pairs of pairs of ...: 2**levels parts in all."""
    return b"".join(b"q%cj%s\x86" % (n, struct.pack("<I", n)) for n in range(levels))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Its hash takes 2**200 steps.
        pytest.param(
            b"\x80\x02})" + doubling(200) + b"K\x01s.", "tuples", id="slow key"
        ),
        pytest.param(b"()" + doubling(200) + b"K\x01d.", "tuples", id="slow key, dict"),
        pytest.param(b"\x80\x05\x96" + b"\xff" * 7 + b"\x00x.", None, id="array"),
        pytest.param(b"\x8f.", "instruction EMPTY_SET", id="set"),
        pytest.param(b"Pabc\n.", "instruction PERSID", id="persistent id"),
    ],
)
def test_what_is_not_plain_is_refused(content, message):
    with pytest.raises((pickle.UnpicklingError, ValueError), match=message):
        load_plain(content, {})


def test_a_key_of_as_many_tuples_as_are_let_through_is_hashed_at_once():
    started = time.process_time()
    assert len(load_plain(b"\x80\x02})" + doubling(20) + b"K\x01s.", {})) == 1
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"}r\xff\xff\xff\x7f.", id="memo index"),
        pytest.param(b"}p99999999999\n.", id="memo index as text"),
        pytest.param(b"\x8e" + b"\xff" * 6 + b"\x00\x00x.", id="bytes"),
        pytest.param(b"B\xff\xff\xff\xffx.", id="bytes, 32-bit"),
        pytest.param(b"\x8d" + b"\xff" * 6 + b"\x00\x00x.", id="text"),
        pytest.param(b"\x80\x04\x95" + b"\xff" * 6 + b"\x00\x00x.", id="frame"),
        pytest.param(b"T\xff\xff\xff\x7fx.", id="string"),
    ],
)
def test_a_claimed_size_costs_nothing(content):
    tracemalloc.start()
    started = time.process_time()
    try:
        load_plain(content, {})
    except (EOFError, ValueError, pickle.UnpicklingError):
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 20
    assert time.process_time() - started < 5


def test_a_global_is_refused_before_anything_is_called():
    called = []
    with pytest.raises(TypeError):
        load_plain(b"cours\nknown\n)Rcos\nsystem\n.", {("ours", "known"): 1})
    allowed = {("ours", "known"): lambda: called.append(1)}
    with pytest.raises(RefusedGlobalError, match=r"os\.system"):
        load_plain(b"cours\nknown\n)Rcos\nsystem\n.", allowed)
    assert called == [1]


def test_a_value_in_a_message_is_short():
    nest = ()
    for _ in range(200):
        nest = (nest, nest)
    assert describe_value(nest) == "tuple"
    assert describe_value(10**5000) == "an integer of 16610 bits"
    assert describe_value(-7) == "-7"
    assert len(describe_value("x" * 10_000)) < 70
    assert describe_value(None) == "None"
