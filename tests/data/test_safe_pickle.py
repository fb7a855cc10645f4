"""Pickles that would run code, or unfold to far more than their size."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import time

import numpy as np
import pytest

from multipass.data.safe_pickle import read_pickle


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_of_any_layout_and_protocol(tmp_path, protocol):
    base = np.arange(24, dtype=np.int32).reshape(2, 3, 4)
    arrays = [base, np.asfortranarray(base), base[:, :, ::2], base > 5, base.astype(np.float16)]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays, protocol))
    for one, other in zip(read_pickle(tmp_path / "a.pkl"), arrays, strict=True):
        assert type(one) is np.ndarray
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def exploits(marker) -> dict[str, bytes]:
    """Pickles that would create `marker`, or reach for what could."""
    command = f"touch {marker}"
    nested = {"image": np.zeros(3), "source": [Calls(os.system, command)]}
    return {
        "os.system": pickle.dumps(Calls(os.system, command)),
        "subprocess": pickle.dumps(Calls(subprocess.getoutput, command)),
        "eval": pickle.dumps(Calls(eval, f"open({str(marker)!r}, 'w')")),
        "exec protocol 0": f"cbuiltins\nexec\n(S\"open({str(marker)!r},'w')\"\ntR.".encode(),
        "getattr chain": pickle.dumps(Calls(getattr, "x", "join")),
        "nested in a patient": pickle.dumps(nested),
        "numpy loader": pickle.dumps(Calls(np.load, str(marker))),
        "numpy submodule": b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n}tR.",
        "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
        "extension code": b"\x80\x02\x82\x01.",
        "persistent id": b"Pmodule\n.",
        "object array": pickle.dumps(np.array([Calls(os.system, command)], dtype=object)),
        "record array": pickle.dumps(np.zeros(2, dtype=[("a", "O")])),
        "record dtype": pickle.dumps(np.dtype([("a", "f4"), ("b", "i4")])),
        "ndarray called": b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93K\x05\x85R.",
        "numpy scalar": pickle.dumps(np.float64(1.0)),
        "memo bomb": b"\x80\x04K\x01r\xff\xff\xff\x7f.",
        "length bomb": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00abc.",
        "truncated": pickle.dumps({"image": np.zeros(100_000)})[:100_000],
        "no pickle": b"hello",
        "empty": b"",
    }


@pytest.mark.parametrize("kind", sorted(exploits("x")))
def test_pickles_that_would_run_code_are_refused(tmp_path, kind):
    marker = tmp_path / "owned"
    path = tmp_path / "bad.pkl"
    path.write_bytes(exploits(marker)[kind])
    with pytest.raises(ValueError, match="bad.pkl"):
        read_pickle(path)
    assert not marker.exists()


def test_refusal_names_the_function(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Calls(os.system, "true")))
    with pytest.raises(ValueError, match=r"would call (posix|nt)\.system"):
        read_pickle(tmp_path / "bad.pkl")


def twice(inner: bytes, levels: int, made_of_two: bytes) -> bytes:
    """`inner`, then a value of twice the one before, `levels` times over."""
    code = b"\x80\x04" + inner + b"\x94"
    for level in range(levels):
        two = b"h" + bytes([level])
        code += made_of_two.replace(b"2", two) + b"\x94"
    return code


def bombs() -> dict[str, bytes]:
    """Small pickles that ask for gigabytes or hours."""
    head, one, text = b"\x80\x04", b"K\x01", b"\x8c\x01a"
    raw = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"\x94"
    dtype = b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02u1\x89\x88\x87R"
    build = b"\x8c\x13numpy._core.numeric\x8c\x0b_frombuffer\x93"
    array = build + b"(%s" + dtype + b"K\x01\x85\x8c\x01CtR"
    filled_later = b"".join(b"]\x94" for _ in range(40)) + b"".join(
        b"h%c(h%ch%ce0" % (k, k - 1, k - 1) for k in range(39, 0, -1)
    )
    return {
        "lists of twice the same": twice(one, 40, b"](22e") + b".",
        "dicts of twice the same": twice(one, 40, b"}(\x8c\x01a2\x8c\x01b2u") + b".",
        "lists filled afterwards": head + filled_later + b".",
        "tuples as keys": twice(one, 40, b"22\x86") + b"}h\x28Ns.",
        "tuples in a set": twice(one, 40, b"22\x86") + b"\x8f(h\x28\x90.",
        "tuples as a dtype": twice(one, 40, b"22\x86")
        + b"\x8c\x05numpy\x8c\x05dtype\x93h\x28\x85R.",
        "doubled on the stack": head + b"]" + b"2\x86" * 40 + b".",
        "one buffer in many arrays": head + raw + b"](" + 2000 * (array % b"h\x00") + b"e.",
        "an array of a number of bytes": head + array % b"\x8a\x05\x00\x00\x00\x00\x10" + b".",
        "more bytes than the file has": head + b"\x8e" + struct.pack("<Q", 1 << 35) + b"abc.",
        "longer text than the file has": head + b"X" + struct.pack("<I", 1 << 31) + b"abc.",
        "a list in itself": head + b"]\x94h\x00a.",
        "nested too deep": head + b"(" * 100_000 + b"l" * 100_000 + b".",
        "numbers as keys": head + b"}(" + b"".join(
            b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(50_000)
        ) + b"u.",
        "a mark that is missing": head + text + b"e.",
        "a memo that is empty": head + b"h\x07.",
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(bombs()))
def test_a_small_pickle_costs_little(tmp_path, kind):
    path = tmp_path / "bad.pkl"
    path.write_bytes(bombs()[kind])
    start = time.process_time()
    with pytest.raises(ValueError, match="bad.pkl") as refused:
        read_pickle(path)
    assert time.process_time() - start < 3
    assert len(str(refused.value)) < len(str(path)) + 200


def test_what_other_programs_share_within_a_file_is_read(tmp_path):
    """As `pickle.dumps` refers back to strings, tuples, arrays and whole dicts."""
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    window = {"origin_mm": [1.0, 2.0], "size": (2, 3), "array": array}
    rows = [dict.fromkeys((f"key{i}" for i in range(20)), window) for _ in range(20)]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(rows))
    again = read_pickle(tmp_path / "a.pkl")
    assert again[19]["key19"]["origin_mm"] == [1.0, 2.0]
    assert np.array_equal(again[19]["key19"]["array"], array)


def test_memory_that_runs_out_is_not_called_damage(tmp_path, monkeypatch):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1]))

    def out_of_memory(value):
        raise MemoryError

    monkeypatch.setattr("multipass.data.safe_pickle._plain", out_of_memory)
    with pytest.raises(MemoryError):
        read_pickle(tmp_path / "a.pkl")
