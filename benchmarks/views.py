"""How good a checkpoint is on synthetic scans that show a part of a body, or nothing it looks for.

    python benchmarks/views.py --anatomy DIR --seed 930 --patients 90 --output results --jobs 2

Each scan is drawn from the anatomies for testing (`python -m multipass.phantom --size views --part
test` draws the same), segmented and scored; none is written. `rows.csv` has a line for each scan,
pass and structure, `table.md` a line for each kind of view, with its scans' structures of at least
5 mL in view, and false mL: of structures that are not in view.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from native_scores import KEY, ROOT, claim, read_rows, report, score, write_rows

from multipass.evaluation.tables import markdown
from multipass.files import code_sha256, sha256_of
from multipass.model import checkpoint
from multipass.model.passes import segment
from multipass.phantom.anatomy.atlas import Atlas, load_atlas
from multipass.phantom.subject import make_subject
from multipass.phantom.views import VIEWS
from multipass.structures import PELVIS

LEAST_ML = 5.0  # less of a structure in view has no Dice worth a table
GOOD_DICE = 0.80


@dataclass(frozen=True)
class Options:
    anatomy: Path
    """folder of real bone surfaces, as for `python -m multipass.phantom`"""
    output: Path
    model: Path = ROOT / "inference_pipeline" / "best_model.pth"
    seed: int = 930
    patients: int = 90
    matrix: int = 320
    """pixels a side at most"""
    jobs: int = 1
    """scans at the same time, a thread each"""


@cache
def _atlas(folder: Path) -> Atlas:
    return load_atlas(folder, "test")


def evaluate(index: int, options: Options) -> Path:
    """Draws and scores one scan, unless that was done before; the file of its rows."""
    torch.set_num_threads(1)
    name = f"scan_{index + 1:03d}"
    path = options.output / f"{name}.csv"
    if path.exists():
        return path
    subject = make_subject(
        options.seed, index, matrix=options.matrix, size="views", atlas=_atlas(options.anatomy)
    )
    model = checkpoint.load(options.model)
    shared = {"view": subject.recipe.view, "group": subject.recipe.anatomy}
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for number, result in enumerate(segment(model, subject.volume), 1):
            key = dict(zip(KEY, ("multi-pass", 0, name, f"pass {number}"), strict=True))
            reference = subject.label, ["complete"] * len(PELVIS)
            scored = score(result, subject.volume, reference, model.structures)
            rows += [key | shared | row for row in scored]
    write_rows(path, rows)
    return path


def table(rows: list[dict[str, str]]) -> Iterator[list[str]]:
    """Rows of cells: the last pass by view, then all passes over all views."""
    last = max(row["output"] for row in rows)
    yield [
        *(f"view, {last}", "scans", f"structures of {LEAST_ML:g} mL", "Dice", "lowest"),
        *(f"{GOOD_DICE:.2f} and more", "missed", "false mL", "scans with false mL"),
    ]
    for view in VIEWS:
        of_view = [row for row in rows if row["view"] == view and row["output"] == last]
        if of_view:
            yield line(view, of_view)
    for output in sorted({row["output"] for row in rows}):
        of_output = [row for row in rows if row["output"] == output]
        shows = {row["patient"] for row in of_output if float(row["reference_ml"]) > 0}
        yield line(f"{output}, all", of_output)
        with_some = [row for row in of_output if row["patient"] in shows]
        yield line(f"{output}, a structure in view", with_some)
        without = [row for row in of_output if row["patient"] not in shows]
        yield line(f"{output}, none in view", without)


def line(name: str, rows: list[dict[str, str]]) -> list[str]:
    """One row of the table."""
    scans = {row["patient"] for row in rows}
    seen = [row for row in rows if float(row["reference_ml"]) >= LEAST_ML]
    dice = np.array([float(row["dice"]) for row in seen])
    false = dict.fromkeys(scans, 0.0)
    for row in rows:
        if not float(row["reference_ml"]):
            false[row["patient"]] += float(row["volume_ml"])
    missed = sum(row["outcome"] == "missed" for row in seen)
    cells = [name, str(len(scans)), str(len(seen))]
    cells += [f"{dice.mean():.3f}", f"{dice.min():.3f}"] if len(dice) else ["-", "-"]
    cells += [f"{np.count_nonzero(dice >= GOOD_DICE)}", str(missed)]
    return [
        *cells, f"{sum(false.values()):.1f}", str(sum(value > 0 for value in false.values())),
    ]  # fmt: skip


def main(options: Options) -> None:
    if [s.key for s in checkpoint.load(options.model).structures] != [s.key for s in PELVIS]:
        raise ValueError(f"{options.model}: knows other structures than the phantom's five.")
    facts = {"model": sha256_of([options.model]), "code": code_sha256(), "seed": options.seed}
    claim(options.output, facts | {"matrix": options.matrix})
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        score_one = partial(evaluate, options=options)
        paths = list(pool.map(score_one, range(options.patients)))
    rows = read_rows(paths)
    report(options.output, rows, markdown(list(table(rows))))


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"views.py: {error}")
