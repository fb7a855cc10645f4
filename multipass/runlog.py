"""What a scientist sees of a run: configuration, history, curves, TensorBoard."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from multipass.batches import Batch
from multipass.patients import replacing
from multipass.structures import Structure

TINT = 0.4  # of a structure's colour over the image


class RunLog:
    """The folder of one run; each epoch rewrites its files, and so does a resumed run."""

    def __init__(self, folder: Path, config: dict[str, Any], epochs_done: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.board = SummaryWriter(str(folder), purge_step=epochs_done + 1)
        with replacing(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2, default=str) + "\n", encoding="utf-8")

    def write(self, history: Sequence[dict[str, Any]], structures: Sequence[Structure]) -> None:
        """Writes history.csv and curves.png, and the last epoch's figures for TensorBoard."""
        last = history[-1]
        with (
            replacing(self.folder / "history.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(last))
            writer.writeheader()
            writer.writerows(history)
        for key, value in last.items():
            if key != "epoch":
                self.board.add_scalar(key, value, last["epoch"])
        self.board.flush()
        draw_curves(self.folder / "curves.png", history, structures)

    def show(
        self,
        batch: Batch,
        logits: torch.Tensor,
        structures: Sequence[Structure],
        epoch: int,
        name: str,
    ) -> None:
        """Adds a picture of a validation patient: image, what was found, the reference."""
        image = batch.views[-1].image[0, 0].cpu().numpy()
        found, reference = (x[0].argmax(0).cpu().numpy() for x in (logits, batch.targets[-1]))
        colours = [s.colour for s in structures]
        pictures = [_tinted(image, labels, colours) for labels in (0 * found, found, reference)]
        picture = np.concatenate(pictures, axis=1)
        self.board.add_image(f"validation/{name}", picture, epoch, dataformats="HWC")
        self.board.flush()


def _tinted(image: np.ndarray, labels: np.ndarray, colours: Sequence[Sequence[int]]) -> np.ndarray:
    """The window's middle coronal plane, head up, labels in colour: (rows, columns, 3) uint8."""
    middle = image.shape[1] // 2
    rgb = np.repeat(image[:, middle, ::-1].T[..., None] * 255, 3, axis=2)
    plane = labels[:, middle, ::-1].T
    for k, colour in enumerate(colours, start=1):
        rgb[plane == k] = (1 - TINT) * rgb[plane == k] + TINT * np.asarray(colour)
    return rgb.clip(0, 255).astype(np.uint8)


def draw_curves(
    path: Path, history: Sequence[dict[str, Any]], structures: Sequence[Structure]
) -> None:
    """Loss, validation Dice a pass and a structure, and learning rate, over epochs."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(16, 4), layout="constrained")
    loss, passes, bones, rate = figure.subplots(1, 4)
    loss.plot(epochs, [row["train_loss"] for row in history], color="k")
    loss.set(title="training loss", xlabel="epoch", yscale="log")
    passes.plot(epochs, [row["train_dice"] for row in history], "k:", label="training, last pass")
    for key in (k for k in history[-1] if k.startswith("dice_pass")):
        passes.plot(epochs, [row[key] for row in history], label=key.removeprefix("dice_"))
    passes.set(title="Dice, validation", xlabel="epoch", ylim=(0, 1))
    for structure in structures:
        values = [row[f"dice_{structure.name}"] for row in history]
        bones.plot(epochs, values, color=np.divide(structure.colour, 255), label=structure.name)
    bones.set(title="Dice, validation, last pass", xlabel="epoch", ylim=(0, 1))
    rate.plot(epochs, [row["lr"] for row in history], color="k")
    rate.set(title="learning rate", xlabel="epoch")
    for axes in (passes, bones):
        axes.legend(fontsize=8, loc="lower right")
    for axes in (loss, passes, bones, rate):
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_figure(str(temporary), format="png", dpi=80)
