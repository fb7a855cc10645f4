"""Pictures for people: a case's overlay, and contact sheets of a cohort."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.patches import Patch

from multipass.geometry.labelmaps import voxel_counts
from multipass.geometry.volume import Volume
from multipass.results.planes import INK, Plane, Rgb, draw, planes_through, unit_rgb
from multipass.structures import Structure

BONE_WINDOW_HU = (-250.0, 1000.0)
PAPER, WARNING = "#101214", "#ffb454"
PATIENTS_A_PAGE = 8
SHEET_COLUMNS = 2
LEGEND_COLUMNS = 6


@dataclass(frozen=True)
class SheetEntry:
    """A patient on a contact sheet; no planes for one that failed."""

    name: str
    text: str
    planes: tuple[Plane, ...] = ()
    colours: tuple[Rgb, ...] = ()
    warn: bool = False


def overlay(
    path: Path,
    volume: Volume,
    mask: np.ndarray,
    structures: Sequence[Structure],
    title: str,
    flags: Sequence[str] = (),
    reference: np.ndarray | None = None,
) -> None:
    """Writes three planes of a case with its mask, and the reference as dashed white lines.

    Args:
        volume: upright CT in HU.
        mask: its label map; value 1 + k is `structures[k]`.
        flags: written under the title in the warning colour.
        reference: a label map on the same grid.
    """
    planes = planes_through(volume.array, mask, volume.grid.spacing_mm, reference)
    widths = [plane.size_mm[0] for plane in planes]
    tallest = max(plane.size_mm[1] for plane in planes)
    legend_rows = -(-(len(structures) + 1) // LEGEND_COLUMNS)
    below = 0.2 + 0.25 * legend_rows
    height = min(14.0, max(4.0, 13.6 * tallest / sum(widths))) + 0.95 + below
    figure = Figure(figsize=(14, height), facecolor=PAPER, dpi=100)
    grid = {"left": 0.01, "right": 0.99, "wspace": 0.03, "top": 1 - 0.9 / height}
    axes = figure.subplots(
        1, 3, width_ratios=widths, gridspec_kw={**grid, "bottom": below / height}
    )
    colours = [unit_rgb(s.colour) for s in structures]
    for ax, plane in zip(axes, planes, strict=True):
        draw(ax, plane, BONE_WINDOW_HU, colours)
    figure.text(0.012, 1 - 0.3 / height, literal(title), color=INK, size=14, va="center")
    warning = "\n".join(wrap("; ".join(flags), 175, max_lines=2))
    figure.text(0.012, 1 - 0.65 / height, literal(warning), color=WARNING, size=10, va="center")
    handles = _legend(structures, mask, reference is not None)
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=min(len(handles), LEGEND_COLUMNS),
        frameon=False,
        labelcolor=INK,
    )
    _save(figure, path)


def sheet_entry(patient: dict, text: str, warn: bool = False) -> SheetEntry:
    """The contact sheet's entry of a patient file: its pelvis window with labels, and a line."""
    planes = planes_through(patient["image"], patient["label"], patient["window"]["spacing_mm"])
    colours = tuple(unit_rgb(s["colour"]) for s in patient["structures"])
    return SheetEntry(patient["patient_id"], text, planes, colours, warn)


def cohort_sheet(path: Path, entries: Iterable[SheetEntry]) -> list[Path]:
    """Writes contact sheets of eight patients a page: `path`, then `<stem>_2.png` and so on.

    Entries are drawn page by page, so that a generator keeps memory bounded. No entries: no page.
    """
    entries = iter(entries)
    pages: list[Path] = []
    while chunk := list(islice(entries, PATIENTS_A_PAGE)):
        name = path.name if not pages else f"{path.stem}_{len(pages) + 1}{path.suffix}"
        pages.append(path.with_name(name))
        _draw_page(pages[-1], chunk)
    return pages


def literal(text: str) -> str:
    """Text whose dollar signs matplotlib takes for dollar signs."""
    return text.replace("$", r"\$")


def _draw_page(path: Path, entries: Sequence[SheetEntry]) -> None:
    columns = min(SHEET_COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    figure = Figure(figsize=(9 * columns, 3.4 * rows), facecolor=PAPER, dpi=80)
    cells = figure.add_gridspec(
        rows, columns, left=0.01, right=0.99, top=0.99, bottom=0.01, hspace=0.04, wspace=0.02
    )
    for number, entry in enumerate(entries):
        cell = GridSpecFromSubplotSpec(
            2,
            3,
            cells[number // columns, number % columns],
            height_ratios=[1, 9],
            width_ratios=[plane.size_mm[0] for plane in entry.planes] or [1, 1, 1],
            wspace=0.03,
            hspace=0.02,
        )
        head = figure.add_subplot(cell[0, :])
        head.axis("off")
        colour = WARNING if entry.warn or not entry.planes else INK
        line = literal(f"{entry.name}   {entry.text}")
        head.text(0, 0.3, line, color=colour, size=9, wrap=True)
        for k, plane in enumerate(entry.planes):
            draw(figure.add_subplot(cell[1, k]), plane, (0.0, 1.0), entry.colours)
    _save(figure, path)


def _legend(structures: Sequence[Structure], mask: np.ndarray, with_reference: bool) -> list[Patch]:
    handles = []
    counts = voxel_counts(mask, len(structures))
    for structure, found in zip(structures, counts[1:], strict=True):
        name = literal(structure.name)
        label = name if found else f"{name} (not found)"
        handles.append(Patch(color=unit_rgb(structure.colour), label=label))
    if with_reference:
        handles.append(Patch(edgecolor="white", facecolor="none", ls="--", label="reference"))
    return handles


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, facecolor=figure.get_facecolor())
