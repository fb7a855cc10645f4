"""Train the multi-pass network on patient files.

    python training.py                                  # processed_files/ -> best_model.pth
    python training.py --epochs 50 --batch-size 4
    python training.py --folds 5 --fold 2 --output fold2
    python training.py --resume                         # go on after an interruption
    python training.py --init inference_pipeline/best_model.pth --epochs 30     # fine-tune
    torchrun --nproc_per_node=2 training.py --batch-size 2
    tensorboard --logdir runs

Every pass is the same network: the first sees the whole scan, the next looks closer at the pelvis,
given what the one before found. The loss is taken on every pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from multipass import startup

startup.settle(__name__)

from multipass.terminal import limit_threads, options_of, short

ROOT = Path(__file__).resolve().parent
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Options:
    """What a run depends on."""

    data: Annotated[Path, short("-i")] = ROOT / "processed_files" / "complete_dataset.pkl"
    """complete_dataset.pkl, or the folder of patient files, which is then streamed"""
    dicom: Path = ROOT / "ctpel"
    """what processing.py read: the validation patients' scans, for the table at the end"""
    structures: Path | None = None
    """JSON file of a site's own segment names, if processing.py was given one"""
    output: Annotated[Path, short("-o")] = ROOT
    """where best_model.pth, last.pth and runs/ go"""
    name: str = ""
    """of the run: runs/<name>/; date and time if not given"""
    epochs: int = 300
    """rounds over the training patients; with --minutes, whichever ends first"""
    steps_per_epoch: int = 0
    """batches an epoch; 0: each patient once, and at least 20 batches"""
    minutes: float = 0.0
    """stop training after this time (scoring at the end comes on top); the cosine schedule follows
    the clock; 0: all epochs"""
    batch_size: int = 0
    """over all processes of torchrun; 0: one each"""
    lr: float = 0.0
    """peak of the learning rate; 0: 5e-3, and 1e-3 with --init"""
    weight_decay: float = 1e-2
    """of the weights, times the learning rate"""
    schedule: Literal["cosine", "plateau"] = "cosine"
    """learning rate: falls over the whole run, or is cut when validation stands still"""
    coarse: float | None = None
    """first part of the training, on windows of half the resolution, where steps take a fraction of
    the time; validation is always at full resolution, so that its Dice jumps when that part ends;
    0.5 if not given, and 0 with --init"""
    augmentation: float = 1.0
    """strength; less of it fits sooner, which is what a run of minutes needs; 0: mirror, fields of
    view and displaced boxes alone"""
    ema: float = 0.999
    """decay of the weight average, which is what is validated and saved"""
    # network.FILTERS, which would import torch too early
    filters: tuple[int, int, int, int] = (32, 64, 128, 256)
    """channels of the network's levels"""
    passes: int = 3
    """how often the network looks at a scan"""
    window: Literal["pelvis", "scan"] = "pelvis"
    """what the passes after the first see: the pelvis, then parts of it; or the whole scan again"""
    folds: int = 5
    """1/folds of the patients validate"""
    fold: int = 0
    """which part validates, 0 to folds - 1"""
    seed: int = 0
    """of weights, order and augmentation"""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes CUDA where there is one, a device for each of torchrun's
    processes"""
    threads: int | None = None
    """CPU threads at most, of each process; as many as there are cores by default"""
    resume: bool = False
    """go on from OUTPUT/last.pth if there is one"""
    init: Path | None = None
    """checkpoint to start from; structures are matched by their codes. It stays the best model
    until the training does better on the validation patients"""
    follow: bool = False
    """before each epoch take in the patients that have appeared in the folder of --data"""
    preview: bool = False
    """write OUTPUT/preview.png, a sheet of augmented samples, and stop"""

    @property
    def windows(self) -> tuple[str, ...]:
        """What each pass sees."""
        if self.window == "scan":
            return ("scan",) * self.passes
        return ("scan", "pelvis", *["parts"] * (self.passes - 2))[: self.passes]

    @property
    def plan(self) -> Plan:
        """Of its length, learning rate and windows."""
        length = self.epochs, self.minutes
        return Plan(*length, self.lr, self.schedule, self.coarse or 0.0)


if __name__ == "__main__":
    # Before numpy and torch are imported: they count threads then, and help need not wait for them.
    OPTIONS = options_of(Options, __doc__, "--data")
    limit_threads(OPTIONS.threads)

import numpy as np
import torch
from tqdm import tqdm

from multipass.data.cohort import Cohort
from multipass.model import checkpoint
from multipass.model.passes import precision, run
from multipass.site_rules import read_rules
from multipass.training.batches import Batch, Batches
from multipass.training.beforehand import complete, parted
from multipass.training.beginning import begin, describe
from multipass.training.final_scores import final_scores
from multipass.training.keeper import Keeper
from multipass.training.loss import hard_dice, soft_loss, without_extra
from multipass.training.plan import Plan
from multipass.training.processes import (
    average_gradients,
    claimed_by_first,
    mean_over_processes,
    rank,
    say,
    start_processes,
    stop_processes,
)
from multipass.training.runlog import preview
from multipass.training.state import State, check_finite
from multipass.training.validation import Validation, validate

# All that is learnt from a batch; its loss and Dice.
Step = Callable[[State, Batch], tuple[torch.Tensor, torch.Tensor]]


def main(options: Options) -> int:
    device = start_processes(options.device)
    options = complete(options)
    with claimed_by_first(options.output):
        code = train(options, device)
    stop_processes()
    return code


def train(options: Options, device: torch.device) -> int:
    """The run from the patient files to the table of scores; returns the exit code."""
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    cohort = Cohort(options.data)
    train_ids, val_ids = parted(cohort, options.folds, options.fold)
    batches = Batches(
        cohort, train_ids, options.windows, options.batch_size, options.seed, device,
        options.steps_per_epoch, options.augmentation,
    )  # fmt: skip
    if options.preview:
        pages = preview(batches, options.output / "preview.png")
        say(f"Augmented samples: {', '.join(map(str, pages))}")
        return 0
    origin = describe(options, cohort, train_ids, val_ids)
    state, log = begin(options, cohort, origin, device)
    say(
        f"{len(train_ids)} patients train, {len(val_ids)} validate, on {device.type}; "
        f"structures: {', '.join(s.name for s in cohort.structures)}."
    )
    keeper = Keeper(options.output, cohort.structures, options.windows, origin, log)
    validation = Validation(cohort, options.windows, device)
    train_epochs(options, state, batches, validation, val_ids, keeper)
    if log and state.best < 0:
        raise ValueError("no validation patient has an annotated structure: no model to choose.")
    say(f"Best validation Dice {state.best:.4f} after {state.epoch} epochs.")
    return evaluate(options, cohort, val_ids, log.folder, device) if log else 0


def train_epochs(
    options: Options,
    state: State,
    batches: Batches,
    validation: Validation,
    val_ids: list[str],
    keeper: Keeper,
) -> None:
    """Epoch after epoch, each validated, until the plan is done."""
    plan, amp = options.plan, precision(batches.device)
    step = partial(learn, passes=options.passes, amp=amp)
    if options.init and state.epoch == 0:
        scores = validate(state.averaged_network, validation, val_ids, amp)
        before = float(np.nanmean(scores[:, -1]))
        say(f"Validation Dice before training {before:.4f}.")
        keeper.keep(state, before)
    while not plan.is_over(state):
        if options.follow:
            batches.ids += batches.cohort.grow()
        loss, dice = train_epoch(state, batches, plan, step)
        scores = validate(state.averaged_network, validation, val_ids, amp)
        keeper.record(state, loss, dice, scores)
        validated = state.history[-1]["dice"]
        plan.judge(state, validated)
        if keeper.keep(state, validated):
            keeper.show(state, validation.batches(val_ids[0])[-1], amp)


def train_epoch(state: State, batches: Batches, plan: Plan, step: Step) -> tuple[float, float]:
    """One epoch; returns its average loss and Dice."""
    losses, dices = [], []

    def done(number: int) -> float:
        return plan.done(state, number / batches.steps)

    made = batches.epoch(state.epoch, lambda number: plan.window_size(done(number)))
    bar = tqdm(
        made, f"epoch {state.epoch + 1}", batches.steps,
        leave=False, unit="batch", disable=rank() > 0,
    )  # fmt: skip
    for number, batch in enumerate(bar):
        plan.set_lr(state, done(number))
        loss, dice = state.lap(*step(state, batch))
        check_finite(state, "loss", loss)
        losses.append(loss)
        dices.append(dice)
        bar.set_postfix(loss=f"{loss:.3f}", dice=f"{dice:.3f}")
        if plan.out_of_time(state):
            break
    bar.close()
    return float(np.mean(losses)), float(np.nanmean(dices))


def learn(
    state: State, batch: Batch, passes: int, amp: torch.autocast
) -> tuple[torch.Tensor, torch.Tensor]:
    """All passes over one batch, or the first; returns their mean loss and the last one's Dice."""
    summed = torch.zeros((), device=batch.known.device)
    if mean_over_processes(summed.new_tensor([batch.stops])).item() == 1:  # all take as many steps
        passes = 1
    for k, logits in enumerate(run(state.network, batch.views, passes, amp, batch.hand_on)):
        loss = soft_loss(logits, batch.target(k), batch.known)
        descend(state, loss)
        summed += loss.detach() / passes
    state.average.update_parameters(state.network)
    found, classes = state.network.merged(logits), state.network.classes
    target, known = without_extra(batch.target(k), classes), batch.known[:, : classes - 1]
    dice = hard_dice(found, target, known).nanmean()
    return summed, dice.to(summed)


def descend(state: State, loss: torch.Tensor) -> None:
    """One step of the optimizer. Each pass takes its own: the context carries no gradient, so that
    a pass need not wait for the next, and a step more costs next to nothing."""
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(loss).backward()
    # Before they are unscaled: so that all processes see an overflow, and leave out the same step.
    average_gradients(state.network)
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), MAX_GRADIENT_NORM)
    if not state.scaler.is_enabled():
        check_finite(state, "gradient", norm.item())
    state.scaler.step(state.optimizer)
    state.scaler.update()


def evaluate(
    options: Options, cohort: Cohort, ids: list[str], folder: Path, device: torch.device
) -> int:
    """Scores best_model.pth on the scans' own grids; returns the exit code."""
    best = options.output / "best_model.pth"
    rules = read_rules(options.structures)
    scores = final_scores(checkpoint.load(best, device), cohort, ids, options.dicom, rules)
    scores.write(folder)
    print(*scores.lines(), sep="\n")
    print(f"To segment with it:\npython inference_pipeline/run_inference.py --model {best}")
    return 1 if scores.failed else 0


if __name__ == "__main__":
    stopped = "Interrupted. `--resume` goes on after the last finished epoch."
    startup.finish(main, OPTIONS, stopped)
