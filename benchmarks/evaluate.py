"""How good a checkpoint is on scans with references: each pass, a third one, a blank context.

    python -m multipass.phantom --anatomy DIR --part test --patients 24 --seed 900 --output scans
    python benchmarks/evaluate.py --test scans --output results --jobs 2

Scores lie on the scans' own grids. `rows.csv` has a line for each scan, output and structure,
`table.md` the means, the paired differences and the structures, with 95 % intervals over scans.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import tyro
from native_scores import (
    KEY,
    ROOT,
    outputs,
    read_rows,
    read_test_scan,
    report,
    score,
    table,
    write_rows,
)

from multipass import checkpoint, metrics
from multipass.cases import Case, find_cases

NAME = "multi-pass"
DIFFERENCES = [((NAME, "pass 2"), (NAME, other)) for other in ("pass 1", "blank context")] + [
    ((NAME, "pass 3"), (NAME, "pass 2"))
]
DEFAULT_MODEL = ROOT / "inference_pipeline" / "best_model.pth"


@dataclass(frozen=True)
class Options:
    test: Path
    """folder of scans, each with its reference"""
    output: Path
    model: Path = DEFAULT_MODEL
    jobs: int = 1
    """scans at the same time, a thread each"""


def evaluate(case: Case, options: Options) -> Path:
    """Scores one scan, unless that was done before; the file of its rows."""
    torch.set_num_threads(1)
    path = options.output / f"{case.name}.csv"
    if path.exists():
        return path
    model = checkpoint.load(options.model)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        volume, reference = read_test_scan(case, model.structures)
        for output, result in outputs(model, volume):
            key = dict(zip(KEY, (NAME, 0, case.name, output), strict=True))
            found = score(result, volume, reference, model.structures)
            rows += [key | {"slices": volume.grid.size[2]} | row for row in found]
    write_rows(path, rows)
    return path


def by_structure(rows: list[dict[str, Any]], output: str) -> list[str]:
    """Markdown: every structure in one output."""
    scored = [
        row | {"pass": 0, "case": row["patient"]} | {m: float(row[m]) for m in ("dice", "hd95_mm")}
        | {m: float(row[m]) for m in ("assd_mm", "nsd_2mm")}
        for row in rows
        if row["output"] == output
    ]  # fmt: skip
    lines = [f"| {output} | Dice | worst | HD95 mm | ASSD mm | NSD 2 mm |", "|" + "---|" * 6]
    for line in metrics.table(scored):
        lines.append(
            f"| {line['structure']} | {line['dice']:.3f} [{line['dice_low']:.3f}, "
            f"{line['dice_high']:.3f}] | {line['dice_worst']:.3f} | {line['hd95_mm']:.1f} "
            f"[{line['hd95_mm_low']:.1f}, {line['hd95_mm_high']:.1f}] | {line['assd_mm']:.2f} | "
            f"{line['nsd_2mm']:.3f} |"
        )
    return lines


def main(options: Options) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack, ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        cases = find_cases(options.test, stack).cases
        paths = list(pool.map(evaluate, cases, [options] * len(cases)))
    if not paths:
        raise ValueError(f"{options.test}: no scans to test on.")
    rows = read_rows(paths)
    lines = [*table(rows, DIFFERENCES), "", *by_structure(rows, "pass 2")]
    report(options.output, rows, lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
