"""Passes through windows: one function, called once a pass, in training and in inference.

A `View` is what a pass sees: the image in a window and where the window lies. Each pass gets the
class probabilities of the pass before, resampled from its window into the new one, as context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from multipass.geometry.volume import Grid, Volume
from multipass.geometry.windows import (
    body_box,
    close_windows,
    joined,
    pelvis_box,
    scan_windows,
    window_image,
)
from multipass.model.checkpoint import Model
from multipass.model.maps import ClassMaps, PassResult, apply_rows, between, shared_rows
from multipass.model.network import Maps, MultiPassUNet

NOTHING = "none of the structures is in this scan"
LOST = "pass {1} saw {0:.0f} mL where pass {2} did not look"
# Specks that a pass sees elsewhere in a body are smaller than a bone's part that is missed.
OUTSIDE_ML = 5.0

Disturb = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class View:
    """A window of each scan of a batch.

    Attributes:
        image: (N, 1, X, Y, Z) in [0, 1].
        box: (N, 2, 3) float64 on the CPU, lower and upper edges in mm.
    """

    image: torch.Tensor
    box: torch.Tensor


def computed_in(device: torch.device) -> torch.dtype:
    """What convolutions compute in: fp16 on CUDA, bf16 on CPUs that can, else float32."""
    if device.type == "cuda":
        return torch.float16
    # Wheels without oneDNN, as for Apple silicon, lack the question, too.
    able = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if able else torch.float32


def precision(device: torch.device) -> torch.autocast:
    """Mixed precision, where `computed_in` has 16 bits."""
    dtype = computed_in(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def run(
    network: MultiPassUNet,
    views: Sequence[View],
    passes: int,
    amp: torch.autocast,
    disturb: Disturb | None = None,
) -> Iterator[torch.Tensor]:
    """Runs passes over windows that are known beforehand, and yields each pass's logits.

    Pass k looks at views[k], or at the last view if there are fewer. The context carries no
    gradient, so that each pass's loss can go backward before the next pass starts.

    Args:
        disturb: applied to each context (training).
    """
    context = blank(network, views[0].image)
    for index in range(passes):
        view, following = (views[min(i, len(views) - 1)] for i in (index, index + 1))
        with amp:
            logits = network(view.image, context, index)
        yield logits
        if index + 1 < passes:
            maps = torch.softmax(network.merged(logits.detach()).float(), 1)
            context = between(maps, view.box, following.box)
            if disturb is not None:
                context = disturb(context)


def blank(network: MultiPassUNet, image: torch.Tensor) -> torch.Tensor:
    """The context of a pass that has none before it."""
    return image.new_zeros((len(image), network.classes, *image.shape[2:]))


@torch.inference_mode()
def segment(
    model: Model, volume: Volume, passes: int | None = None, keep_all: bool = False
) -> list[PassResult]:
    """Runs the passes over a scan: the first over its scan windows, the next over those on the
    pelvis. The first pass that finds nothing is the last that looks.

    Args:
        volume: upright CT in HU.
        passes: as many as the model has windows if None; those beyond them look at the last ones.
        keep_all: the maps of all passes; else of the first and the last two, to bound memory.

    Returns:
        One result a pass; those not kept have neither windows nor maps. From the pass on that found
        nothing, all are `nothing_in` its windows.
    """
    last = len(model.windows) - 1
    kinds = [model.windows[min(k, last)] for k in range(passes or len(model.windows))]
    windows = scan_windows(body_box(volume))
    flags: list[str] = []
    results: list[PassResult] = []
    for index, kind in enumerate(kinds):
        before = results[-1] if results else None
        seen = look_through(model, volume, windows, before, flags, index)
        found = found_in(seen, volume.grid.box_mm())
        if found is None:
            return results + [nothing_in(seen)] * (len(kinds) - index)
        results.append(seen)
        if index > 2 and not keep_all:
            results[-3] = replace(results[-3], windows=[], probabilities=[])
        if index + 1 < len(kinds) and kinds[index + 1] != kind:
            windows = close_windows(found.box_mm)
            lost = LOST.format(found.lost_ml, index + 1, index + 2)
            flags = [lost] if found.lost_ml >= OUTSIDE_ML else []
    return results


@dataclass(frozen=True)
class Found:
    """What a pass found.

    Attributes:
        box_mm: (2, 3) around it, see `pelvis_box`.
        lost_ml: what lies outside of that box.
    """

    box_mm: np.ndarray
    lost_ml: float


def found_in(result: PassResult, limit_mm: np.ndarray) -> Found | None:
    """Where a pass found structures; None where it found none, see `pelvis_box`.

    Args:
        limit_mm: the scan's box.
    """
    maps = [1 - p[0].astype(np.float32) for p in result.probabilities]
    foreground = joined(result.windows, maps)
    box = pelvis_box(foreground, limit_mm)
    return None if box is None else Found(box, _outside_ml(foreground, box))


def nothing_in(seen: PassResult) -> PassResult:
    """A result over the same windows that says that none of the structures is there."""
    classes = len(seen.probabilities[0])
    nothing = [
        ClassMaps(np.full(window.size, float(c == 0), np.float16) for c in range(classes))
        for window in seen.windows
    ]
    return PassResult(seen.windows, nothing, [NOTHING])


def look_through(
    model: Model,
    volume: Volume,
    windows: list[Grid],
    before: PassResult | None,
    flags: list[str],
    pass_index: int = 0,
) -> PassResult:
    """One pass over one or several windows of a scan, window by window to bound memory."""
    device = next(model.network.parameters()).device
    found = []
    for window in windows:
        image = torch.as_tensor(window_image(volume, window, model.hu_range), device=device)
        context = None if before is None else context_of(before, window, device)
        with precision(device):
            probability = model.network.look(
                image[None, None].float().contiguous(), context, pass_index
            )
            maps = (probability(c).half().cpu().numpy() for c in range(model.network.classes))
            found.append(ClassMaps(maps))
    return PassResult(windows, found, flags)


def context_of(before: PassResult, window: Grid, device: torch.device) -> Maps:
    """The pass before, resampled into a window, class by class; in float32, as in training."""
    x, y, zs = shared_rows(before.windows, window.box_mm(), window.size)

    @torch.autocast(device.type, enabled=False)
    def of_class(c: int) -> torch.Tensor:
        total = torch.zeros((), device=device)
        for maps, z in zip(before.probabilities, zs, strict=True):
            one = torch.as_tensor(maps[c][None, None]).to(total)
            total = total + apply_rows(one, [x[None], y[None], z[None]])
        return total[0, 0]

    return of_class


def _outside_ml(foreground: Volume, box_mm: np.ndarray) -> float:
    """What a first pass found outside of a box, in mL."""
    grid = foreground.grid
    index = (box_mm - grid.origin_mm) / grid.spacing_mm
    low, high = np.ceil(index[0]).astype(int), np.floor(index[1]).astype(int) + 1
    found = foreground.array > 0.5
    inside = found[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))]
    return (np.count_nonzero(found) - np.count_nonzero(inside)) * grid.voxel_ml
