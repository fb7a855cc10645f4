"""How good a checkpoint is on scans with references: each pass, a third one, a blank context.

    python -m multipass.phantom --anatomy DIR --part test --patients 24 --seed 900 \
        --matrix 256 --output scans
    python benchmarks/evaluate.py --test scans --output results --jobs 2
    python benchmarks/evaluate.py --test scans --output others --model other.pth --against results

Scores lie on the scans' own grids. `rows.csv` has a line for each scan, output and structure,
`table.md` the means, the paired differences, the structures and kinds of scans, with 95 % intervals
over scans.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
import tyro
from native_scores import (
    KEY,
    ROOT,
    by_patient,
    claim,
    differences,
    outputs,
    over_patients,
    read_rows,
    read_test_scan,
    report,
    scans_sha256,
    score,
    table,
    write_rows,
)

from multipass.data.case import Case
from multipass.data.scans import find_cases
from multipass.evaluation import metrics
from multipass.evaluation.tables import markdown, with_interval
from multipass.files import code_sha256, sha256_of
from multipass.geometry.labelmaps import LEAST_PART_MM3
from multipass.geometry.volume import Volume
from multipass.model import checkpoint
from multipass.model.mirrored import with_mirroring

NAME, OTHER = "multi-pass", "other results"
DIFFERENCES = [((NAME, "pass 2"), (NAME, other)) for other in ("pass 1", "blank context")] + [
    ((NAME, "pass 3"), (NAME, "pass 2"))
]
TALL_MM, METAL_HU, METAL_ML = 400.0, 2800, 0.5
KINDS = {
    "prone": "prone",
    "tall": "scan range of 400 mm and more",
    "metal": "metal",
    "cut": "hip or sacrum cut",
}
DEFAULT_MODEL = ROOT / "inference_pipeline" / "best_model.pth"


@dataclass(frozen=True)
class Options:
    test: Path
    """folder of scans, each with its reference"""
    output: Path
    model: Path = DEFAULT_MODEL
    jobs: int = 1
    """scans at the same time, a thread each"""
    tta: bool = False
    """every pass also looks at the mirrored scan, as with run_inference.py --tta"""
    least_part_mm3: float = LEAST_PART_MM3
    """smaller parts of a bone are removed, as by run_inference.py"""
    against: Path | None = None
    """results of another model on the same scans: paired differences to them are added"""


def evaluate(case: Case, options: Options) -> Path:
    """Scores one scan, unless that was done before; the file of its rows."""
    torch.set_num_threads(1)
    path = options.output / f"{case.name}.csv"
    if path.exists():
        return path
    model = checkpoint.load(options.model)
    if options.tta:
        model = with_mirroring(model)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        volume, reference = read_test_scan(case, model.structures)
        whole = [  # femurs end outside of nearly every scan
            status == "complete"
            for structure, status in zip(model.structures, reference[1], strict=True)
            if "femur" not in structure.name
        ]
        kind = kinds(case, volume, all(whole))
        for output, result in outputs(model, volume):
            key = dict(zip(KEY, (NAME, 0, case.name, output), strict=True))
            least_mm3 = options.least_part_mm3
            found = score(result, volume, reference, model.structures, least_mm3)
            rows += [key | kind | row for row in found]
    write_rows(path, rows)
    return path


def kinds(case: Case, volume: Volume, whole: bool) -> dict[str, Any]:
    """What may make a scan hard, 1 where it does; 'group': the anatomy that it shares with others,
    which the phantom writes as a comment, or else itself."""
    assert case.series is not None, "read_test_scan has refused it"
    tags = ["PatientPosition", "PatientComments"]
    first = pydicom.dcmread(case.series.slices[0].path, specific_tags=tags)
    height_mm = volume.grid.size[2] * volume.grid.spacing_mm[2]
    metal_ml = np.count_nonzero(volume.array > METAL_HU) * volume.grid.voxel_ml
    return {
        "group": str(first.get("PatientComments", "") or case.name),
        "prone": int(str(first.get("PatientPosition", "")).endswith("P")),
        "tall": int(height_mm >= TALL_MM), "metal": int(metal_ml > METAL_ML),
        "cut": int(not whole),
    }  # fmt: skip


def by_kind(rows: list[dict[str, Any]], output: str) -> list[str]:
    """Markdown: one output on the scans of each kind; a scan may be of several."""
    groups = {"all": rows} | {
        name: [row for row in rows if int(row[kind])] for kind, name in KINDS.items()
    }
    groups["none of these"] = [row for row in rows if not any(int(row[k]) for k in KINDS)]
    lines = [[f"scans, {output}", "number", "Dice", "worst scan", "HD95 mm"]]
    for name, of_kind in groups.items():
        dice, hd95 = (by_patient(of_kind, m).get((NAME, output), {}) for m in ("dice", "hd95_mm"))
        if dice:
            cells = [name, str(len(dice)), over_patients(dice, rows, 3)]
            lines.append([*cells, f"{min(dice.values()):.3f}", over_patients(hd95, rows, 1)])
    return markdown(lines)


def by_structure(rows: list[dict[str, Any]], output: str) -> list[str]:
    """Markdown: every structure in one output."""
    scored = [
        row | {"pass": 0, "case": row["patient"]} | {m: float(row[m]) for m in metrics.METRICS}
        for row in rows
        if row["output"] == output
    ]
    headings = ["Dice", "worst", "HD95 mm", "ASSD mm", "NSD 1 mm", "2 mm", "3 mm"]
    lines = [[output, *headings]]
    for line in metrics.table(scored):
        intervals = [
            with_interval(line[metric], line[f"{metric}_low"], line[f"{metric}_high"], digits)
            for metric, digits in (("dice", 3), ("hd95_mm", 1))
        ]
        cells = [line["structure"], intervals[0], f"{line['dice_worst']:.3f}", intervals[1]]
        nsd = (f"{line[metric]:.3f}" for metric in metrics.NSD)
        lines.append([*cells, f"{line['assd_mm']:.2f}", *nsd])
    return markdown(lines)


def other_rows(folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of results in another folder.

    Raises:
        ValueError: these are of other scans, or there are none.
    """
    path = folder / "facts.json"
    if not path.exists() or json.loads(path.read_text(encoding="utf-8"))["test"] != facts["test"]:
        raise ValueError(f"--against {folder}: holds no results of these scans.")
    return [row | {"arm": OTHER} for row in read_rows([folder / "rows.csv"])]


def against(others: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: each output's paired difference to that of other results."""
    named = dict.fromkeys(row["output"] for row in rows)
    return differences([*rows, *others], [((NAME, name), (OTHER, name)) for name in named])


def main(options: Options) -> None:
    facts = {"test": scans_sha256(options.test), "model": sha256_of([options.model])}
    facts |= {"code": code_sha256(), "tta": options.tta, "least_part_mm3": options.least_part_mm3}
    others = other_rows(options.against, facts) if options.against else []
    claim(options.output, facts)
    with ExitStack() as stack, ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        cases = find_cases(options.test, stack).cases
        paths = list(pool.map(evaluate, cases, [options] * len(cases)))
    if not paths:
        raise ValueError(f"{options.test}: no scans to test on.")
    rows = read_rows(paths)
    lines = [*table(rows, DIFFERENCES), "", *by_structure(rows, "pass 2")]
    lines += ["", *by_kind(rows, "pass 2")]
    if others:
        lines += ["", *against(others, rows)]
    report(options.output, rows, lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
