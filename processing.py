"""DICOM CT and DICOM SEG to 128 x 128 x 72 volumes that `training.py` learns from.

    python processing.py                             # ctpel/ -> processed_files/
    python processing.py --input DIR --output DIR --jobs 4

Each patient is `INPUT/Patient_XX/im_1/` (the CT, one DICOM file a slice) and `.../im_3/` (the
DICOM SEG or RT Structure Set). For each, `OUTPUT/Patient_XX.pkl` is written, then
`complete_dataset.pkl` of them all, `processing_report.csv` and the contact sheet
`processing_report.png`. A second run does only what is missing or changed, and removes the files of
patients whose folders are gone; one output holds one input's patients. The exit code is 0 only if
every patient was processed.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from multipass import startup

startup.settle(__name__)

import SimpleITK as sitk
from tqdm import tqdm

from multipass.claims import claimed
from multipass.data.patient_files import (
    DATASET_NAME,
    read_patient,
    write_complete_dataset,
    write_patient,
)
from multipass.data.prepare import patient_name, prepare_patient
from multipass.data.records import Record, fingerprint_of, withdrawn
from multipass.files import replacing
from multipass.results.pictures import SheetEntry, cohort_sheet, sheet_entry
from multipass.site_rules import read_rules
from multipass.terminal import one_sentence, options_of, short
from multipass.workers import cluster, each_done, processes

ROOT = Path(__file__).resolve().parent
REPORT_COLUMNS = (
    *("patient", "outcome", "reason", "position", "size", "spacing_mm", "structures", "notes"),
    *("series_uid", "seconds"),
)


@dataclass(frozen=True)
class Options:
    """DICOM CT and SEG to patient files."""

    input: Annotated[Path, short("-i")] = ROOT / "ctpel"
    """Folder of patients."""
    output: Annotated[Path, short("-o")] = ROOT / "processed_files"
    """Where the patient files go; made if it is missing."""
    jobs: int = field(default_factory=lambda: min(os.cpu_count() or 1, 8))
    """Patients processed at the same time; each takes up to 1.5 GB of memory."""
    series: str | None = None
    """SeriesInstanceUID of the CT to take where a patient has it, whatever the rules say."""
    structures: Path | None = None
    """JSON file of a site's own segment names, see docs/data.md."""
    cluster: str | None = None
    """Address of a Dask scheduler, tcp://host:8786: its workers process the patients."""


def main(options: Options) -> int:
    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: at least 1.")
    read_rules(options.structures)
    if options.cluster:  # whose workers run in other folders
        source, output = options.input.absolute(), options.output.absolute()
        rules_path = options.structures and options.structures.absolute()
        options = replace(options, input=source, output=output, structures=rules_path)
    folders = patient_folders(options.input)
    with claimed(options.output):
        return make_cohort(folders, options)


def make_cohort(folders: list[Path], options: Options) -> int:
    """Processes all patients, writes what the cohort has in common, and says what is missing."""
    print(f"{len(folders)} patients in {options.input}, writing to {options.output}")
    gone = withdrawn(map(patient_name, folders), options.input, options.output)
    rows = []
    for row in tqdm(process_all(folders, options), total=len(folders), unit="patient"):
        tqdm.write(line_of(row))
        rows.append(row)
    rows.sort(key=lambda row: row["patient"])
    done = [row for row in rows if row["outcome"] == "processed"]
    failed = [row for row in rows if row["outcome"] != "processed"]
    problems = [f"Not processed: {row['patient']}: {row['reason']}" for row in failed]
    problems += write_dataset(done, options.output, keep_earlier=not gone)
    for record in gone:
        record.remove()
    if gone:
        names = ", ".join(record.target.stem for record in gone)
        print(f"Not in {options.input} any more, patient files removed: {names}")
    problems += write_report(rows, options.output)
    if options.series and options.series not in {row.get("series_uid") for row in rows}:
        problems.append(f"No patient has a usable CT series {options.series}.")
    print(*problems, sep="\n", end="\n" * bool(problems), file=sys.stderr)
    print(f"Processed {len(done)} of {len(rows)} patients.")
    return 1 if problems else 0


def patient_folders(root: Path) -> list[Path]:
    """The patients' folders, in order of name.

    Raises:
        ValueError: there is none, or two have one name.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    folders = [folder for folder in folders if not folder.name.startswith(".")]
    if not folders:
        missing = "" if root.is_dir() else ", which is no folder"
        raise ValueError(
            f"No patients in {root}{missing}: put them there as Patient_XX/im_1 (CT) and "
            "Patient_XX/im_3 (SEG). The CTPEL collection is given out by AIDA Data Hub, doi "
            "10.23698/aida/ctpel; `make demo` needs no data."
        )
    names = Counter(map(patient_name, folders))
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"two folders in {root} have the name {twice[0]}: rename one of them")
    return folders


def process_all(folders: list[Path], options: Options) -> Iterator[dict]:
    """The report's rows, as patients are done."""
    changed = []
    for folder in folders:
        record = Record.of(patient_name(folder), options.input, options.output)
        if (earlier := record.row_if_unchanged(fingerprint(folder, options))) is not None:
            yield earlier
        else:
            changed.append(folder)
    jobs = min(options.jobs, max(1, len(changed)))
    workers = partial(cluster, options.cluster) if options.cluster else partial(processes, jobs)
    work = partial(process, options=options, is_alone=jobs == 1 and not options.cluster)
    for folder, done in each_done(work, changed, workers):
        yield failed_row(patient_name(folder), done) if isinstance(done, Exception) else done


def process(folder: Path, options: Options, is_alone: bool) -> dict:
    """One patient: read, write its file, keep its row of the report; or the reason why not."""
    if not is_alone:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    start = time.perf_counter()
    name = patient_name(folder)
    record = Record.of(name, options.input, options.output)
    try:
        if record.target.name == DATASET_NAME:
            raise ValueError(f"the folder of a patient cannot have the name {name}")
        made_from = fingerprint(folder, options)
        rules = read_rules(options.structures)
        patient, facts = prepare_patient(folder, options.input, options.series, rules)
        record.write("", {})  # until the file and its row are both there
        write_patient(record.target, patient)
        row = {"patient": name, "outcome": "processed", "reason": "", **facts}
        row["seconds"] = round(time.perf_counter() - start, 1)
        record.write(made_from, row)
    except Exception as error:  # whatever it is, it must not stop the cohort
        row = failed_row(name, error)
        row["seconds"] = round(time.perf_counter() - start, 1)
        if record.target.exists() and record.target.name != DATASET_NAME:
            row["reason"] += "; its earlier file stays, outside the dataset"
    return row


def failed_row(name: str, error: Exception) -> dict:
    return {"patient": name, "outcome": "failed", "reason": one_sentence(error)}


def fingerprint(folder: Path, options: Options) -> str:
    rules = options.structures.read_bytes() if options.structures else b""
    return fingerprint_of(folder, options.series, rules)


def line_of(row: dict) -> str:
    if row["outcome"] != "processed":
        return f"{row['patient']}: NOT processed: {row['reason']}"
    notes = f" ({row['notes']})" if row["notes"] else ""
    return f"{row['patient']}: {row['size']} at {row['spacing_mm']} mm, {row['seconds']} s{notes}"


def write_dataset(done: list[dict], output: Path, keep_earlier: bool) -> list[str]:
    """Joins the patient files of this run; returns what went wrong.

    Args:
        keep_earlier: where this cannot be done; else the dataset of an earlier run is removed.
    """
    problems: list[str] = []
    dataset = output / DATASET_NAME
    with told(problems, DATASET_NAME):
        if not done:
            raise ValueError("no patient was processed")
        write_complete_dataset(output, [output / f"{row['patient']}.pkl" for row in done])
        print(f"{len(done)} patients in {dataset} ({dataset.stat().st_size / 1e6:.0f} MB)")
    if problems and not keep_earlier:
        dataset.unlink(missing_ok=True)
    elif problems and dataset.exists():
        problems[0] += "; that of an earlier run stays"
    return problems


def write_report(rows: list[dict], output: Path) -> list[str]:
    """`processing_report.csv` and the contact sheet; returns what went wrong."""
    problems: list[str] = []
    with (
        told(problems, "processing_report.csv"),
        replacing(output / "processing_report.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8-sig", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, REPORT_COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    with told(problems, "processing_report.png"):
        cohort_sheet(output / "processing_report.png", sheet_entries(rows, output))
    return problems


@contextmanager
def told(problems: list[str], name: str) -> Iterator[None]:
    """Adds a sentence to `problems` if a file cannot be written; the others are written still."""
    try:
        yield
    except Exception as error:
        problems.append(f"{name} was not written: {one_sentence(error)}")


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
    stopped = "Stopped. Finished patients are kept; run again for the rest."
    startup.finish(main, options_of(Options, __doc__, "--input"), stopped)
