"""Patient files: what `processing.py` writes and `training.py` reads.

A patient file is a pickled plain dict, `complete_dataset.pkl` holds all of them:

    format, patient_id, structures, source
    image, label, fractions, window     of the pelvis box
    scan     {image, label, fractions, window}: of the body's box, where most of the bones are
    body_mm  [[x, y, z], [x, y, z]]: the lower and the upper corner of the body's box
    levels   the scan at several resolutions, see `multipass.data.levels`

image: float16 (128, 128, 72) in [0, 1]; label: uint8; fractions: uint8 (K, 128, 128, 72), of 255;
window: origin_mm, spacing_mm. These volumes are for people and other programs; training draws its
windows from the levels.

Neither is read with `pickle.load`, which would run code that a file names: see `safe_pickle`.
"""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from multipass.data.levels import SPACINGS_MM, Level
from multipass.data.safe_pickle import read_pickle
from multipass.files import replacing
from multipass.geometry.volume import Grid, floats3
from multipass.geometry.windows import GRID_SIZE
from multipass.structures import Structure, ordered

FORMAT = 2
DATASET_NAME = "complete_dataset.pkl"
STATUSES = ("complete", "cut", "empty", "absent")

# --------------------------------------------------------------------- writing


def _pickled(value: Any) -> bytes:
    """The pickle without memo: the same value gives the same bytes, and pickles can be joined."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.fast = True
    pickler.dump(value)
    return buffer.getvalue()


def write_patient(path: Path, patient: dict) -> None:
    """Write a patient file under a temporary name, then rename it."""
    with replacing(path) as temporary:
        temporary.write_bytes(_pickled(patient))


def write_complete_dataset(folder: Path, paths: list[Path]) -> Path:
    """Join patient files, read back one at a time, to `complete_dataset.pkl`:
    {'format', 'structures', 'patients': {patient id: dict}}.

    The dict is written opcode by opcode around the patients' own pickles, so that memory holds one
    patient however many there are.
    """
    target = folder / DATASET_NAME
    structures: list[Structure] = []
    for path in paths:
        structures += [Structure.from_dict(row) for row in read_patient(path)["structures"]]
    with replacing(target) as temporary, temporary.open("wb") as file:
        file.write(pickle.PROTO + bytes([5]) + pickle.EMPTY_DICT + pickle.MARK)
        file.write(_body("format") + _body(FORMAT))
        file.write(_body("structures") + _body([s.to_dict() for s in ordered(structures)]))
        file.write(_body("patients") + pickle.EMPTY_DICT)
        for path in paths:
            patient = read_patient(path)
            file.write(_body(patient["patient_id"]) + _body(patient) + pickle.SETITEM)
        file.write(pickle.SETITEMS + pickle.STOP)
    index = {"bytes": target.stat().st_size, "files": [path.name for path in paths]}
    with replacing(_index(target)) as temporary:
        temporary.write_text(json.dumps(index), encoding="utf-8")
    return target


def _index(dataset: Path) -> Path:
    return dataset.with_name(f".{dataset.stem}.json")


def joined_files(dataset: Path) -> list[Path]:
    """The files beside a dataset that it was joined from; [] where they are not known or gone."""
    try:
        index = _read_index(dataset)
        files = [dataset.parent / name for name in index["files"]]
        whole = index["bytes"] == dataset.stat().st_size
    except (OSError, ValueError):
        return []
    return files if whole and all(file.is_file() for file in files) else []


def recorded_files(folder: Path) -> list[Path] | None:
    """The folder's patient files that its dataset was joined from; None where there is no record,
    as in a folder that was put together by hand.

    Raises:
        ValueError: one of them is gone, or the record is damaged.
    """
    dataset = folder / DATASET_NAME
    if not _index(dataset).exists():
        return None
    files = [folder / name for name in _read_index(dataset)["files"]]
    if gone := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"{folder}: {gone[0]} is gone, which {_index(dataset).name} names as one of the "
            "cohort's patients. Run `python processing.py` again."
        )
    return files


def _read_index(dataset: Path) -> dict:
    """
    Raises:
        ValueError: it is damaged.
        OSError: there is none.
    """
    path = _index(dataset)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {"bytes": int(index["bytes"]), "files": [str(name) for name in index["files"]]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: damaged. Run `python processing.py` again.") from None


def _body(value: Any) -> bytes:
    """A pickle without its protocol header (two bytes) and its final STOP."""
    return _pickled(value)[2:-1]


# --------------------------------------------------------------------- reading


def read_patient(path: Path) -> dict:
    """Read one patient file and check that it is one.

    Raises:
        ValueError: not a patient file, damaged, or it would run code.
    """
    patient = read_pickle(path)
    try:
        check_patient(patient)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path}: not a patient file, {error!r}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a patient file, {error}") from None
    return patient


def check_patient(patient: dict) -> None:
    """Raise unless `patient` has the shapes, dtypes and statuses of format 2."""
    if not isinstance(patient, dict) or patient.get("format") not in (1, FORMAT):
        raise ValueError(f"it does not say 'format': {FORMAT}")
    if patient["format"] != FORMAT:
        raise ValueError("of an older format: run processing.py again")
    if not isinstance(patient["patient_id"], str):
        raise ValueError("its patient_id is no text")
    rows = patient["structures"]
    for row in rows:
        Structure.from_dict(row)
        if row["status"] not in STATUSES:
            raise ValueError(f"structure status {row['status']!r}")
    for view in (patient, patient["scan"]):
        wanted = {
            "image": (np.float16, GRID_SIZE),
            "label": (np.uint8, GRID_SIZE),
            "fractions": (np.uint8, (len(rows), *GRID_SIZE)),
        }
        for key, (dtype, shape) in wanted.items():
            if view[key].dtype != dtype or view[key].shape != shape:
                raise ValueError(f"'{key}' is {view[key].dtype} {view[key].shape}")
        spacing = np.asarray(view["window"]["spacing_mm"], float)
        origin = np.asarray(view["window"]["origin_mm"], float)
        if spacing.shape != (3,) or origin.shape != (3,) or not (spacing > 0).all():
            raise ValueError("its window has no valid origin and spacing")
    body = np.asarray(patient["body_mm"], float)
    if body.shape != (2, 3) or not (body[1] > body[0]).all():
        raise ValueError("'body_mm' is no box")
    _check_levels(patient["levels"])


def _check_levels(rows: list) -> None:
    if [row["name"] for row in rows] != list(SPACINGS_MM):
        raise ValueError(f"its levels are not {', '.join(SPACINGS_MM)}")
    for row in rows:
        level = Level.from_dict(row)
        arrays = [(level.image, "<u2")]
        arrays += [(array, "|u1") for pair in level.parts for array in pair if array is not None]
        for array, dtype in arrays:
            if tuple(array["shape"]) != level.grid.size or array["dtype"] != dtype:
                raise ValueError(f"its level {level.name} holds {array['dtype']} {array['shape']}")
            if not all(isinstance(block, bytes) for block in array["blocks"]):
                raise ValueError(f"its level {level.name} is not packed in blocks")
        if not (np.asarray(level.grid.spacing_mm) > 0).all():
            raise ValueError(f"its level {level.name} has no valid spacing")


def window_of(view: dict) -> Grid:
    """The window of a patient (over its pelvis) or of patient['scan']."""
    return Grid(
        GRID_SIZE,
        floats3(view["window"]["spacing_mm"]),
        floats3(view["window"]["origin_mm"]),
    )


def read_dataset(path: Path) -> dict:
    """Read `complete_dataset.pkl` whole.

    Raises:
        ValueError: not a dataset, damaged, or it would run code.
    """
    dataset = read_pickle(path)
    if not isinstance(dataset, dict) or not isinstance(dataset.get("patients"), dict):
        raise ValueError(f"{path}: not a complete_dataset.pkl")
    for patient_id, patient in dataset["patients"].items():
        try:
            check_patient(patient)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path}: patient {patient_id} is damaged ({error})") from None
    return dataset
