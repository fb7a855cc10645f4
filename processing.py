"""DICOM CT and DICOM SEG to 128 x 128 x 72 volumes that `training.py` learns from.

    python processing.py                             # ctpel/ -> processed_files/
    python processing.py --input DIR --output DIR --jobs 4

Each patient is `INPUT/Patient_XX/im_1/` (the CT, one DICOM file a slice) and `.../im_3/` (the
DICOM SEG). For each, `OUTPUT/Patient_XX.pkl` is written, then `complete_dataset.pkl` of them all,
`processing_report.csv` and the contact sheet `processing_report.png`. A second run does only what
is missing or changed. The exit code is 0 only if every patient was processed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import SimpleITK as sitk
import tyro
from tqdm import tqdm

from multipass.data.patient_files import (
    DATASET_NAME,
    read_patient,
    write_complete_dataset,
    write_patient,
)
from multipass.data.prepare import prepare_patient
from multipass.files import code_sha256, replacing
from multipass.results.pictures import SheetEntry, cohort_sheet, sheet_entry
from multipass.structures import read_rules

ROOT = Path(__file__).resolve().parent
STATE_FOLDER = ".state"
INTERRUPTED = 130
REPORT_COLUMNS = (
    *("patient", "outcome", "reason", "position", "size", "spacing_mm", "structures", "notes"),
    *("series_uid", "seconds"),
)


@dataclass(frozen=True)
class Options:
    """DICOM CT and SEG to patient files."""

    input: Path = ROOT / "ctpel"
    """Folder of patients."""
    output: Path = ROOT / "processed_files"
    """Where the patient files go; made if it is missing."""
    jobs: int = field(default_factory=lambda: min(os.cpu_count() or 1, 8))
    """Patients processed at the same time; each takes up to 1.5 GB of memory."""
    series: str | None = None
    """SeriesInstanceUID of the CT to take where a patient has it, whatever the rules say."""
    structures: Path | None = None
    """JSON file of a site's own segment names, see README.md."""
    cluster: str | None = None
    """Address of a Dask scheduler, tcp://host:8786: its workers process the patients."""


def main(options: Options) -> int:
    folders = patient_folders(options.input)
    read_rules(options.structures)
    options.output.mkdir(parents=True, exist_ok=True)
    for leftover in options.output.glob(".*.partial"):  # of a run that was killed
        leftover.unlink()
    print(f"{len(folders)} patients in {options.input}, writing to {options.output}")
    rows = []
    for row in tqdm(process_all(folders, options), total=len(folders), unit="patient"):
        tqdm.write(line_of(row))
        rows.append(row)
    rows.sort(key=lambda row: row["patient"])
    done = [row for row in rows if row["outcome"] == "processed"]
    failed = [row for row in rows if row["outcome"] != "processed"]
    write_report(rows, options.output)
    if done:
        paths = [options.output / f"{row['patient']}.pkl" for row in done]
        dataset = write_complete_dataset(options.output, paths)
        print(f"{len(done)} patients in {dataset} ({dataset.stat().st_size / 1e6:.0f} MB)")
    else:
        (options.output / DATASET_NAME).unlink(missing_ok=True)
    unused = bool(options.series) and options.series not in {r.get("series_uid") for r in rows}
    if unused:
        print(f"No patient has a usable CT series {options.series}.", file=sys.stderr)
    for row in failed:
        print(f"Not processed: {row['patient']}: {row['reason']}", file=sys.stderr)
    print(f"Processed {len(done)} of {len(rows)} patients.")
    return 1 if failed or unused else 0


def patient_folders(root: Path) -> list[Path]:
    """The patients' folders, in order of name.

    Raises:
        ValueError: there is none.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    folders = [folder for folder in folders if not folder.name.startswith(".")]
    if not folders:
        raise ValueError(
            f"No patients in {root}: put them there as Patient_XX/im_1 (CT) and Patient_XX/im_3 "
            "(SEG). The CTPEL collection is given out by AIDA Data Hub, doi 10.23698/aida/ctpel; "
            "`make demo` needs no data."
        )
    return folders


def process_all(folders: list[Path], options: Options) -> Iterator[dict]:
    """The report's rows, as patients are done."""
    if options.cluster:
        from dask.distributed import Client

        with Client(options.cluster), joblib.parallel_config("dask"):
            yield from joblib.Parallel()(joblib.delayed(process)(f, options, 2) for f in folders)
        return
    jobs = max(1, min(options.jobs, len(folders)))
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    yield from parallel(joblib.delayed(process)(f, options, jobs) for f in folders)


def process(folder: Path, options: Options, jobs: int) -> dict:
    """One patient: read, write its file, keep its row of the report; or the reason why not."""
    if jobs > 1:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    target = options.output / f"{folder.name}.pkl"
    state = options.output / STATE_FOLDER / f"{folder.name}.json"
    fingerprint = fingerprint_of(folder, options)
    earlier = earlier_row(state, target, fingerprint)
    if earlier is not None:
        return earlier
    state.unlink(missing_ok=True)
    start = time.perf_counter()
    row: dict[str, Any] = {"patient": folder.name, "outcome": "processed", "reason": ""}
    try:
        rules = read_rules(options.structures)
        patient, facts = prepare_patient(folder, options.input, options.series, rules)
        write_patient(target, patient)
        row |= facts
    except (ValueError, OSError) as error:
        target.unlink(missing_ok=True)
        row |= {"outcome": "failed", "reason": str(error)}
    except Exception as error:  # a fault of ours must not stop the cohort
        target.unlink(missing_ok=True)
        row |= {"outcome": "failed", "reason": f"unexpected {type(error).__name__}: {error}"}
    row["seconds"] = round(time.perf_counter() - start, 1)
    if row["outcome"] == "processed":
        with replacing(state) as temporary:
            temporary.write_text(json.dumps({"fingerprint": fingerprint, "row": row}, indent=1))
    return row


def fingerprint_of(folder: Path, options: Options) -> str:
    """Changes with the patient's files (name, size, time of change), the options, the code."""
    digest = hashlib.sha256(f"{code_sha256()} {options.series}".encode())
    if options.structures:
        digest.update(options.structures.read_bytes())
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        facts = path.stat()
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def earlier_row(state: Path, target: Path, fingerprint: str) -> dict | None:
    """The row of an earlier run, if its patient file is there and nothing changed since."""
    if not (state.exists() and target.exists()):
        return None
    try:
        saved = json.loads(state.read_text())
        return saved["row"] if saved["fingerprint"] == fingerprint else None
    except (ValueError, KeyError):
        return None


def line_of(row: dict) -> str:
    if row["outcome"] != "processed":
        return f"{row['patient']}: NOT processed: {row['reason']}"
    notes = f" ({row['notes']})" if row["notes"] else ""
    return f"{row['patient']}: {row['size']} at {row['spacing_mm']} mm, {row['seconds']} s{notes}"


def write_report(rows: list[dict], output: Path) -> None:
    """`processing_report.csv` and the contact sheet."""
    with (
        replacing(output / "processing_report.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, REPORT_COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    cohort_sheet(output / "processing_report.png", sheet_entries(rows, output))


def sheet_entries(rows: list[dict], output: Path) -> Iterator[SheetEntry]:
    for row in rows:
        if row["outcome"] == "processed":
            patient = read_patient(output / f"{row['patient']}.pkl")
            cut = [s["name"] for s in patient["structures"] if s["status"] != "complete"]
            text = f"{row['size']} at {row['spacing_mm']} mm   {row['notes']}"
            yield sheet_entry(patient, f"{text}   cut: {', '.join(cut)}" if cut else text)
        else:
            yield SheetEntry(row["patient"], f"not processed: {row['reason']}", warn=True)


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
    except ValueError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("\nStopped. Finished patients are kept; run again for the rest.", file=sys.stderr)
        sys.exit(INTERRUPTED)
