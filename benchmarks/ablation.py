"""Does the second pass help? The arms below, trained alike, on scans that none of them has seen.

    python -m multipass.phantom --output ablation/ctpel --patients 24 --seed 11 --matrix 256
    python -m multipass.phantom --output ablation/test --patients 12 --seed 12 --matrix 256
    python processing.py --input ablation/ctpel --output ablation/processed
    python benchmarks/ablation.py --jobs 2

    multi-pass    a pass over the scan, then one over the pelvis window with the first as context
    two on scan   two passes over the same scan window, the original description's method
    one on scan   one pass over the scan
    one on pelvis one pass over the pelvis window; at test the box is found by the network of
                  `one on scan`, so that this is a cascade of two networks, trained twice as long

All share backbone, loss, data, seeds and computing time: the seconds of processor time that a step
takes are measured first, on one thread, and every arm gets the steps that fit into --minutes. No
arm is validated or chosen; what is tested is the average of its weights after the last step.

Finished parts are kept in --output, an interrupted run goes on. `rows.csv` has a line for each
arm, seed, test patient, output and structure, `table.md` the means and paired differences: each
patient's two or more seeds are averaged first, then patients are resampled.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # before this folder, which has a training.py, too

import training  # noqa: E402
from multipass import checkpoint  # noqa: E402
from multipass.batches import Batches  # noqa: E402
from multipass.cases import Case, find_cases  # noqa: E402
from multipass.cohort import Cohort  # noqa: E402
from multipass.ct import read_ct  # noqa: E402
from multipass.maps import PassResult, native_labels  # noqa: E402
from multipass.metrics import bootstrap_interval, compare  # noqa: E402
from multipass.network import MultiPassUNet  # noqa: E402
from multipass.passes import closer, look_through, precision, segment  # noqa: E402
from multipass.patients import replacing  # noqa: E402
from multipass.scoring import read_reference  # noqa: E402
from multipass.structures import Structure  # noqa: E402
from multipass.trainer import State  # noqa: E402
from multipass.volume import Volume, upright  # noqa: E402
from multipass.windows import HU_RANGE  # noqa: E402

CPU = torch.device("cpu")
EPOCHS = 8  # of equal length; a run can go on after each
WARM_UP_STEPS, TIMED_STEPS = 2, 4
KEY = ("arm", "seed", "patient", "output")


@dataclass(frozen=True)
class Arm:
    """What one network sees in training, and in how many passes."""

    name: str
    windows: tuple[str, ...]
    passes: int

    @property
    def file(self) -> str:
        return self.name.replace(" ", "_")


MULTI = Arm("multi-pass", ("scan", "pelvis"), 2)
FIRST = Arm("one on scan", ("scan",), 1)
CLOSER = Arm("one on pelvis", ("pelvis",), 1)
ARMS = (MULTI, Arm("two on scan", ("scan",), 2), FIRST, CLOSER)
# (arm, output) minus (arm, output)
DIFFERENCES = (
    (("multi-pass", "pass 2"), ("multi-pass", "pass 1")),
    (("multi-pass", "pass 2"), ("multi-pass", "blank context")),
    (("multi-pass", "pass 3"), ("multi-pass", "pass 2")),
    (("multi-pass", "pass 2"), ("two on scan", "pass 2")),
    (("multi-pass", "pass 2"), ("one on scan", "pass 1")),
    (("multi-pass", "pass 2"), ("one on pelvis", "pass 1")),
    (("two on scan", "pass 2"), ("two on scan", "pass 1")),
)


@dataclass(frozen=True)
class Options:
    data: Path = ROOT / "ablation" / "processed" / "complete_dataset.pkl"
    test: Path = ROOT / "ablation" / "test"
    """scans with references, in the layout of ctpel/"""
    output: Path = ROOT / "ablation" / "results"
    minutes: float = 10.0
    """of processor time for each network"""
    seeds: int = 2
    jobs: int = 1
    """networks trained at the same time, a thread each"""
    augmentation: float = 0.3
    """strength, as in training.py; 0.3 is what the demo's minutes of training take"""

    def settings(self, arm: Arm, seed: int) -> training.Options:
        """What `training.train_epoch` needs to know."""
        return training.Options(
            epochs=EPOCHS, passes=arm.passes, seed=seed, augmentation=self.augmentation
        )


def start(arm: Arm, seed: int, options: Options, steps: int) -> tuple[State, Batches]:
    cohort, given = Cohort(options.data), options.settings(arm, seed)
    torch.manual_seed(seed)
    network = MultiPassUNet(1 + len(cohort.structures), given.filters)
    state = State(network, given.lr, given.weight_decay, given.ema, CPU)
    return state, Batches(cohort, cohort.ids, arm.windows, 1, seed, CPU, steps, given.augmentation)


def seconds_a_step(arm: Arm, options: Options) -> float:
    """Processor time of a training step on one thread."""
    torch.set_num_threads(1)
    given = options.settings(arm, 0)
    for steps in (WARM_UP_STEPS, TIMED_STEPS):
        state, batches = start(arm, 0, options, steps)
        begin = time.process_time()
        training.train_epoch(state, batches, given, precision(CPU))
    return (time.process_time() - begin) / TIMED_STEPS


def train(arm: Arm, seed: int, options: Options, seconds: float) -> str:
    """Trains one network, or goes on with it; the line to print."""
    torch.set_num_threads(1)
    steps = max(1, round(60 * options.minutes / seconds / EPOCHS))
    path = options.output / f"{arm.file}_seed{seed}.pth"
    state, batches = start(arm, seed, options, steps)
    if path.exists():
        state.load_state_dict(torch.load(path, weights_only=True))
    given, loss = options.settings(arm, seed), float("nan")
    while state.epoch < EPOCHS:
        loss, _ = training.train_epoch(state, batches, given, precision(CPU))
        state.epoch += 1
        with replacing(path) as temporary:
            torch.save(state.state_dict(), temporary)
    return f"{arm.name}, seed {seed}: {EPOCHS * steps} steps, last training loss {loss:.3f}"


def trained(arm: Arm, seed: int, options: Options) -> checkpoint.Model:
    state, batches = start(arm, seed, options, 1)
    path = options.output / f"{arm.file}_seed{seed}.pth"
    state.load_state_dict(torch.load(path, weights_only=True))
    window = "pelvis" if arm == MULTI else "scan"
    structures = list(batches.cohort.structures)
    return checkpoint.Model(state.average.network, structures, HU_RANGE, arm.passes, window)


def outputs(
    arm: Arm, model: checkpoint.Model, volume: Volume, finder: checkpoint.Model | None
) -> Iterator[tuple[str, PassResult]]:
    """All that is compared of one network on one scan."""
    if finder is not None:
        windows, flags = closer(segment(finder, volume, 1)[0], volume)
        yield "pass 1", look_through(model, volume, windows, None, flags)
        return
    results = segment(model, volume, 3 if arm.passes > 1 else 1, keep_all=True)
    yield from ((f"pass {k}", result) for k, result in enumerate(results, start=1))
    if arm.passes > 1:
        yield "blank context", look_through(model, volume, results[1].windows, None, [])


def test(arm: Arm, seed: int, options: Options) -> str:
    """Scores one network on all test patients' own grids; the line to print."""
    torch.set_num_threads(1)
    path = options.output / f"{arm.file}_seed{seed}.csv"
    if path.exists():
        return f"{arm.name}, seed {seed}: already tested"
    model = trained(arm, seed, options)
    finder = trained(FIRST, seed, options) if arm == CLOSER else None
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for patient, volume, reference in test_scans(options.test, model.structures):
            for output, result in outputs(arm, model, volume, finder):
                key = dict(zip(KEY, (arm.name, seed, patient, output), strict=True))
                rows += [key | row for row in score(result, volume, reference, model.structures)]
    write_rows(path, rows)
    return f"{arm.name}, seed {seed}: tested"


def score(
    result: PassResult, volume: Volume, reference: tuple, structures: Sequence[Structure]
) -> list[dict[str, Any]]:
    labels, statuses = reference
    names = [structure.name for structure in structures]
    found = native_labels(result, volume.grid)
    return compare(found, labels, volume.grid.spacing_mm, names, statuses)


def test_scans(
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
    scan = read_ct(case.series)
    reference = read_reference(case, scan.volume.grid, structures)
    if reference is None:
        raise ValueError(f"{case.name}: no reference beside this scan to test on.")
    return upright(scan.volume), reference


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


def table(rows: list[dict[str, str]], differences: Sequence[tuple] = DIFFERENCES) -> list[str]:
    """Markdown: means, then paired differences, with 95 % intervals over patients."""
    dice, hd95 = by_patient(rows, "dice"), by_patient(rows, "hd95_mm")
    missed = dict.fromkeys(dice, 0)
    for row in rows:
        missed[row["arm"], row["output"]] += row["outcome"] == "missed"
    lines = ["| network | output | Dice | worst patient | HD95 mm | missed |", "|" + "---|" * 6]
    for key in dice:
        worst = min(dice[key].values())
        cells = [*key, interval(dice[key].values(), 4), f"{worst:.3f}"]
        cells += [interval(hd95[key].values(), 1), str(missed[key])]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| difference | Dice | HD95 mm |", "|---|---|---|"]
    for one, other in differences:
        if one in dice and other in dice:
            text = f"{', '.join(one)} - {', '.join(other)}"
            both = (paired(dice, one, other), paired(hd95, one, other))
            lines.append(f"| {text} | {interval(both[0], 4)} | {interval(both[1], 1)} |")
    return lines


def paired(values: dict, one: tuple[str, str], other: tuple[str, str]) -> list[float]:
    return [values[one][patient] - values[other][patient] for patient in values[one]]


def interval(values: Any, digits: int) -> str:
    values = list(values)
    low, high = bootstrap_interval(values)
    return f"{np.nanmean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def read_rows(paths: Sequence[Path]) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    return rows


def measured_seconds(options: Options) -> dict[str, float]:
    """Seconds of a step of each arm; kept, so that a run that goes on keeps its steps."""
    path = options.output / "seconds_a_step.json"
    if not path.exists():
        seconds = {arm.name: seconds_a_step(arm, options) for arm in ARMS}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(seconds, indent=1))
    return json.loads(path.read_text())


def main(options: Options) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ["TQDM_DISABLE"] = "1"
    seconds = measured_seconds(options)
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} s a step", flush=True)
    tasks = [(arm, seed) for seed in range(options.seeds) for arm in ARMS]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        trainings = [pool.submit(train, a, s, options, seconds[a.name]) for a, s in tasks]
        for future in trainings:
            print(future.result(), flush=True)
        for future in [pool.submit(test, a, s, options) for a, s in tasks]:
            print(future.result(), flush=True)
    rows = read_rows([options.output / f"{a.file}_seed{s}.csv" for a, s in tasks])
    write_rows(options.output / "rows.csv", rows)
    lines = table(rows)
    (options.output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except (ValueError, OSError) as error:
        sys.exit(f"ablation.py: {error}")
