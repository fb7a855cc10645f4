"""How fast a training step is, against a plain MONAI network with stock MONAI augmentation.

    python benchmarks/training.py                   # seconds a step and a part, both in this run
    python benchmarks/training.py --minutes 20      # and validation Dice after equal time, the
                                                    # sides next to each other, half the cores each

Our side is timed on windows of half the resolution, too, with which training.py takes the first
half of its steps (--coarse).

The plain side is DynUNet (16, 32, 64, 128, 256) at full resolution, hard labels, and MONAI's
Rand3DElasticd. It takes one pass over the reference's pelvis window, which nobody has at inference:
a favour to it. Timed is also the step that does the same work as ours, two passes over two windows,
the second with the first one's map. All sides share patients, split, mixed precision, optimizer and
schedule, and training.py's loop over batches.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import tyro
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from monai.transforms import (
    Compose,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandGaussianNoised,
    RandGaussianSmoothd,
)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # before this folder: `training` is the script in the root

import training  # noqa: E402
from multipass.data.cohort import Cohort  # noqa: E402
from multipass.model.network import MultiPassUNet  # noqa: E402
from multipass.model.passes import precision, run  # noqa: E402
from multipass.training.batches import Batch, Batches, Size, random_state  # noqa: E402
from multipass.training.beforehand import COARSE, LR  # noqa: E402
from multipass.training.loss import hard_dice  # noqa: E402
from multipass.training.plan import Plan  # noqa: E402
from multipass.training.state import State  # noqa: E402
from multipass.training.validation import Validation  # noqa: E402

WINDOWS = ("scan", "pelvis")
WEIGHT_DECAY, EMA = 1e-2, 0.999
WARM_UP_STEPS = 2
MOST_EPOCHS = 1_000_000  # the minutes end before


@dataclass(frozen=True)
class Options:
    data: Path = ROOT / "processed_files" / "complete_dataset.pkl"
    steps: int = 10
    """timed steps a side; of an epoch, with --minutes"""
    minutes: float = 0.0
    """of training a side, then validation Dice; 0: only the times"""
    lr: float = LR
    seed: int = 0


@dataclass(frozen=True)
class Given:
    """What all sides train on."""

    cohort: Cohort
    ids: list[str]
    options: Options
    device: torch.device

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self.options.steps + WARM_UP_STEPS


class Timed:
    """Batches and steps of a side, as `training.train_epoch` takes them, and seconds of each."""

    def __init__(self, side: MultiPass | Plain) -> None:
        self.side, self.steps = side, side.batches.steps
        self.parts: dict[str, list[float]] = defaultdict(list)

    def epoch(self, epoch: int, size: Callable[[int], Size]) -> Iterator[Batch]:
        made = self.side.batches.epoch(epoch, size)
        for _ in range(self.steps):
            with self._part("augmentation"):
                batch = next(made)
            yield batch

    def step(self, state: State, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with self._part("learning"):
            return self.side.step(state, batch)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.parts[name].append(time.perf_counter() - start)

    def median(self, name: str) -> float:
        return float(np.median(self.parts[name][WARM_UP_STEPS:]))


class MultiPass:
    """As training.py: augmented windows, two passes, a loss on each.

    Args:
        coarse: part of the timed steps on windows of half the resolution.
    """

    def __init__(self, given: Given, coarse: float = 0.0) -> None:
        self.coarse, options, device = coarse, given.options, given.device
        self.batches = Batches(
            given.cohort, given.ids, WINDOWS, 1, options.seed, device, given.steps
        )
        network = MultiPassUNet(1 + len(given.cohort.structures)).to(device)
        self.state = State(network, options.lr, WEIGHT_DECAY, EMA, device)
        self.amp = precision(device)
        self.step = partial(training.learn, passes=2, amp=self.amp)

    def dice(self, batch: Batch) -> float:
        *_, logits = run(self.state.averaged_network, batch.views, 2, self.amp)
        return hard_dice(logits, batch.targets[-1], batch.known).nanmean().item()


class PlainBatches:
    """Validation's windows under MONAI's elastic deformation."""

    def __init__(self, given: Given, windows: Sequence[str]) -> None:
        self.ids, self.seed, self.steps = given.ids, given.options.seed, given.steps
        self.windows = Validation(given.cohort, windows, given.device)
        both, turn = ["image", "label"], np.deg2rad(15)
        self.augment = Compose(
            [
                Rand3DElasticd(
                    both, (5, 8), (50, 150), prob=1.0, rotate_range=[turn] * 3,
                    scale_range=[0.15] * 3, mode=["bilinear", "nearest"], padding_mode="zeros",
                ),
                RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
                RandGaussianSmoothd("image", prob=0.25),
                RandGaussianNoised("image", prob=0.5, std=0.04),
            ]
        )  # fmt: skip

    def epoch(self, epoch: int, size: Callable[[int], Size]) -> Iterator[Batch]:
        """Always at full resolution."""
        return (self._batch(epoch, number) for number in range(self.steps))

    def _batch(self, *keys: int) -> Batch:
        state = random_state(self.seed, *keys)
        windows = self.windows.batches(self.ids[state.randint(len(self.ids))])
        seen = windows[state.randint(len(windows))]
        self.augment.set_random_state(state=state)
        out = [
            self.augment({"image": view.image[0], "label": target.argmax(1).float()})
            for view, target in zip(seen.views, seen.targets, strict=True)
        ]
        return Batch([o["image"][None] for o in out], [o["label"][None] for o in out], seen.known)


class Plain:
    """The usual: one network at full resolution, hard labels, MONAI's elastic deformation.

    Args:
        passes: 1, over the pelvis window, or 2, over both windows.
    """

    coarse = 0.0

    def __init__(self, given: Given, passes: int = 1) -> None:
        options, device = given.options, given.device
        self.batches = PlainBatches(given, WINDOWS[-passes:])
        self.passes, self.classes = passes, 1 + len(given.cohort.structures)
        network = DynUNet(
            spatial_dims=3,
            in_channels=1 if passes == 1 else 1 + self.classes,
            out_channels=self.classes,
            kernel_size=[3] * 5,
            strides=[1, 2, 2, 2, (2, 2, 1)],
            upsample_kernel_size=[2, 2, 2, (2, 2, 1)],
            filters=[16, 32, 64, 128, 256],
        ).to(device)
        self.state = State(network, options.lr, WEIGHT_DECAY, EMA, device)
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
        self.amp = precision(device)

    def step(self, state: State, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        image = batch.views[0]
        context = image.new_zeros((1, self.classes, *image.shape[2:]))
        for image, target in zip(batch.views, batch.targets, strict=True):
            seen = image if self.passes == 1 else torch.cat([image, context], 1)
            with self.amp:
                logits = state.network(seen)
            loss = self.loss(logits.float(), target)
            training.descend(state, loss)
            context = torch.softmax(logits.detach().float(), 1)
        state.average.update_parameters(state.network)
        return loss.detach(), loss.new_zeros(())

    def dice(self, batch: Batch) -> float:
        with self.amp:
            logits = self.state.averaged_network(batch.views[-1].image)
        return hard_dice(logits, batch.targets[-1], batch.known).nanmean().item()


def train(side: MultiPass | Plain, options: Options) -> Timed:
    """An epoch to time, or epochs for the given minutes, with the schedule following the clock."""
    plan = Plan(1, lr=options.lr, coarse=side.coarse)
    if options.minutes:
        plan = Plan(MOST_EPOCHS, options.minutes, options.lr, coarse=COARSE)
    timed = Timed(side)
    while not plan.is_over(side.state):
        training.train_epoch(side.state, timed, plan, timed.step)
        side.state.epoch += 1
    return timed


def measure(name: str, options: Options, threads: int) -> tuple[float, str]:
    """Median seconds of a side's step, and the lines to print."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cohort = Cohort(options.data)
    train_ids, val_ids = cohort.split(5, 0)
    torch.manual_seed(options.seed)
    side = SIDES[name](Given(cohort, train_ids, options, device))
    timed = train(side, options)
    parts = {part: timed.median(part) for part in timed.parts}
    seconds = sum(parts.values())
    if not options.minutes:
        text = ", ".join(f"{part} {value:.2f} s" for part, value in parts.items())
        return seconds, f"{name}: {text}; augmentation {parts['augmentation'] / seconds:.0%}"
    with torch.no_grad():
        validation = Validation(cohort, WINDOWS, device)
        looks = (validation.batches(i) for i in val_ids)
        dice = [np.nanmean([side.dice(window) for window in windows]) for windows in looks]
    return seconds, (
        f"{name}: {len(timed.parts['learning'])} steps, Dice of the {len(val_ids)} validation "
        f"patients {np.mean(dice):.4f} ({', '.join(f'{d:.3f}' for d in dice)})"
    )


def main(options: Options) -> None:
    # Side by side for the Dice, so that both have the same 20 minutes of the same machine.
    names = ["multi-pass", "plain"] if options.minutes else list(SIDES)
    jobs = len(names) if options.minutes and not torch.cuda.is_available() else 1
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = {name: pool.submit(measure, name, options, threads) for name in names}
        found = {name: future.result() for name, future in futures.items()}
    print("\n".join(text for _, text in found.values()))
    if options.minutes:
        return
    fine, coarse = found["multi-pass"][0], found["multi-pass, coarse windows"][0]
    average = COARSE * coarse + (1 - COARSE) * fine
    for name in ("plain", "plain, two passes"):
        seconds = found[name][0]
        print(
            f"{name}: {seconds / fine:.1f} times as long as multi-pass, {seconds / coarse:.1f} "
            f"times as on coarse windows, {seconds / average:.1f} times as an average step of a "
            f"training that takes {COARSE:.0%} of its steps on these; {threads} threads"
        )


SIDES: dict[str, Callable] = {
    "multi-pass": MultiPass,
    "multi-pass, coarse windows": partial(MultiPass, coarse=1.0),
    "plain": Plain,
    "plain, two passes": partial(Plain, passes=2),
}

if __name__ == "__main__":
    main(tyro.cli(Options))
