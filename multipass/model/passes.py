"""Passes through windows: one function, called once a pass, in training and in inference.

A `View` is what a pass sees: the image in a window and where the window lies. Each pass gets the
class probabilities of the pass before, resampled from its window into the new one, as context.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from multipass.geometry.volume import Grid, Volume
from multipass.geometry.windows import (
    PART_VOXEL_MM,
    body_box,
    close_windows,
    part_windows,
    scan_windows,
    window_image,
)
from multipass.model.checkpoint import Model
from multipass.model.evidence import finds_nothing, found_in, is_background, nothing_in
from multipass.model.maps import ClassMaps, PassResult
from multipass.model.network import Maps, MultiPassUNet
from multipass.model.resampling import between, blended_maps
from multipass.model.sides import on_own_sides

LOST = "pass {1} saw {0:.0f} mL where pass {2} did not look"
# Specks that a pass sees elsewhere in a body are smaller than a bone's part that is missed.
OUTSIDE_ML = 5.0

# From a pass's index and what it found in its window to what the next pass is told.
HandOn = Callable[[int, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class View:
    """A window of each scan of a batch.

    Attributes:
        image: (N, 1, X, Y, Z) in [0, 1].
        box: (N, 2, 3) float64 on the CPU, lower and upper edges in mm.
    """

    image: torch.Tensor
    box: torch.Tensor


def chosen_device(name: str) -> torch.device:
    """The device called 'cpu', 'cuda' or 'cuda:N'; for 'auto' CUDA where there is one.

    Raises:
        ValueError: there is no such device.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device {name}: auto, cpu, cuda or cuda:N with a number N is needed")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device {name}: {count} CUDA devices are found here; cpu always works")
    return device


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
    hand_on: HandOn | None = None,
) -> Iterator[torch.Tensor]:
    """Runs passes over windows that are known beforehand, and yields each pass's logits.

    Pass k looks at views[k], or at the last view if there are fewer. The context carries no
    gradient, so that each pass's loss can go backward before the next pass starts.

    Args:
        hand_on: makes each context (training); what was found without one.
    """
    context = blank(network, views[0].image)
    for index in range(passes):
        view, following = (views[min(i, len(views) - 1)] for i in (index, index + 1))
        with amp:
            logits = network(view.image, context, index)
        yield logits
        if index + 1 < passes:
            maps = torch.softmax(network.merged(logits.detach()).float(), 1)
            context = between(hand_on(index, maps) if hand_on else maps, view.box, following.box)


def blank(network: MultiPassUNet, image: torch.Tensor) -> torch.Tensor:
    """The context of a pass that has none before it."""
    return image.new_zeros((len(image), network.classes, *image.shape[2:]))


@torch.inference_mode()
def segment(
    model: Model,
    volume: Volume,
    passes: int | None = None,
    keep_all: bool = False,
    part_voxel_mm: float = PART_VOXEL_MM,
) -> list[PassResult]:
    """Runs the passes over a scan: the first over its scan windows, the next over those on the
    pelvis, a third over parts of it. The first pass that finds nothing is the last that looks.

    Args:
        volume: upright CT in HU.
        passes: as many as the model has windows if None; those beyond them look at the last ones.
        keep_all: the maps of all passes; else of the first and the last two, to bound memory.
        part_voxel_mm: of a third pass's windows at most, see `part_windows`.

    Returns:
        One result a pass; those not kept have neither windows nor maps. From the pass on that found
        nothing, all are `nothing_in` its windows.
    """
    last = len(model.windows) - 1
    kinds = [model.windows[min(k, last)] for k in range(passes or len(model.windows))]
    windows = scan_windows(body_box(volume))
    flags: list[str] = []
    results: list[PassResult] = []
    before: PassResult | None = None
    for index, kind in enumerate(kinds):
        seen = look_through(model, volume, windows, before, flags, index, kind == "parts")
        following = kinds[index + 1] if index + 1 < len(kinds) else kind
        found = found_in(seen, volume.grid.box_mm()) if following != kind else None
        if finds_nothing(seen) or (following != kind and found is None):
            return results + [nothing_in(seen)] * (len(kinds) - index)
        results.append(on_own_sides(seen, model.structures))
        # A part shows too little of a body to tell sides in: it takes them from its context.
        before = results[-1] if following == "parts" else seen
        if index > 2 and not keep_all:
            results[-3] = replace(results[-3], windows=[], probabilities=[])
        if found is not None:
            windows = _windows(following, found.box_mm, part_voxel_mm)
            lost = LOST.format(found.lost_ml, index + 1, index + 2)
            flags = [lost] if found.lost_ml >= OUTSIDE_ML else []
    return results


def _windows(kind: str, box_mm: np.ndarray, part_voxel_mm: float) -> list[Grid]:
    return part_windows(box_mm, part_voxel_mm) if kind == "parts" else close_windows(box_mm)


def look_through(
    model: Model,
    volume: Volume,
    windows: list[Grid],
    before: PassResult | None,
    flags: list[str],
    pass_index: int = 0,
    in_parts: bool = False,
) -> PassResult:
    """One pass over one or several windows of a scan, window by window to bound memory.

    Args:
        in_parts: a window in which the pass before is sure of background gets that pass's maps.
    """
    device = next(model.network.parameters()).device
    found = []
    for window in windows:
        context = None if before is None else context_of(before, window, device)
        with precision(device):
            if in_parts and before is not None and is_background(before, window.box_mm()):
                probability = carried_over(before, window, device)
            else:
                image = torch.as_tensor(window_image(volume, window, model.hu_range), device=device)
                seen = image[None, None].float().contiguous()
                probability = model.network.look(seen, context, pass_index)
            maps = (probability(c).half().cpu().numpy() for c in range(model.network.classes))
            found.append(ClassMaps(maps))
    # What was told of the sides is not known better for being said again.
    unsure = before.unsure_sides if in_parts and before is not None else ()
    return PassResult(windows, found, flags, unsure)


def context_of(before: PassResult, window: Grid, device: torch.device) -> Maps:
    """The pass before, resampled into a window, class by class; in float32, as in training."""
    return blended_maps(before.windows, before.probabilities, window, device)


def carried_over(before: PassResult, window: Grid, device: torch.device) -> Maps:
    """The pass before, resampled into a window, as a result: background where it did not look."""
    context = context_of(before, window, device)

    def of_class(c: int) -> torch.Tensor:
        if c:
            return context(c)
        bones = (context(k) for k in range(1, len(before.probabilities[0])))
        return 1 - sum(bones, torch.zeros(window.size, device=device))

    return of_class
