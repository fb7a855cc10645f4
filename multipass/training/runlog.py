"""What a scientist sees of a run: configuration, history, curves, TensorBoard."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from multipass.files import replacing
from multipass.geometry.windows import window_over
from multipass.model.network import MultiPassUNet
from multipass.model.passes import run
from multipass.results.pictures import cohort_sheet, sheet_entry
from multipass.structures import Structure
from multipass.training.batches import Batch, Batches

PREVIEWED = 8  # samples
TINT = 0.4  # of a structure's colour over the image


class RunLog:
    """The folder of one run; each epoch rewrites its files, and so does a resumed run."""

    def __init__(self, folder: Path, config: dict[str, Any], epochs_done: int) -> None:
        self.folder, self.epoch = folder, epochs_done
        folder.mkdir(parents=True, exist_ok=True)
        self.board = SummaryWriter(str(folder), purge_step=epochs_done + 1)
        with replacing(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")

    def write(self, history: Sequence[dict[str, Any]], structures: Sequence[Structure]) -> None:
        """Writes history.csv and curves.png, and the last epoch's figures for TensorBoard."""
        last = history[-1]
        self.epoch = last["epoch"]
        with (
            replacing(self.folder / "history.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8-sig") as file,
        ):
            writer = csv.DictWriter(file, list(last))
            writer.writeheader()
            writer.writerows(history)
        for key, value in last.items():
            if key != "epoch":
                self.board.add_scalar(key, value, self.epoch)
        self.board.flush()
        draw_curves(self.folder / "curves.png", history, structures)

    @torch.no_grad()
    def show(
        self,
        network: MultiPassUNet,
        batch: Batch,
        passes: int,
        structures: Sequence[Structure],
        amp: torch.autocast,
    ) -> None:
        """Adds a picture of a validation patient: image, what was found, the reference."""
        *_, logits = run(network, batch.views, passes, amp)
        logits = network.merged(logits)
        image = batch.views[-1].image[0, 0].cpu().numpy()
        found, reference = (x[0].argmax(0).cpu().numpy() for x in (logits, batch.targets[-1]))
        colours = [s.colour for s in structures]
        pictures = [_tinted(image, labels, colours) for labels in (0 * found, found, reference)]
        picture = np.concatenate(pictures, axis=1)
        self.board.add_image("validation", picture, self.epoch, dataformats="HWC")


def _tinted(image: np.ndarray, labels: np.ndarray, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """The window's middle coronal plane, head up, labels in colour: (rows, columns, 3) uint8."""
    middle = image.shape[1] // 2
    rgb = np.repeat(image[:, middle, ::-1].T[..., None] * 255, 3, axis=2)
    plane = labels[:, middle, ::-1].T
    for k, colour in enumerate(colours, start=1):
        rgb[plane == k] = (1 - TINT) * rgb[plane == k] + TINT * np.asarray(colour)
    return rgb.clip(0, 255).astype(np.uint8)


def preview(batches: Batches, path: Path) -> list[Path]:
    """Writes contact sheets of augmented training samples: what the last pass sees, and its labels.

    Returns:
        The pages.
    """
    entries = []
    rows = [s.to_dict() for s in batches.cohort.structures]
    for number, batch in zip(range(PREVIEWED), batches.epoch(0), strict=False):
        box = batch.views[-1].box[0].numpy()
        seen = {
            "patient_id": f"sample {number + 1}",
            "image": batch.views[-1].image[0, 0].cpu().numpy(),
            "label": batch.targets[-1][0].argmax(0).cpu().numpy(),
            "window": {"spacing_mm": window_over(box).spacing_mm},
            "structures": rows,
        }
        size = " x ".join(f"{mm:.0f}" for mm in box[1] - box[0])
        entries.append(sheet_entry(seen, f"{size} mm"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return cohort_sheet(path, entries)


def draw_curves(
    path: Path, history: Sequence[dict[str, Any]], structures: Sequence[Structure]
) -> None:
    """Loss, validation Dice by pass and by structure and pass, and learning rate, over epochs."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(16, 4), layout="constrained")
    loss, passes, bones, rate = figure.subplots(1, 4)
    loss.plot(epochs, [row["train_loss"] for row in history], color="k")
    loss.set(title="training loss", xlabel="epoch", yscale="log")
    passes.plot(epochs, [row["train_dice"] for row in history], "k:", label="training, last pass")
    keys = [key for key in history[-1] if re.fullmatch(r"dice_pass\d+", key)]
    for key in keys:
        passes.plot(epochs, [row[key] for row in history], label=key.replace("dice_pass", "pass "))
        style = "-" if key == keys[-1] else ":"
        for structure in structures:
            values = [row[f"{key}_{structure.name}"] for row in history]
            label = structure.name if key == keys[-1] else None
            colour = np.divide(structure.colour, 255)
            bones.plot(epochs, values, color=colour, label=label, linestyle=style)
    passes.set(title="Dice, validation", xlabel="epoch", ylim=(0, 1))
    bones.set(title="Dice, validation (dotted: earlier passes)", xlabel="epoch", ylim=(0, 1))
    rate.plot(epochs, [row["lr"] for row in history], color="k")
    rate.set(title="learning rate", xlabel="epoch")
    for axes in (passes, bones):
        axes.legend(fontsize=8, loc="best")
    for axes in (loss, passes, bones, rate):
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_figure(str(temporary), format="png", dpi=80)
