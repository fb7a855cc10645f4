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
takes are measured first, on one thread, and every arm gets the steps that fit into --minutes, three
quarters of them on coarse windows. No arm is validated or chosen; what is tested is the average of
its weights after the last step.

Finished parts are kept in --output, an interrupted run goes on. `rows.csv` has a line for each
arm, seed, test patient, output and structure, `table.md` the means and paired differences: each
patient's two or more seeds are averaged first, then patients are resampled.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from native_scores import (
    KEY,
    ROOT,
    by_patient,
    claim,
    outputs,
    read_rows,
    reference_scans,
    report,
    scans_sha256,
    score,
    table,
    write_rows,
)

import training
from multipass.data.cohort import Cohort
from multipass.evaluation.tables import markdown
from multipass.files import replacing
from multipass.geometry.volume import Volume
from multipass.geometry.windows import HU_RANGE, close_windows
from multipass.model.checkpoint import Model
from multipass.model.evidence import found_in
from multipass.model.maps import PassResult
from multipass.model.network import MultiPassUNet
from multipass.model.passes import look_through, precision, segment
from multipass.training.batches import Batches
from multipass.training.beforehand import LR
from multipass.training.state import State

CPU = torch.device("cpu")
EPOCHS = 8  # of equal length; a run can go on after each
COARSE = 0.75  # of the steps, half to a third of the time
WARM_UP_STEPS, TIMED_STEPS = 2, 4


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
    (("multi-pass", "pass 1"), ("two on scan", "pass 1")),
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

    def facts(self) -> dict[str, Any]:
        """What the results depend on, but for arms and seeds."""
        facts = {"data": Cohort(self.data).sha256(), "test": scans_sha256(self.test)}
        return facts | {"minutes": self.minutes, "augmentation": self.augmentation}

    def settings(self, arm: Arm, seed: int) -> training.Options:
        """As of a training of this length."""
        return training.Options(
            epochs=EPOCHS,
            passes=arm.passes,
            seed=seed,
            augmentation=self.augmentation,
            lr=LR,
            coarse=COARSE,
        )


def start(arm: Arm, seed: int, options: Options, steps: int) -> tuple[State, Batches]:
    cohort, given = Cohort(options.data), options.settings(arm, seed)
    torch.manual_seed(seed)
    network = MultiPassUNet(1 + len(cohort.structures), given.filters)
    state = State(network, given.lr, given.weight_decay, given.ema, CPU)
    return state, Batches(cohort, cohort.ids, arm.windows, 1, seed, CPU, steps, given.augmentation)


def step_of(arm: Arm) -> training.Step:
    return partial(training.learn, passes=arm.passes, amp=precision(CPU))


def seconds_a_step(arm: Arm, options: Options) -> float:
    """Processor time of a training step on one thread, averaged over coarse and fine epochs."""
    torch.set_num_threads(1)
    given = options.settings(arm, 0)
    seconds = []
    for epoch in (0, EPOCHS - 1):
        for steps in (WARM_UP_STEPS, TIMED_STEPS):
            state, batches = start(arm, 0, options, steps)
            state.epoch = epoch
            begin = time.process_time()
            training.train_epoch(state, batches, given.plan, step_of(arm))
        seconds.append((time.process_time() - begin) / TIMED_STEPS)
    return given.coarse * seconds[0] + (1 - given.coarse) * seconds[1]


def train(arm: Arm, seed: int, options: Options, seconds: float) -> str:
    """Trains one network, or goes on with it; the line to print."""
    torch.set_num_threads(1)
    steps = max(1, round(60 * options.minutes / seconds / EPOCHS))
    path = options.output / f"{arm.file}_seed{seed}.pth"
    state, batches = start(arm, seed, options, steps)
    if path.exists():
        state.load_state_dict(torch.load(path, weights_only=True))
    if state.epoch == EPOCHS:
        return f"{arm.name}, seed {seed}: already trained, {EPOCHS * steps} steps"
    given, loss = options.settings(arm, seed), float("nan")
    while state.epoch < EPOCHS:
        loss, _ = training.train_epoch(state, batches, given.plan, step_of(arm))
        state.epoch += 1
        with replacing(path) as temporary:
            torch.save(state.state_dict(), temporary)
    return f"{arm.name}, seed {seed}: {EPOCHS * steps} steps, last training loss {loss:.3f}"


def trained(arm: Arm, seed: int, options: Options) -> Model:
    state, batches = start(arm, seed, options, 1)
    path = options.output / f"{arm.file}_seed{seed}.pth"
    state.load_state_dict(torch.load(path, weights_only=True))
    windows = ("scan", *["pelvis" if arm == MULTI else "scan"] * (arm.passes - 1))
    structures = list(batches.cohort.structures)
    return Model(state.averaged_network, structures, HU_RANGE, windows)


def closer_outputs(model: Model, volume: Volume, finder: Model) -> Iterator[tuple[str, PassResult]]:
    """The one pass of a network that needs another to find the pelvis."""
    (seen,) = segment(finder, volume, 1)
    found = found_in(seen, volume.grid.box_mm())
    if found is not None:
        seen = look_through(model, volume, close_windows(found.box_mm), None, [])
    yield "pass 1", seen


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
        for patient, volume, reference in reference_scans(options.test, model.structures):
            found = closer_outputs(model, volume, finder) if finder else outputs(model, volume)
            for output, result in found:
                key = dict(zip(KEY, (arm.name, seed, patient, output), strict=True))
                rows += [key | row for row in score(result, volume, reference, model.structures)]
    write_rows(path, rows)
    return f"{arm.name}, seed {seed}: tested"


def measured_seconds(options: Options, pool: ProcessPoolExecutor) -> dict[str, float]:
    """Seconds of a step of each arm; kept, so that a run that goes on keeps its steps."""
    path = options.output / "seconds_a_step.json"
    if not path.exists():
        seconds = {arm.name: pool.submit(seconds_a_step, arm, options).result() for arm in ARMS}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(seconds, indent=1))
    return json.loads(path.read_text())


def by_seed(rows: list[dict[str, str]]) -> list[str]:
    """Markdown: each seed's means, which the intervals over patients say nothing of."""
    seeds = sorted({row["seed"] for row in rows}, key=int)
    heads = [f"seed {seed}, {metric}" for metric in ("Dice", "HD95 mm") for seed in seeds]
    lines = [["network", "output", *heads]]
    means = [
        by_patient([row for row in rows if row["seed"] == seed], metric)
        for metric in ("dice", "hd95_mm")
        for seed in seeds
    ]
    for key in by_patient(rows, "dice"):
        figures = [float(np.nanmean(list(of_seed[key].values()))) for of_seed in means]
        texts = [f"{v:.3f}" if i < len(seeds) else f"{v:.1f}" for i, v in enumerate(figures)]
        lines.append([*key, *texts])
    return markdown(lines)


def main(options: Options) -> None:
    claim(options.output, options.facts())
    os.environ["TQDM_DISABLE"] = "1"  # read when a process of the pool starts
    tasks = [(arm, seed) for seed in range(options.seeds) for arm in ARMS]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        seconds = measured_seconds(options, pool)
        for name, value in seconds.items():
            print(f"{name}: {value:.2f} s a step", flush=True)
        trainings = [pool.submit(train, a, s, options, seconds[a.name]) for a, s in tasks]
        for future in trainings:
            print(future.result(), flush=True)
        for future in [pool.submit(test, a, s, options) for a, s in tasks]:
            print(future.result(), flush=True)
    rows = read_rows([options.output / f"{a.file}_seed{s}.csv" for a, s in tasks])
    report(options.output, rows, [*table(rows, DIFFERENCES), "", *by_seed(rows)])


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"ablation.py: {error}")
