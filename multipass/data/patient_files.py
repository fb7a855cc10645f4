"""Patient files: what `processing.py` writes and `training.py` reads, and how to read them safely.

A patient file is a pickled plain dict, `complete_dataset.pkl` holds all of them:

    format, patient_id, structures, source
    image, label, fractions, window     of the pelvis box and a guard around it
    scan     {image, label, fractions, window}: of the whole scan
    parts    [the same, ...]: where that box is too tall for one of the later passes' windows, it in
             finer slices, cut into volumes that lie end to end, foot to head; else []
    elsewhere [the same, ...]: of the scan's other windows, where it is too tall for one; else []

image: float16 (128, 128, 72) in [0, 1]; label: uint8; fractions: uint8 (K, 128, 128, 72), of 255;
window: origin_mm, spacing_mm. Files without 'parts' or 'elsewhere', as older versions wrote them,
are read, too.

Neither is read with `pickle.load`: a pickle can name any function, and the reader here admits only
the few that rebuild numpy arrays of numbers.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from multipass.files import replacing
from multipass.geometry.volume import Grid, floats3
from multipass.geometry.windows import GRID_SIZE
from multipass.structures import Structure, ordered

FORMAT = 1
DATASET_NAME = "complete_dataset.pkl"
STATUSES = ("complete", "cut", "empty", "absent")
# Kinds of numpy numbers: bool, signed, unsigned, float. No objects, no strings, no records.
NUMBER_KINDS = "biuf"
# A patient's pickle has under a thousand opcodes; memo slots far beyond exist only in attacks that
# make the unpickler reserve memory.
MAX_MEMO = 1 << 20

# ---------------------------------------------------------------- safe reading


class _Dtype:
    """Stands for numpy.dtype while unpickling; becomes a dtype only if it is one of numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        dtype = np.dtype(code) if isinstance(code, str) and "," not in code else np.dtype("O")
        if dtype.kind not in NUMBER_KINDS or dtype.shape:
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of numbers")
        self.dtype = dtype

    def __setstate__(self, state: tuple) -> None:
        if len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it holds an array of records, not of numbers")
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array(np.ndarray):
    """Stands for numpy.ndarray while unpickling, for arrays saved by `_reconstruct` and a state."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        array = _from_buffer(raw, dtype, shape, "F" if fortran else "C")
        checked: Any = (1, array.shape, array.dtype, bool(fortran), bytes(raw))
        super().__setstate__(checked)


def _from_buffer(buffer: bytes, dtype: _Dtype, shape: tuple, order: Any) -> np.ndarray:
    return np.frombuffer(bytearray(buffer), dtype.dtype).reshape(shape, order=order)


def _reconstruct(kind: str, shape: tuple, code: bytes) -> np.ndarray:
    if kind is not _NDARRAY or shape != (0,):
        raise pickle.UnpicklingError("it rebuilds something else than a numpy array")
    return np.ndarray.__new__(_Array, (0,), np.uint8)


# What `_reconstruct` is told to make; not the class itself, which a pickle could call.
_NDARRAY = "numpy.ndarray"
_ADMITTED = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _NDARRAY,
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in ("numpy._core", "numpy.core")},
    **{
        (f"{core}.multiarray", "_reconstruct"): _reconstruct
        for core in ("numpy._core", "numpy.core")
    },
}


class _NumbersOnlyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside itself")


def read_pickle(path: Path) -> Any:
    """Read a pickle of builtins and numpy arrays of numbers, and nothing else.

    Raises:
        ValueError: the file is damaged, or would run code (the function is named).
        OSError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            _check_opcodes(file)
            file.seek(0)
            return _plain(_NumbersOnlyUnpickler(file).load())
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused, {error}") from None
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a patient file or damaged ({reason})") from None


def _check_opcodes(file: io.BufferedReader) -> None:
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("LONG_BINPUT", "PUT") and int(argument or 0) > MAX_MEMO:
            raise pickle.UnpicklingError("it reserves an absurd amount of memory")


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.view(np.ndarray)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


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
        index = json.loads(_index(dataset).read_text(encoding="utf-8"))
        files = [dataset.parent / name for name in index["files"]]
        whole = index["bytes"] == dataset.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return files if whole and all(file.is_file() for file in files) else []


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
    """Raise unless `patient` has the shapes, dtypes and statuses of format 1."""
    if not isinstance(patient, dict) or patient.get("format") != FORMAT:
        raise ValueError(f"it does not say 'format': {FORMAT}")
    rows = patient["structures"]
    for row in rows:
        Structure.from_dict(row)
        if row["status"] not in STATUSES:
            raise ValueError(f"structure status {row['status']!r}")
    others = patient.get("parts", []) + patient.get("elsewhere", [])
    for view in (patient, patient["scan"], *others):
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


def window_of(view: dict) -> Grid:
    """The window of a patient (its pelvis crop), of patient['scan'] or of one of its parts."""
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
