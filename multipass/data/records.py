"""What `processing.py` records of the patient files that it wrote: from what, and whether they
still hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from multipass.data.patient_files import read_patient
from multipass.files import code_sha256, files_below, replacing

RECORDS_DIR = ".state"


@dataclass(frozen=True)
class Record:
    """The record of one patient file, a JSON file: "input" (the cohort's folder), "fingerprint",
    "row" (of the report), "file" (size and time of change of the patient file).

    Attributes:
        target: the patient file.
        path: of the record.
        cohort_dir: the folder of patients, resolved.
    """

    target: Path
    path: Path
    cohort_dir: Path

    @classmethod
    def of(cls, name: str, cohort_dir: Path, output: Path) -> Record:
        path = output / RECORDS_DIR / f"{name}.json"
        return cls(output / f"{name}.pkl", path, cohort_dir.resolve())

    def write(self, fingerprint: str, row: dict) -> None:
        facts = {"input": str(self.cohort_dir), "fingerprint": fingerprint, "row": row}
        facts["file"] = self._file()
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")

    def read(self) -> dict:
        """{} where there is none, or a damaged one."""
        try:
            facts = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def row_if_unchanged(self, fingerprint: str) -> dict | None:
        """The row of an earlier run, if its patient file is there, whole, and nothing changed."""
        facts = self.read()
        if not facts.get("row") or facts.get("fingerprint") != fingerprint:
            return None
        try:
            if facts.get("file") != self._file():
                read_patient(self.target)
        except (ValueError, OSError):
            return None
        return facts["row"]

    def remove(self) -> None:
        """Removes the patient file and its record."""
        self.target.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def _file(self) -> list[int]:
        if not self.target.exists():
            return []
        facts = self.target.stat()
        return [facts.st_size, facts.st_mtime_ns]


def withdrawn(names: Iterable[str], cohort_dir: Path, output: Path) -> list[Record]:
    """The records of patients that are no longer in their cohort's folder.

    Args:
        names: of the patients that are in it.

    Raises:
        ValueError: the records are of another cohort.
    """
    recorded = {path.stem for path in (output / RECORDS_DIR).glob("*.json")}
    records = {name: Record.of(name, cohort_dir, output) for name in sorted(recorded)}
    for record in records.values():
        made_from = record.read().get("input", str(record.cohort_dir))
        if made_from != str(record.cohort_dir):
            raise ValueError(
                f"{output} holds the patients of {made_from}, not of {record.cohort_dir}: give "
                f"another --output, or, if that folder was moved, delete {record.path.parent}"
            )
    return [records[name] for name in sorted(recorded - set(names))]


def fingerprint_of(folder: Path, *facts: object) -> str:
    """Changes with a patient's files (name, size, time of change), the facts, and the code."""
    digest = hashlib.sha256(f"{code_sha256()} {facts}".encode())
    for path in files_below(folder):
        about = path.stat() if path.exists() else path.lstat()
        digest.update(os.fsencode(path.relative_to(folder)))
        digest.update(f" {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()
