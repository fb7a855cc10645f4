"""The data side of training: the patients of a cohort, its channels, splits, and samples.

Patients are read when they are needed. `complete_dataset.pkl` is held in memory where it is small
enough or comes alone; else, and for a folder, each patient comes from its own file, so that memory
does not grow with the cohort.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multipass.data.levels import WHOLE_SHARE, Level
from multipass.data.patient_files import (
    DATASET_NAME,
    joined_files,
    read_dataset,
    read_patient,
    recorded_files,
)
from multipass.files import sha256_of
from multipass.structures import OTHER_BONE, Key, Structure, has_both_sides, ordered

# A larger complete_dataset.pkl is left alone and the patient files beside it are streamed.
MAX_IN_MEMORY_BYTES = 1 << 30
POINTS = 2000  # voxels of bone, evenly through their list, that say where they are


@dataclass(frozen=True)
class Sample:
    """One patient in the cohort's channels.

    Attributes:
        levels: finest first.
        rows: for each channel 1 + the row of the patient's structures, 0 where it has none.
        known: (C,) False where the structure is absent from the patient's annotation.
        body_mm: (2, 3) edges of the body's box.
        points_mm: (P, 3) places of bone of the cohort's structures.
    """

    patient_id: str
    levels: list[Level]
    rows: list[int]
    known: np.ndarray
    body_mm: np.ndarray
    points_mm: np.ndarray


class Cohort:
    """Patients by id, in sorted order, and the structures that any of them has.

    Attributes:
        structures: what a network finds.
        extra: bone of no structure, where a patient has it annotated: known in training alone.
        shown: the keys of the structures that lie in each patient, by patient id.
        left_out: patient files of the folder that its record does not name.
    """

    def __init__(self, path: Path) -> None:
        """Opens `complete_dataset.pkl` or a folder of patient files.

        Raises:
            ValueError: there is no such data, or it is damaged.
        """
        self.path = path
        self._held: dict[str, dict] = {}
        self._files: dict[str, Path] = {}
        self.shown: dict[str, set[Key]] = {}
        if not path.exists():
            raise ValueError(f"{path}: no such data. Run `python processing.py` first.")
        present: list[Structure] = []
        files, self.left_out = _streamed(path)
        for file in files:
            patient = read_patient(file)
            patient_id = patient["patient_id"]
            if other := self._files.get(patient_id):
                raise ValueError(f"{other} and {file.name} are of one patient, {patient_id}.")
            self._files[patient_id] = file
            self.shown[patient_id] = _shown(patient)
            present += _annotated(patient)
        if not self._files and path.is_file():
            self._held = read_dataset(path)["patients"]
            present = [s for patient in self._held.values() for s in _annotated(patient)]
            self.shown = {i: _shown(patient) for i, patient in self._held.items()}
        self.ids = sorted(self._held or self._files)
        if not self.ids:
            raise ValueError(f"{path}: no patients in it. Run `python processing.py` first.")
        annotated = ordered(present)
        self.structures = [s for s in annotated if s.key != OTHER_BONE.key]
        self.extra = [s for s in annotated if s.key == OTHER_BONE.key]
        if not self.structures:
            raise ValueError(f"{path}: no patient has an annotated structure.")

    def grow(self) -> list[str]:
        """Takes in what has appeared in the folder of patient files since it was opened, unread;
        returns the new patients' ids, their files' names. Structures stay those of the first."""
        new = []
        known = set(self._files.values())
        for file in _streamed(self.path)[0]:
            if file not in known:
                self._files[file.stem] = file
                new.append(file.stem)
        self.ids = sorted([*self.ids, *new])
        return new

    def patient(self, patient_id: str) -> dict:
        """The patient file's dict, read anew unless the cohort is held in memory."""
        if self._held:
            return self._held[patient_id]
        return read_patient(self._files[patient_id])

    @property
    def channels(self) -> list[Structure]:
        """What a sample's targets hold: the structures, then what is known in training alone."""
        return self.structures + self.extra

    def sha256(self) -> str:
        """Hash of what training reads."""
        return sha256_of(self._files.values() or [self.path])

    @property
    def mirror_allowed(self) -> bool:
        """Whether every structure of one side has its partner on the other."""
        return has_both_sides(self.structures)

    def split(self, folds: int, fold: int) -> tuple[list[str], list[str]]:
        """Training and validation patients of one fold: each patient validates in one fold.

        Folds are stretches of the patients in the order of their ids' hashes: a patient more or
        less moves at most one patient from each fold into the next.

        Raises:
            ValueError: fewer patients than folds, or no such fold.
        """
        if not 0 <= fold < folds:
            raise ValueError(f"--fold {fold}: there are folds 0 to {folds - 1}.")
        if folds < 2 or len(self.ids) < folds:
            raise ValueError(
                f"{self.path}: {len(self.ids)} patients cannot be split into {folds} folds; "
                "at least 2 folds and as many patients as folds are needed."
            )
        by_hash = sorted(
            self.ids, key=lambda i: hashlib.sha256(i.encode(errors="surrogateescape")).hexdigest()
        )
        first, last = (math.ceil(len(by_hash) * k / folds) for k in (fold, fold + 1))
        validation = sorted(by_hash[first:last])
        return [i for i in self.ids if i not in validation], validation

    def sample(self, patient_id: str) -> Sample:
        """One patient in the cohort's channels; its blocks stay packed."""
        patient = self.patient(patient_id)
        rows = patient["structures"]
        index = {tuple(r["code"]): i for i, r in enumerate(rows, 1) if r["status"] != "absent"}
        of_channels = [index.get(structure.key, 0) for structure in self.channels]
        levels = [Level.from_dict(row) for row in patient["levels"]]
        return Sample(
            patient_id=patient_id,
            levels=levels,
            rows=of_channels,
            known=np.array([row > 0 for row in of_channels]),
            body_mm=np.asarray(patient["body_mm"], float),
            points_mm=_bone_points(levels[-1], of_channels[: len(self.structures)]),
        )


def _streamed(path: Path) -> tuple[list[Path], list[Path]]:
    """Patient files to read one by one: the folder's, or those that too large a dataset joins; and
    those of the folder that its record does not name, as of a patient who was withdrawn."""
    if path.is_dir():
        there = sorted(file for file in path.glob("*.pkl") if file.name != DATASET_NAME)
        named = recorded_files(path)
        return (there, []) if named is None else (named, [f for f in there if f not in named])
    if path.stat().st_size <= MAX_IN_MEMORY_BYTES:
        return [], []
    return joined_files(path), []


def _annotated(patient: dict) -> list[Structure]:
    return [Structure.from_dict(r) for r in patient["structures"] if r["status"] != "absent"]


def _shown(patient: dict) -> set[Key]:
    rows = [row for row in patient["structures"] if row["status"] in ("complete", "cut")]
    return {Structure.from_dict(row).key for row in rows}


def _bone_points(level: Level, rows: Sequence[int]) -> np.ndarray:
    """Centres of a level's voxels that hold most of one of these rows' structures."""
    label, share = level.shares()[0]
    bone = np.isin(label, [row for row in rows if row])
    if share is not None:
        bone &= share > WHOLE_SHARE // 2
    inside = np.argwhere(bone)
    inside = inside[:: max(1, len(inside) // POINTS)]
    return np.asarray(level.grid.origin_mm) + inside * np.asarray(level.grid.spacing_mm)
