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

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from multipass import startup

startup.settle(__name__)

from multipass.terminal import limit_threads, options_of, short

ROOT = Path(__file__).resolve().parent
MAX_GRADIENT_NORM = 1.0
COARSE = 0.5
LR, FINE_TUNING_LR = 5e-3, 1e-3
# Must be the same in an interrupted run and its continuation.
SETTINGS = (
    *("seed", "passes", "window", "folds", "fold", "batch_size", "epochs", "steps_per_epoch"),
    *("minutes", "filters", "lr", "weight_decay", "schedule", "coarse", "augmentation", "ema"),
)


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
    """strength; less of it fits sooner, which is what a run of minutes needs; 0: mirror alone"""
    ema: float = 0.999
    """decay of the weight average, which is what is validated and saved"""
    filters: tuple[int, int, int, int] = (
        32,
        64,
        128,
        256,
    )  # network.FILTERS, which would import torch too early
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


if __name__ == "__main__":
    # Before numpy and torch are imported: they count threads then, and help need not wait for them.
    OPTIONS = options_of(Options, __doc__, "--data")
    limit_threads(OPTIONS.threads)

import numpy as np
import torch
from tqdm import tqdm

from multipass.data.cohort import Cohort
from multipass.geometry.windows import COARSE_GRID_SIZE, GRID_SIZE, HU_RANGE
from multipass.model import checkpoint
from multipass.model.network import MultiPassUNet
from multipass.model.passes import precision, run
from multipass.structures import read_rules
from multipass.training.batches import Batch, Batches, Validation
from multipass.training.beforehand import check_annotations, check_options
from multipass.training.final_scores import final_scores
from multipass.training.loss import hard_dice, soft_loss, without_extra
from multipass.training.optimizer import Muon
from multipass.training.processes import (
    average_gradients,
    claimed_by_first,
    rank,
    start_processes,
    stop_processes,
    world_size,
)
from multipass.training.runlog import RunLog, preview
from multipass.training.trainer import State, cosine, resume, start_from, validate


def main(options: Options) -> int:
    device = start_processes(options.device)
    options = complete(options)
    with claimed_by_first(options.output):
        code = train(options, device)
    stop_processes()
    return code


def train(options: Options, device: torch.device) -> int:
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True

    cohort = Cohort(options.data)
    for file in cohort.left_out:
        say(f"Left out: {file}, which the last run of processing.py did not make.")
    train_ids, val_ids = cohort.split(options.folds, options.fold)
    for sentence in check_annotations(cohort, train_ids, val_ids):
        say(sentence)
    batches = Batches(
        cohort,
        train_ids,
        options.windows,
        options.batch_size,
        options.seed,
        device,
        options.steps_per_epoch,
        options.augmentation,
    )
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
    amp = precision(device)
    validation = Validation(cohort, options.windows, device)
    if options.init and state.epoch == 0:
        scores = validate(state, validation, val_ids, amp)
        before = float(np.nanmean(scores[:, -1]))
        say(f"Validation Dice before training {before:.4f}.")
        if log:
            keep(state, before, cohort, options, origin)
    while state.epoch < options.epochs and not out_of_time(state, options):
        if options.follow:
            batches.ids += cohort.grow()
        loss, dice = train_epoch(state, batches, options, amp)
        scores = validate(state, validation, val_ids, amp)
        record(state, loss, dice, scores, cohort)
        # In the coarse part validation, on whole windows, stands still while the network learns.
        if options.schedule == "plateau" and progress(state, 0, options) > (options.coarse or 0):
            state.plateau.step(state.history[-1]["dice"])
        if log:
            better = keep(state, state.history[-1]["dice"], cohort, options, origin)
            log.write(state.history, cohort.structures)
            if better:
                batch = validation.batches(val_ids[0])[-1]
                log.show(state.average.network, batch, options.passes, cohort.structures, amp)
    if log and state.best < 0:
        raise ValueError("no validation patient has an annotated structure: no model to choose.")
    say(f"Best validation Dice {state.best:.4f} after {state.epoch} epochs.")
    return evaluate(options, cohort, val_ids, log.folder, device) if log else 0


def describe(options: Options, cohort: Cohort, train_ids: list[str], val_ids: list[str]) -> dict:
    """What the run is, for last.pth and runs/<name>/."""
    data_sha256 = cohort.sha256()
    settings = {k: getattr(options, k) for k in SETTINGS} | {"optimizer": Muon.__name__}
    settings |= {"data_sha256": data_sha256, "validation": ", ".join(val_ids)}
    return {
        "name": options.name or time.strftime("%Y-%m-%d_%H-%M-%S"),
        "settings": settings,
        "trained_on": {
            "patients": len(train_ids),
            "training": train_ids,
            "validation": val_ids,
            "data_sha256": data_sha256,
        },
    }


def begin(
    options: Options, cohort: Cohort, origin: dict, device: torch.device
) -> tuple[State, RunLog | None]:
    """The state to train from, new or resumed, and the first process's log.

    A resumed run keeps its name: `origin` gets it.
    """
    classes, extra = 1 + len(cohort.structures), len(cohort.extra)
    network = MultiPassUNet(classes, options.filters, options.passes, extra).to(device)
    if options.init:
        new = start_from(network, cohort.structures, options.init)
        say(f"Weights of {options.init}; new structures: {', '.join(new) or 'none'}.")
    state = State(network, options.lr, options.weight_decay, options.ema, device)
    last = options.output / "last.pth"
    if options.resume and (name := resume(state, last, origin["settings"])):
        origin["name"] = name
        say(f"Going on after epoch {state.epoch} of run {name}.")
    elif options.resume:
        say(f"Nothing to go on with: there is no {last}. A new run starts.")
    if rank() > 0:
        return state, None
    facts = {**origin, "options": asdict(options), "device": str(device)}
    facts["versions"] = checkpoint.versions()
    return state, RunLog(options.output / "runs" / origin["name"], facts, state.epoch)


def train_epoch(
    state: State, batches: Batches, options: Options, amp: torch.autocast
) -> tuple[float, float]:
    """One epoch; returns its average loss and Dice."""
    losses, dices = [], []

    def done(step: int) -> float:
        return progress(state, step / batches.steps, options)

    made = batches.epoch(state.epoch, lambda step: window_size(done(step), options))
    bar = tqdm(
        made, f"epoch {state.epoch + 1}", batches.steps,
        leave=False, unit="batch", disable=rank() > 0,
    )  # fmt: skip
    for step, batch in enumerate(bar):
        if options.schedule == "cosine":
            state.lr = options.lr * cosine(done(step))
        total, dice = state.lap(*learn(state, batch, options.passes, amp))
        check_finite(state, "loss", total)
        losses.append(total)
        dices.append(dice)
        bar.set_postfix(loss=f"{total:.3f}", dice=f"{dice:.3f}")
        if out_of_time(state, options):
            break
    bar.close()
    return float(np.mean(losses)), float(np.nanmean(dices))


def learn(
    state: State, batch: Batch, passes: int, amp: torch.autocast
) -> tuple[torch.Tensor, torch.Tensor]:
    """All passes over one batch; returns their mean loss and the last one's Dice."""
    summed = torch.zeros((), device=batch.known.device)
    for k, logits in enumerate(run(state.network, batch.views, passes, amp, batch.hand_on)):
        loss = soft_loss(logits, batch.target(k), batch.known)
        descend(state, loss)
        summed += loss.detach() / passes
    state.average.update(state.network)
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


def check_finite(state: State, what: str, value: float) -> None:
    if not math.isfinite(value):
        saved = state.epoch > 0 or state.best >= 0
        kept = "; best_model.pth and last.pth hold the last good weights" if saved else ""
        raise ValueError(
            f"the {what} became {value} in epoch {state.epoch + 1}{kept}. A lower --lr may help."
        )


def progress(state: State, part_of_epoch: float, options: Options) -> float:
    """The part of the training that is done, by epochs or by the clock, whichever is further."""
    by_clock = state.seconds / 60 / options.minutes if options.minutes else 0.0
    return max((state.epoch + part_of_epoch) / options.epochs, by_clock)


def window_size(done: float, options: Options) -> tuple[int, int, int]:
    """Voxels of the windows when this part of the training is done."""
    return COARSE_GRID_SIZE if done < (options.coarse or 0) else GRID_SIZE


def out_of_time(state: State, options: Options) -> bool:
    return bool(options.minutes) and state.seconds >= 60 * options.minutes


def record(state: State, loss: float, dice: float, scores: np.ndarray, cohort: Cohort) -> None:
    """Ends the epoch: adds it to the history and prints its line."""
    state.epoch += 1
    by_pass = np.nanmean(scores, axis=(0, 2)).tolist()
    row: dict[str, Any] = {"epoch": state.epoch, "lr": state.lr, "seconds": state.seconds}
    row |= {"train_loss": loss, "train_dice": dice, "dice": by_pass[-1]}
    row |= {f"dice_pass{k}": value for k, value in enumerate(by_pass, start=1)}
    for k, of_pass in enumerate(np.nanmean(scores, axis=0).tolist(), start=1):
        for structure, value in zip(cohort.structures, of_pass, strict=True):
            row[f"dice_pass{k}_{structure.name}"] = value
    state.history.append(row)
    say(
        f"epoch {state.epoch}: training loss {loss:.4f}, Dice {dice:.4f}; validation Dice "
        f"{by_pass[-1]:.4f} (by pass {', '.join(f'{d:.4f}' for d in by_pass)}); "
        f"lr {state.lr:.1e}, {state.seconds:.0f} s"
    )


def keep(state: State, dice: float, cohort: Cohort, options: Options, origin: dict) -> bool:
    """Writes last.pth, and best_model.pth if this validation Dice is the best so far; says whether
    it is."""
    model = checkpoint.Model(
        network=state.average.network,
        structures=cohort.structures,
        hu_range=HU_RANGE,
        windows=options.windows,
        info={"dice": dice, "trained_on": origin["trained_on"]},
    )
    content = checkpoint.as_dict(model)
    if state.epoch <= 1 and state.best < 0:
        for name in ("best_model.pth", "last.pth"):
            if kept := checkpoint.set_aside(options.output / name):
                say(f"{name} of an earlier run is now {kept.name}.")
    better = dice > state.best
    if better:
        path = options.output / "best_model.pth"
        checkpoint.save(path, content)
        say(f"best_model.pth: Dice {max(state.best, 0):.4f} -> {dice:.4f} ({path})")
        state.best = dice
    content["training"] = {**origin, "state": state.state_dict()}
    checkpoint.save(options.output / "last.pth", content)
    return better


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


def complete(options: Options) -> Options:
    """Fills in the options that follow from others.

    Raises:
        ValueError: options that make no sense together.
    """
    check_options(options)
    coarse = options.coarse
    if coarse is None:
        coarse = 0.0 if options.init else COARSE
    lr = options.lr or (FINE_TUNING_LR if options.init else LR)
    batch_size = options.batch_size or world_size()
    options = replace(options, batch_size=batch_size, coarse=coarse, lr=lr)
    read_rules(options.structures)
    if options.batch_size % world_size():
        raise ValueError(
            f"--batch-size {options.batch_size} does not divide among {world_size()} processes."
        )
    if (options.output / "best_model.pth.sha256").exists():
        raise ValueError(f"{options.output} holds a published network; give another --output.")
    return options


def say(text: str) -> None:
    if rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    stopped = "Interrupted. `--resume` goes on after the last finished epoch."
    startup.finish(main, OPTIONS, stopped)
