"""Train the multi-pass network on patient files.

    python training.py                                  # processed_files/ -> best_model.pth
    python training.py --epochs 50 --batch-size 4
    python training.py --folds 5 --fold 2 --output fold2
    python training.py --resume                         # go on after an interruption

Every pass is the same network: the first sees the whole scan, the next looks closer at the pelvis,
given what the one before found. The loss is taken on every pass.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from multipass import checkpoint
from multipass.cohort import Cohort
from multipass.loss import hard_dice, soft_loss
from multipass.network import MultiPassUNet
from multipass.passes import precision, run
from multipass.trainer import (
    Average,
    Batches,
    average_gradients,
    cosine,
    mean_over_processes,
    rank,
    start_processes,
    validate,
)
from multipass.windows import HU_RANGE

ROOT = Path(__file__).resolve().parent
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Options:
    """Trains the network and keeps the best by validation Dice as best_model.pth."""

    data: Path = ROOT / "processed_files" / "complete_dataset.pkl"
    """complete_dataset.pkl, or the folder of patient files, which is then streamed"""
    output: Path = ROOT
    """where best_model.pth and last.pth go"""
    epochs: int = 300
    batch_size: int = 1
    """over all processes of torchrun"""
    steps_per_epoch: int = 0
    """0: each patient once"""
    minutes: float = 0.0
    """stop after this much time and let the cosine schedule follow the clock; 0: all epochs"""
    lr: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["cosine", "plateau"] = "cosine"
    ema: float = 0.999
    """decay of the weight average that is validated and saved"""
    passes: int = 2
    window: Literal["pelvis", "scan"] = "pelvis"
    """what passes after the first see"""
    folds: int = 5
    fold: int = 0
    """this part of the patients validates"""
    seed: int = 0


def main(options: Options) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start_processes(device)
    torch.manual_seed(options.seed)
    cohort = Cohort(options.data)
    train_ids, val_ids = cohort.split(options.folds, options.fold)
    windows = ("scan", "pelvis")[: options.passes] if options.window == "pelvis" else ("scan",)
    batches = Batches(
        cohort, train_ids, windows, options.batch_size, options.seed, device,
        options.steps_per_epoch or None,
    )  # fmt: skip

    network = MultiPassUNet(classes=1 + len(cohort.structures)).to(device)
    average = Average(network, options.ema)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.lr, weight_decay=options.weight_decay
    )
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, patience=10)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    amp = precision(device)

    best, started = 0.0, time.monotonic()
    for epoch in range(options.epochs):
        losses, dices = [], []
        bar = tqdm(
            batches.epoch(epoch), total=batches.steps, desc=f"epoch {epoch + 1}", unit="batch",
            disable=rank() > 0, leave=False,
        )  # fmt: skip
        for step, batch in enumerate(bar):
            if options.schedule == "cosine":
                done = (epoch * batches.steps + step) / (options.epochs * batches.steps)
                if options.minutes:
                    done = max(done, (time.monotonic() - started) / 60 / options.minutes)
                for group in optimizer.param_groups:
                    group["lr"] = options.lr * cosine(done)

            optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), device=device)
            for k, logits in enumerate(
                run(network, batch.views, options.passes, amp, batch.disturb)
            ):
                loss = soft_loss(logits, batch.target(k), batch.known) / options.passes
                scaler.scale(loss).backward()
                total += loss.detach()
            dice = hard_dice(logits, batch.target(k), batch.known).nanmean()
            total, dice = mean_over_processes(torch.stack([total, dice.float()])).tolist()
            if not np.isfinite(total):
                raise ValueError(f"The loss became {total} in epoch {epoch + 1}: stopped.")

            scaler.unscale_(optimizer)
            average_gradients(network)
            torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
            scaler.step(optimizer)
            scaler.update()
            average.update(network)
            losses.append(total)
            dices.append(dice)
            bar.set_postfix(loss=f"{total:.3f}", dice=f"{dice:.3f}")
            if options.minutes and time.monotonic() - started > 60 * options.minutes:
                break

        val = validate(average.network, cohort, val_ids, windows, options.passes, amp, device)
        val_dice = float(np.nanmean(val[:, -1]))
        print(
            f"epoch {epoch + 1}: train loss {np.mean(losses):.4f}, Dice {np.nanmean(dices):.4f}; "
            f"validation Dice {val_dice:.4f}; lr {optimizer.param_groups[0]['lr']:.1e}; "
            f"{time.monotonic() - started:.0f} s"
        )
        if options.schedule == "plateau":
            plateau.step(val_dice)
        if val_dice > best and rank() == 0:
            path = options.output / "best_model.pth"
            model = checkpoint.Model(
                average.network, cohort.structures, HU_RANGE, options.passes,
                options.window, {"dice": val_dice, "trained_on": {"patients": len(train_ids)}},
            )  # fmt: skip
            checkpoint.save(path, checkpoint.as_dict(model))
            print(f"best_model.pth: Dice {best:.4f} -> {val_dice:.4f} ({path})")
            best = val_dice
        if options.minutes and time.monotonic() - started > 60 * options.minutes:
            break


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except ValueError as error:
        sys.exit(f"training.py: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
