"""Patient files: round trips, the joined dataset, and pickles that would run code."""

from __future__ import annotations

import os
import pickle
import subprocess

import numpy as np
import pytest

from multipass.data.patient_files import (
    read_dataset,
    read_patient,
    read_pickle,
    replacing,
    write_complete_dataset,
    write_patient,
)
from multipass.geometry.windows import GRID_SIZE
from multipass.structures import PELVIS, Structure


def view(generator, count: int) -> dict:
    return {
        "image": generator.random(GRID_SIZE).astype(np.float16),
        "label": generator.integers(0, count + 1, GRID_SIZE, np.uint8),
        "fractions": generator.integers(0, 255, (count, *GRID_SIZE), np.uint8),
        "window": {"origin_mm": [1.0, 2.0, 3.0], "spacing_mm": [2.0, 2.0, 3.5]},
    }


def make_patient(name: str, structures=PELVIS, seed: int = 0) -> dict:
    generator = np.random.default_rng(seed)
    return {
        "format": 1,
        "patient_id": name,
        "structures": [{**s.to_dict(), "status": "complete"} for s in structures],
        **view(generator, len(structures)),
        "scan": view(generator, len(structures)),
        "source": {"path": name, "size": [512, 512, 300]},
    }


def assert_equal(one, other) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    else:
        assert one == other


def test_round_trip_and_same_bytes(tmp_path):
    patient = make_patient("Patient_01")
    write_patient(tmp_path / "a.pkl", patient)
    again = read_patient(tmp_path / "a.pkl")
    assert_equal(patient, again)
    write_patient(tmp_path / "b.pkl", again)
    assert (tmp_path / "a.pkl").read_bytes() == (tmp_path / "b.pkl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pkl", "b.pkl"]


def test_dataset_holds_all_patients_and_any_pickle_reader_agrees(tmp_path):
    lumbar = Structure("l5 vertebra", "SCT", "49668003", "L5 vertebra", "", (1, 2, 3))
    patients = [
        make_patient("Patient_01", PELVIS[:3], 1),
        make_patient("Patient_02", [PELVIS[4], lumbar], 2),
        make_patient("Patient_03", PELVIS, 3),
    ]
    paths = [tmp_path / f"{p['patient_id']}.pkl" for p in patients]
    for path, patient in zip(paths, patients, strict=True):
        write_patient(path, patient)
    path = write_complete_dataset(tmp_path, paths)
    dataset = read_dataset(path)
    assert list(dataset) == ["format", "structures", "patients"]
    assert [s["name"] for s in dataset["structures"]] == [s.name for s in (*PELVIS, lumbar)]
    for patient in patients:
        assert_equal(dataset["patients"][patient["patient_id"]], patient)
    with path.open("rb") as file:
        assert_equal(pickle.load(file), dataset)


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
        "truncated": pickle.dumps(make_patient("P"))[:100_000],
        "no pickle": b"hello",
        "empty": b"",
    }


@pytest.mark.parametrize("kind", sorted(exploits("x")))
def test_pickles_that_would_run_code_are_refused(tmp_path, kind):
    marker = tmp_path / "owned"
    path = tmp_path / "bad.pkl"
    path.write_bytes(exploits(marker)[kind])
    with pytest.raises(ValueError, match="bad.pkl"):
        read_patient(path)
    assert not marker.exists()


def test_refusal_names_the_function(tmp_path):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(Calls(os.system, "true")))
    with pytest.raises(ValueError, match=r"would call (posix|nt)\.system"):
        read_pickle(tmp_path / "bad.pkl")


@pytest.mark.parametrize("change", ["shape", "dtype", "status", "window", "format", "missing"])
def test_wrong_patients_are_refused(tmp_path, change):
    patient = make_patient("P")
    if change == "shape":
        patient["image"] = patient["image"][:-1]
    elif change == "dtype":
        patient["scan"]["fractions"] = patient["scan"]["fractions"].astype(np.float32)
    elif change == "status":
        patient["structures"][0]["status"] = "gone"
    elif change == "window":
        patient["window"]["spacing_mm"] = [1.0, -1.0, 1.0]
    elif change == "format":
        patient["format"] = 2
    else:
        del patient["scan"]
    write_patient(tmp_path / "p.pkl", patient)
    with pytest.raises(ValueError, match="not a patient file"):
        read_patient(tmp_path / "p.pkl")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
