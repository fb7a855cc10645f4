"""The scores that a training ends with: its validation patients on their scans' own grids.

A patient's scan and SEG are found through the `source` of its patient file, then read, segmented
and scored as inference does it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from multipass.data.case import Case
from multipass.data.cohort import Cohort
from multipass.data.prepare import find_images
from multipass.data.scan import read_scan
from multipass.dicom.choice import choose
from multipass.dicom.headers import short
from multipass.evaluation.metrics import METRICS
from multipass.evaluation.scoring import score
from multipass.evaluation.tables import score_lines, write_summary
from multipass.files import replacing
from multipass.model.checkpoint import Model
from multipass.model.maps import bone_labels
from multipass.model.passes import precision, segment
from multipass.model.way_back import own_grid_labels
from multipass.structures import Identify, by_codes
from multipass.training.validation import Validation, patient_dice


@dataclass(frozen=True)
class Scores:
    """Scores of patients and what to say of them.

    Attributes:
        name: 'native', on the scans' own grids, or 'grid', on the windows'.
        title: a sentence.
        rows: one a patient, pass and structure, as `write_summary` takes them.
        failed: patients without scores on their own grid, and why.
    """

    name: str
    title: str
    rows: list[dict[str, Any]]
    failed: list[tuple[str, str]]

    def lines(self) -> list[str]:
        missing = [f"Not scored: {name}: {reason}" for name, reason in self.failed]
        return [self.title, *score_lines(self.rows), *missing]

    def write(self, folder: Path) -> None:
        """Writes native.csv and native.txt, or grid.csv and grid.txt."""
        write_summary(folder / f"{self.name}.csv", self.rows)
        with replacing(folder / f"{self.name}.txt") as temporary:
            temporary.write_text("\n".join(self.lines()) + "\n", encoding="utf-8")


def final_scores(
    model: Model, cohort: Cohort, ids: Sequence[str], dicom_dir: Path, rules: Identify = by_codes
) -> Scores:
    """Scores every pass on the scans' own grids, or on the windows' where no scan can be scored.

    Args:
        dicom_dir: the cohort's folder, as it was given to processing.py.
        rules: of the SEG's segments, as in processing.py.
    """
    start = time.monotonic()
    rows, failed = _native_rows(model, cohort, ids, dicom_dir, rules)
    if rows:
        count, seconds = len(ids) - len(failed), time.monotonic() - start
        title = f"{count} validation patients on the scans' own grids ({seconds:.0f} s):"
        return Scores("native", title, rows, failed)
    title = (
        f"No scan of a validation patient in {dicom_dir} (--dicom) was scored; "
        f"{len(ids)} patients on the windows' 128 x 128 x 72 grids:"
    )
    return Scores("grid", title, _grid_rows(model, cohort, ids), failed)


def _native_rows(
    model: Model, cohort: Cohort, ids: Sequence[str], dicom_dir: Path, rules: Identify
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Rows, and failures; neither where no patient has a folder."""
    rows: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    sources = {i: cohort.patient(i).get("source") or {} for i in ids}
    if not any(s.get("path") and (dicom_dir / s["path"]).is_dir() for s in sources.values()):
        return rows, failed
    for patient_id, source in tqdm(sources.items(), "native grid", leave=False, unit="patient"):
        try:
            rows += _score_scan(find_case(patient_id, source, dicom_dir), model, rules)
        except (ValueError, OSError) as error:
            failed.append((patient_id, str(error)))
        except Exception as error:  # a fault of ours must not stop the others
            failed.append((patient_id, f"unexpected {type(error).__name__}: {short(error)}"))
    return rows, failed


def find_case(patient_id: str, source: Mapping[str, Any], dicom_dir: Path) -> Case:
    """The series and the SEG files that a patient file was made from.

    Raises:
        ValueError: they are not there.
    """
    if not {"path", "series_uid", "seg_uids"} <= set(source):
        raise ValueError("its patient file does not say what it was made from")
    folder = dicom_dir / source["path"]
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}")
    found = find_images(folder)
    series, _ = choose(found, source["series_uid"])
    if series.uid != source["series_uid"]:
        raise ValueError(f"{folder} does not hold its CT, series {source['series_uid']}")
    seg = tuple(header for header in found.seg if header.uid in source["seg_uids"])
    missing = set(source["seg_uids"]) - {header.uid for header in seg}
    if missing:
        raise ValueError(f"{folder} does not hold its segmentation, SEG {min(missing)}")
    return Case(patient_id, folder, series, seg)


def _score_scan(case: Case, model: Model, rules: Identify) -> list[dict[str, Any]]:
    scan = read_scan(case)
    results = segment(model, scan.upright, keep_all=True)
    labels = bone_labels(results[-1], scan.upright.grid)
    scored = score(
        case,
        scan,
        own_grid_labels(results[-1], scan.grid, labels),
        results,
        model.structures,
        volumes_ml=[None] * len(model.structures),
        rules=rules,
        every_pass=True,
    )
    if scored.problem:
        raise ValueError(scored.problem)
    return scored.rows


def _grid_rows(model: Model, cohort: Cohort, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Dice of every pass on the windows' grids, as during training."""
    device = next(model.network.parameters()).device
    amp, validation = precision(device), Validation(cohort, model.windows, device)
    rows = []
    for patient_id in ids:
        dice = patient_dice(model.network, validation, patient_id, amp)
        for number, of_pass in enumerate(dice.tolist(), start=1):
            for value, structure in enumerate(model.structures, start=1):
                row = {"case": patient_id, "pass": number, "structure": structure.name}
                row |= {"value": value, "outcome": "scored", **dict.fromkeys(METRICS, float("nan"))}
                rows.append(row | {"dice": of_pass[value - 1]})
    return rows
