"""Which form of the method is best? Each option alone, against the method as it is.

    python benchmarks/screen.py --jobs 2        # the phantoms of benchmarks/ablation.py

    as it is           soft context without gradient, each pass takes its own optimizer step
    residual           a pass adds to the logits of the pass before it
    one-hot context    the likeliest class instead of class probabilities
    one step           one optimizer step for the sum of both passes' losses
    through gradient   the same, and the gradient runs through the context into the first pass
    1 - Dice           instead of -log Dice in the loss
    blanked more       the context is blank in 30 % of the samples, in all others in 15 %
    AdamW              for all weights, with the same learning rate

One seed; equal processor time, as in the ablation. Four fifths of the patients train and the others
are scored on their scans' own grids: no test patient has a part in the choice.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ablation
import torch
import torch.nn.functional as F
import tyro
from ablation import CPU, EPOCHS, MULTI, TIMED_STEPS, WARM_UP_STEPS
from monai.losses import DiceLoss
from native_scores import (
    KEY,
    ROOT,
    claim,
    outputs,
    read_rows,
    reference_scans,
    report,
    score,
    table,
    write_rows,
)
from torch.nn import Parameter

import training
from multipass.data.cohort import Cohort
from multipass.files import replacing
from multipass.geometry.windows import HU_RANGE
from multipass.model.checkpoint import Model
from multipass.model.network import MultiPassUNet, Network
from multipass.model.passes import blank, precision
from multipass.model.resampling import between
from multipass.training.batches import Batch, Batches
from multipass.training.intensity import ContextOdds
from multipass.training.loss import EMPTY_PART, soft_loss
from multipass.training.optimizer import Muon
from multipass.training.trainer import State, cosine

LEAST_PROBABILITY = 1e-4
_dice_loss = DiceLoss(include_background=False, soft_label=True, reduction="none")


class Residual(MultiPassUNet):
    """Adds to the logits of the pass before; a blank context adds the same to all classes."""

    look = Network.look

    def forward(
        self, image: torch.Tensor, context: torch.Tensor, pass_index: int = 0
    ) -> torch.Tensor:
        return super().forward(image, context) + context.clamp(min=LEAST_PROBABILITY).log()


class OneHot(MultiPassUNet):
    """Sees the likeliest class of the pass before."""

    look = Network.look

    def forward(
        self, image: torch.Tensor, context: torch.Tensor, pass_index: int = 0
    ) -> torch.Tensor:
        hard = F.one_hot(context.argmax(1), self.classes).movedim(-1, 1).to(context)
        return super().forward(image, hard * (context.sum(1, keepdim=True) > 0))


def one_minus_dice(logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """`soft_loss` with the Dice loss itself in place of the logarithm of the Dice."""
    assert bool(known.all()), "these phantoms are annotated in full"
    logits = logits.float()
    lost = _dice_loss(torch.softmax(logits, 1), target).flatten(1)
    counted = target[:, 1:].mean((2, 3, 4)) > EMPTY_PART
    return F.cross_entropy(logits, target) + (lost * counted).sum() / counted.sum().clamp(min=1)


@dataclass(frozen=True)
class Choice:
    name: str
    network: type[MultiPassUNet] = MultiPassUNet
    loss: Callable[..., torch.Tensor] = soft_loss
    step_each_pass: bool = True
    through: bool = False
    odds: ContextOdds = ContextOdds(blank=0.15)
    optimizer: Callable[..., torch.optim.Optimizer] = Muon


def adamw(parameters: list[Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)


CHOICES = (
    Choice("as it is"),
    Choice("residual", network=Residual),
    Choice("one-hot context", network=OneHot),
    Choice("one step", step_each_pass=False),
    Choice("through gradient", step_each_pass=False, through=True),
    Choice("1 - Dice", loss=one_minus_dice),
    Choice("blanked more", odds=ContextOdds(blank=0.3)),
    Choice("AdamW", optimizer=adamw),
)


@dataclass(frozen=True)
class Options(ablation.Options):
    test: Path = ROOT / "ablation" / "ctpel"
    """the scans that --data was made from"""
    output: Path = ROOT / "ablation" / "screen"
    only: tuple[str, ...] = ()
    """names of options; all if none is given"""


def learn(state: State, batch: Batch, choice: Choice) -> None:
    """`training.train_epoch`'s step, with the choice's differences."""
    amp, losses = precision(CPU), []
    context = blank(state.network, batch.views[0].image)
    for k in range(2):
        with amp:
            logits = state.network(batch.views[k].image, context)
        losses.append(choice.loss(logits, batch.target(k), batch.known))
        if choice.step_each_pass:
            training.descend(state, losses[-1])
        if k == 0:
            kept = logits if choice.through else logits.detach()
            boxes = (view.box for view in batch.views)
            context = batch.disturb(between(torch.softmax(kept.float(), 1), *boxes))
    if not choice.step_each_pass:
        training.descend(state, losses[0] + losses[1])
    state.average.update(state.network)


def start(choice: Choice, options: Options, steps: int) -> tuple[State, Batches, list[str]]:
    cohort, given = Cohort(options.data), options.settings(MULTI, 0)
    learning, held_out = cohort.split(given.folds, given.fold)
    torch.manual_seed(0)
    network = choice.network(1 + len(cohort.structures), given.filters)
    state = State(network, given.lr, given.weight_decay, given.ema, CPU)
    state.optimizer = choice.optimizer(list(network.parameters()), given.lr, given.weight_decay)
    batches = Batches(cohort, learning, MULTI.windows, 1, 0, CPU, steps, given.augmentation)
    batches.context_odds = choice.odds
    return state, batches, held_out


def seconds_a_step(choice: Choice, options: Options) -> float:
    torch.set_num_threads(1)
    state, batches, _ = start(choice, options, WARM_UP_STEPS + TIMED_STEPS)
    begin = 0.0
    for number, batch in enumerate(batches.epoch(0)):
        if number == WARM_UP_STEPS:
            begin = time.process_time()
        learn(state, batch, choice)
    return (time.process_time() - begin) / TIMED_STEPS


def train_and_score(choice: Choice, options: Options) -> str:
    """One choice from start to rows; goes on after the last finished epoch."""
    torch.set_num_threads(1)
    path = options.output / f"{choice.name.replace(' ', '_')}.csv"
    if path.exists():
        return f"{choice.name}: already there"
    seconds = seconds_a_step(choice, options)
    steps = max(1, round(60 * options.minutes / seconds / EPOCHS))
    state, batches, held_out = start(choice, options, steps)
    kept = path.with_suffix(".pth")
    if kept.exists():
        state.load_state_dict(torch.load(kept, weights_only=True))
    while state.epoch < EPOCHS:
        for step, batch in enumerate(batches.epoch(state.epoch)):
            done = (state.epoch + step / batches.steps) / EPOCHS
            state.lr = options.settings(MULTI, 0).lr * cosine(done)
            learn(state, batch, choice)
        state.epoch += 1
        with replacing(kept) as temporary:
            torch.save(state.state_dict(), temporary)
    structures = list(batches.cohort.structures)
    model = Model(state.average.network.eval(), structures, HU_RANGE, ("scan", "pelvis"))
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for patient, volume, reference in reference_scans(options.test, structures):
            if patient in held_out:
                for output, result in outputs(model, volume):
                    key = dict(zip(KEY, (choice.name, 0, patient, output), strict=True))
                    found = score(result, volume, reference, structures)
                    rows += [key | row for row in found]
    write_rows(path, rows)
    return f"{choice.name}: {EPOCHS * steps} steps of {seconds:.2f} s"


def main(options: Options) -> None:
    claim(options.output, options.facts())
    chosen = [choice for choice in CHOICES if not options.only or choice.name in options.only]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for line in pool.map(train_and_score, chosen, [options] * len(chosen)):
            print(line, flush=True)
    rows = read_rows([options.output / f"{choice.name.replace(' ', '_')}.csv" for choice in chosen])
    differences = [((choice.name, "pass 2"), (CHOICES[0].name, "pass 2")) for choice in CHOICES[1:]]
    report(options.output, rows, table(rows, differences))


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    try:
        main(tyro.cli(Options))
    except (ValueError, OSError) as error:
        sys.exit(f"screen.py: {error}")
