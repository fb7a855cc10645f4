"""What benchmarks share: networks scored on scans' own grids, their rows and tables."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # before this folder, which has a training.py, too

from multipass.claims import claimed_otherwise  # noqa: E402
from multipass.data.case import Case  # noqa: E402
from multipass.data.scan import read_scan  # noqa: E402
from multipass.data.scans import find_cases  # noqa: E402
from multipass.evaluation.metrics import compare  # noqa: E402
from multipass.evaluation.scoring import reference_labels, upright_labels  # noqa: E402
from multipass.evaluation.tables import markdown, mean_with_interval  # noqa: E402
from multipass.files import replacing, sha256_of  # noqa: E402
from multipass.geometry.labelmaps import LEAST_PART_MM3  # noqa: E402
from multipass.geometry.volume import Volume  # noqa: E402
from multipass.model.checkpoint import Model  # noqa: E402
from multipass.model.maps import PassResult, bone_labels  # noqa: E402
from multipass.model.passes import look_through, segment  # noqa: E402
from multipass.model.sides import on_own_sides  # noqa: E402
from multipass.structures import Structure  # noqa: E402

KEY = ("arm", "seed", "patient", "output")


def outputs(model: Model, volume: Volume) -> Iterator[tuple[str, PassResult]]:
    """All that is compared of one network on one scan: its passes, a third one, and the second
    without the first one's map."""
    results = segment(model, volume, 3 if len(model.windows) > 1 else 1)
    yield from ((f"pass {k}", result) for k, result in enumerate(results, start=1))
    if len(model.windows) > 1:
        alone = look_through(model, volume, results[1].windows, None, [])
        yield "blank context", on_own_sides(alone, model.structures)


def score(
    result: PassResult,
    volume: Volume,
    reference: tuple,
    structures: Sequence[Structure],
    least_part_mm3: float = LEAST_PART_MM3,
) -> list[dict[str, Any]]:
    labels, statuses = reference
    names = [structure.name for structure in structures]
    found = bone_labels(result, volume.grid, least_part_mm3)
    return compare(found, labels, volume.grid.spacing_mm, names, statuses)


def reference_scans(
    folder: Path, structures: Sequence[Structure]
) -> Iterator[tuple[str, Volume, tuple[np.ndarray, list[str]]]]:
    """Name, upright CT and reference of each patient."""
    with ExitStack() as stack:
        cases = find_cases(folder, stack).cases
        if not cases:
            raise ValueError(f"{folder}: no scans to test on.")
        for case in cases:
            yield case.name, *read_test_scan(case, structures)


def read_test_scan(
    case: Case, structures: Sequence[Structure]
) -> tuple[Volume, tuple[np.ndarray, list[str]]]:
    """Upright CT and reference."""
    if case.series is None:
        raise ValueError(f"{case.name}: DICOM series are needed to test on.")
    scan = read_scan(case)
    reference = reference_labels(case, scan, structures)
    if reference is None:
        raise ValueError(f"{case.name}: no reference beside this scan to test on.")
    labels, statuses = reference
    return scan.upright, (upright_labels(labels, scan.grid), statuses)


def scans_sha256(folder: Path) -> str:
    """Hash of all files below a folder."""
    return sha256_of(sorted(path for path in folder.rglob("*") if path.is_file()))


def claim(folder: Path, facts: dict[str, Any]) -> None:
    """Marks a folder as holding results of these facts; finished parts of others are not mixed in.

    Raises:
        ValueError: it holds results of something else.
    """
    if differing := claimed_otherwise(folder / "facts.json", facts):
        key, value = differing
        raise ValueError(
            f"{folder} holds results with {key} = {value}, not {facts.get(key)}; give another "
            "--output."
        )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def by_patient(rows: list[dict[str, str]], metric: str) -> dict[tuple[str, str], dict[str, float]]:
    """{(arm, output): {patient: mean over structures and seeds}}; what has no value is left out."""
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        of_arm = values.setdefault((row["arm"], row["output"]), {})
        of_arm.setdefault(row["patient"], []).append(float(row[metric]))
    return {
        key: {patient: float(np.nanmean(v)) for patient, v in patients.items()}
        for key, patients in values.items()
    }


def table(rows: list[dict[str, str]], pairs: Sequence[tuple]) -> list[str]:
    """Markdown: means, then paired differences, with 95 % intervals over patients."""
    return [*means(rows), "", *differences(rows, pairs)]


def means(rows: list[dict[str, str]]) -> list[str]:
    dice, hd95 = by_patient(rows, "dice"), by_patient(rows, "hd95_mm")
    outcomes = Counter((row["arm"], row["output"], row["outcome"]) for row in rows)
    lines = [["network", "output", "Dice", "worst patient", "HD95 mm", "missed, false"]]
    for key in dice:
        worst = min(dice[key].values())
        cells = [*key, over_patients(dice[key], rows, 4), f"{worst:.3f}"]
        cells += [over_patients(hd95[key], rows, 1)]
        lines.append([*cells, f"{outcomes[(*key, 'missed')]}, {outcomes[(*key, 'false alarm')]}"])
    return markdown(lines)


def differences(rows: list[dict[str, str]], pairs: Sequence[tuple]) -> list[str]:
    """One (arm, output) of a pair minus the other, where there are rows of both, and the number of
    patients with a higher Dice."""
    there = {(row["arm"], row["output"]) for row in rows}
    lines = [["difference", "Dice", "HD95 mm", "Dice higher in"]]
    for one, other in pairs:
        if one in there and other in there:
            text = f"{', '.join(one)} - {', '.join(other)}"
            dice, hd95 = (paired(rows, metric, one, other) for metric in ("dice", "hd95_mm"))
            cells = [text, over_patients(dice, rows, 4), over_patients(hd95, rows, 1)]
            lines.append([*cells, f"{sum(v > 0 for v in dice.values())} of {len(dice)}"])
    return markdown(lines)


def paired(
    rows: list[dict[str, str]], metric: str, one: tuple[str, str], other: tuple[str, str]
) -> dict[str, float]:
    """Each patient's difference: the mean over the seeds and structures that have a value on both
    sides, so that a bone which one side misses does not better that side's distance."""
    values: dict[tuple[str, str], dict[tuple, float]] = {one: {}, other: {}}
    for row in rows:
        if (row["arm"], row["output"]) in values:
            place = row["patient"], row["seed"], row["structure"]
            values[row["arm"], row["output"]][place] = float(row[metric])
    differences: dict[str, list[float]] = {}
    for place, value in values[one].items():
        difference = value - values[other].get(place, np.nan)
        if np.isfinite(difference):
            differences.setdefault(place[0], []).append(difference)
    return {patient: float(np.mean(values)) for patient, values in differences.items()}


def over_patients(values: dict[str, float], rows: Sequence[dict[str, Any]], digits: int) -> str:
    """The mean and its 95 % interval; patients whose rows name one group, as the anatomy that they
    share, are drawn together."""
    groups = {row["patient"]: row.get("group") or row["patient"] for row in rows}
    return mean_with_interval(values.values(), digits, [groups[patient] for patient in values])


def read_rows(paths: Sequence[Path]) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for path in paths:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows += csv.DictReader(file)
    return rows


def report(output: Path, rows: list[dict[str, str]], lines: list[str]) -> None:
    """Writes rows.csv and table.md, and prints the table."""
    write_rows(output / "rows.csv", rows)
    (output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
