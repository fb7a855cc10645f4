"""Patient files: round trips and the joined dataset."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from multipass.data.case import Case
from multipass.data.levels import make_levels
from multipass.data.patient_files import (
    read_dataset,
    read_patient,
    write_complete_dataset,
    write_patient,
)
from multipass.data.scan import read_scan
from multipass.files import replacing
from multipass.geometry.volume import IDENTITY, Grid, Volume
from multipass.geometry.windows import GRID_SIZE
from multipass.structures import PELVIS, Structure


def view(generator, count: int) -> dict:
    return {
        "image": generator.random(GRID_SIZE).astype(np.float16),
        "label": generator.integers(0, count + 1, GRID_SIZE, np.uint8),
        "fractions": generator.integers(0, 255, (count, *GRID_SIZE), np.uint8),
        "window": {"origin_mm": [1.0, 2.0, 3.0], "spacing_mm": [2.0, 2.0, 3.5]},
    }


def levels(generator, count: int) -> list[dict]:
    grid = Grid((9, 8, 7), (20.0, 20.0, 40.0), (10.0, 10.0, 20.0))
    volume = Volume(generator.integers(-1000, 1000, grid.size).astype(np.int16), grid)

    def fractions(target: Grid) -> np.ndarray:
        return generator.integers(0, 255 // count, (count, *target.size)).astype(np.uint8)

    return [level.to_dict() for level in make_levels(volume, fractions, grid.box_mm())]


def make_patient(name: str, structures=PELVIS, seed: int = 0) -> dict:
    generator = np.random.default_rng(seed)
    return {
        "format": 2,
        "patient_id": name,
        "structures": [{**s.to_dict(), "status": "complete"} for s in structures],
        **view(generator, len(structures)),
        "scan": view(generator, len(structures)),
        "body_mm": [[0.0, 0.0, 0.0], [200.0, 150.0, 300.0]],
        "levels": levels(generator, len(structures)),
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


@pytest.mark.parametrize(
    "change", ["shape", "dtype", "status", "window", "format", "missing", "level", "body", "name"]
)
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
    elif change == "name":
        patient["patient_id"] = ("P",)
    elif change == "format":
        patient["format"] = 3
    elif change == "level":
        patient["levels"][1]["image"]["shape"][0] += 1
    elif change == "body":
        patient["body_mm"] = [[0.0, 0.0, 0.0], [1.0, 1.0, -1.0]]
    else:
        del patient["scan"]
    write_patient(tmp_path / "p.pkl", patient)
    with pytest.raises(ValueError, match="not a patient file"):
        read_patient(tmp_path / "p.pkl")


def test_a_grid_that_is_none_is_refused(tmp_path):
    """The scan of a patient file lies where `source` says."""
    patient, path = make_patient("P"), tmp_path / "P.pkl"
    source = {"size": [24, 20, 9], "spacing_mm": [2.0, 2.0, 3.0], "origin_mm": [0.0, 0.0, 0.0]}
    source["direction"] = list(IDENTITY)
    write_patient(path, {**patient, "source": source})
    assert read_scan(Case("P", path)).grid.size == (24, 20, 9)
    wrong = [{"size": [24, 20]}, {"size": [24, 20, 0]}, {"size": [10**6, 10**6, 10]}]
    wrong += [{"spacing_mm": [1.0, -1.0, 1.0]}, {"origin_mm": [0.0, float("nan"), 0.0]}]
    wrong += [{"direction": [1.0, 0.0, 0.0] * 3}, {"direction": None}, {"direction": [1.0] * 4}]
    for other in (None, (source,), *({**source, **change} for change in wrong)):
        write_patient(path, {**patient, "source": other})
        with pytest.raises(ValueError, match="does not say in 'source' which grid its scan has"):
            read_scan(Case("P", path))


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_format_1_is_to_be_made_again(tmp_path):
    write_patient(tmp_path / "p.pkl", make_patient("P") | {"format": 1})
    with pytest.raises(ValueError, match=r"run processing\.py again"):
        read_patient(tmp_path / "p.pkl")
