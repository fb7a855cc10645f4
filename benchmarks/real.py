"""What a checkpoint's masks are worth on scans of real people, most of them without a reference.

    python benchmarks/real.py --scans DIR --output results --jobs 2

DIR/contents.json lists the scans, DIR/<name>/<name>.nii.gz holds one, <name>_seg.nii.gz beside it a
reference if there is one. For each name:

    inside      mask values of the structures that the scan shows, [] for none
    least_ml    what a right mask has at least of each, in mL; one that has less has missed it

A line a scan, the same in OUTPUT/real.csv, and OUTPUT/<name>/mask.nii.gz:

    false       mL of structures that the scan doesn't show
    missed      structures below least_ml
    parts       parts of at least 1 mL beyond one a structure; behind it what contradicts itself, as
                left and right that have changed places
    edge        from the mask's surface outwards to the picture's edge, mm: median (above 0: the
                mask is too small), median and 90th percentile of its size
    hole        % of bright voxels at most 2 mm or one voxel outside the mask, of these and the mask
    Dice        of each structure, against the reference
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro
from native_scores import ROOT, write_rows

from multipass.data.case import Case, safe_name
from multipass.data.scan import Scan, read_scan
from multipass.evaluation import edges
from multipass.evaluation.label_maps import contradiction
from multipass.evaluation.scoring import reference_labels, upright_labels
from multipass.geometry.labelmaps import voxel_counts
from multipass.geometry.volume import Volume
from multipass.model import checkpoint
from multipass.model.maps import bone_labels
from multipass.model.passes import segment
from multipass.model.way_back import own_grid_labels
from multipass.results.case_folder import write_mask
from multipass.results.pictures import overlay
from multipass.structures import PELVIS
from multipass.terminal import one_sentence

CONTENTS = "contents.json"
LEAST_PART_ML = 1.0
COARSEST_MM = 3.3  # holes of coarser scans say nothing
NAMES = [structure.name for structure in PELVIS]


@dataclass(frozen=True)
class Options:
    scans: Path
    """folder with contents.json and a folder a scan"""
    output: Path
    model: Path = ROOT / "inference_pipeline" / "best_model.pth"
    jobs: int = 1
    """scans at the same time, a thread each"""
    pictures: tuple[str, ...] = ()
    """names of scans (sts_*) of which overlay.png is drawn, where their licence allows it"""


@dataclass(frozen=True)
class Expected:
    """What a scan shows: values of PELVIS from 1, and the least mL of each."""

    name: str
    inside: tuple[int, ...]
    least_ml: dict[int, float]


def read_contents(folder: Path) -> list[Expected]:
    """What the folder says of its scans.

    Raises:
        ValueError: contents.json is missing, or is not as this file's head describes.
    """
    path = folder / CONTENTS
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        found = [
            Expected(
                name, tuple(int(value) for value in facts["inside"]),
                {int(value): float(ml) for value, ml in facts.get("least_ml", {}).items()},
            )
            for name, facts in listed.items()
        ]  # fmt: skip
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; it lists the scans and what they show.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: a table of scans was needed, each with a list `inside` and, if any, a table "
            f"`least_ml`; found otherwise ({error!r})."
        ) from None
    for scan in found:
        if safe_name(scan.name) != scan.name:
            raise ValueError(f"{path}: {scan.name!r} is no name for a folder.")
        if not {*scan.inside, *scan.least_ml} <= set(range(1, len(PELVIS) + 1)):
            raise ValueError(f"{path}: {scan.name}: mask values from 1 to {len(PELVIS)} only.")
    if not found:
        raise ValueError(f"{path}: lists no scan.")
    return found


def evaluate(expected: Expected, options: Options) -> dict[str, Any]:
    """The figures of one scan, or the sentence that says why there are none."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        row = _figures(expected, options)
    except (ValueError, OSError, MemoryError) as error:
        return {"scan": expected.name, "problem": one_sentence(error)}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def _figures(expected: Expected, options: Options) -> dict[str, Any]:
    model = checkpoint.load(options.model)
    folder = options.scans / expected.name
    beside = folder / f"{expected.name}_seg.nii.gz"
    reference_path = beside if beside.is_file() else None
    path = folder / f"{expected.name}.nii.gz"
    case = Case(expected.name, path, reference_path=reference_path)
    scan = read_scan(case)
    result = segment(model, scan.upright)[-1]
    labels = bone_labels(result, scan.upright.grid)
    mask = own_grid_labels(result, scan.grid, labels)
    results = options.output / expected.name
    results.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=results) as written:
        write_mask(Path(written, "mask.nii.gz"), mask, scan.grid)
        if any(fnmatch(expected.name, pattern) for pattern in options.pictures):
            overlay(Path(written, "overlay.png"), scan.upright, labels, PELVIS, expected.name)
        for path in Path(written).iterdir():
            path.replace(results / path.name)
    return measure(scan, labels, expected) | _dice(case, scan, labels)


def measure(scan: Scan, labels: np.ndarray, expected: Expected) -> dict[str, Any]:
    """The figures that need no reference; `labels` lie on the scan's upright grid."""
    grid, hu = scan.upright.grid, scan.upright.array
    shown = np.where(np.isin(labels, expected.inside), labels, 0)
    volumes = voxel_counts(labels, len(PELVIS)) * grid.voxel_ml
    least = expected.least_ml.items()
    row = {
        "scan": expected.name, "problem": "",
        "false_ml": float(volumes[1:].sum() - volumes[list(expected.inside)].sum()),
        "missed": " ".join(str(value) for value, ml in least if volumes[value] < ml),
        "parts": sum(
            edges.parts_too_many(labels, value, LEAST_PART_ML / grid.voxel_ml)
            for value in expected.inside
        ),
        "contradiction": contradiction(Volume(shown, grid), PELVIS) or "",
    }  # fmt: skip
    distances = edges.edge_distances(hu, shown, grid.spacing_mm)
    size = np.abs(distances) if len(distances) else np.full(1, np.nan)
    row["edge_mm"] = float(np.median(distances)) if len(distances) else float("nan")
    row["edge_size_mm"] = float(np.median(size))
    row["edge_p90_mm"] = float(np.percentile(size, 90))
    fine = max(grid.spacing_mm) <= COARSEST_MM and bool(expected.inside)
    hole = edges.left_out(hu, labels > 0, grid.spacing_mm) if fine else float("nan")
    return row | {"hole_percent": 100 * hole}


def _dice(case: Case, scan: Scan, labels: np.ndarray) -> dict[str, float]:
    nothing = dict.fromkeys((f"dice {name}" for name in NAMES), float("nan"))
    reference = reference_labels(case, scan, PELVIS)
    if reference is None:
        return nothing
    truth = upright_labels(reference[0], scan.grid)
    for value, name in enumerate(NAMES, start=1):
        pair = labels == value, truth == value
        total = sum(int(np.count_nonzero(one)) for one in pair)
        both = int(np.count_nonzero(pair[0] & pair[1]))
        nothing[f"dice {name}"] = 2 * both / total if total else float("nan")
    return nothing


def line(row: dict[str, Any], expected: Expected) -> str:
    """A scan's figures as people read them."""
    if row["problem"]:
        return f"{row['scan']:20} not measured: {row['problem']}"
    text = f"{row['scan']:20} false {row['false_ml']:6.1f} mL"
    if expected.inside:
        text += f"  missed {row['missed'] or '-'}  parts {row['parts']}"
        text += f"  ({row['contradiction']})" if row["contradiction"] else ""
    if not np.isnan(row["edge_mm"]):
        sizes = f"{row['edge_size_mm']:.2f} / {row['edge_p90_mm']:.2f} mm"
        text += f"  edge {row['edge_mm']:+.2f}, {sizes}"
    if not np.isnan(row["hole_percent"]):
        text += f"  hole {row['hole_percent']:.1f} %"
    dice = [row[f"dice {name}"] for name in NAMES]
    if not np.isnan(dice).all():
        text += "  Dice " + " ".join(f"{value:.3f}" for value in dice)
    return text


def summary(rows: list[dict[str, Any]], contents: list[Expected]) -> str:
    """A line for the scans with structures and one for those without."""
    measured = [(r, e) for r, e in zip(rows, contents, strict=True) if not r["problem"]]
    shown = [r for r, e in measured if e.inside]
    empty = [r["false_ml"] for r, e in measured if not e.inside]
    text = f"{len(empty)} scans without a structure: {sum(empty):.1f} mL false"
    if shown:
        p90 = np.nanmean([r["edge_p90_mm"] for r in shown])
        text += (
            f"\n{len(shown)} scans with structures: {sum(r['false_ml'] for r in shown):.1f} mL "
            f"false, {sum(len(r['missed'].split()) for r in shown)} missed, "
            f"{sum(r['parts'] for r in shown)} parts too many, edge's 90th percentile {p90:.2f} mm"
        )
    return text


def main(options: Options) -> int:
    contents = read_contents(options.scans)
    if [s.key for s in checkpoint.load(options.model).structures] != [s.key for s in PELVIS]:
        raise ValueError(f"{options.model}: knows other structures than {', '.join(NAMES)}.")
    options.output.mkdir(parents=True, exist_ok=True)
    rows = []
    with ExitStack() as stack:
        run: Callable = map
        if options.jobs > 1:
            pool = ProcessPoolExecutor(options.jobs, get_context("spawn"))
            run = stack.enter_context(pool).map
        measured = run(evaluate, contents, [options] * len(contents))
        for row, expected in zip(measured, contents, strict=True):
            print(line(row, expected), flush=True)
            rows.append(row)
    print(summary(rows, contents))
    if finished := [row for row in rows if not row["problem"]]:
        write_rows(options.output / "real.csv", finished)
    return int(len(finished) < len(rows))


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options, description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"real.py: {error}")
