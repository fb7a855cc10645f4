"""How well a mask agrees with a reference: Dice, HD95, ASSD and NSD on the scan's own grid, in mm.

Rules for structures that are not there:

    reference           mask       Dice, NSD    HD95, ASSD    outcome
    absent (no segment) any        NaN          NaN           'not scored'
    empty               empty      NaN          NaN           'rightly empty'
    empty               not empty  0            NaN           'false alarm'
    not empty           empty      0            NaN           'missed'
    not empty           not empty  scored       scored        'scored'

NaN is left out of means; since a missed structure would so flatter the mean distance, every table
counts the missed ones and the false alarms beside it. A structure cut by the field of view is
compared as it is: the cut face counts as surface, in the mask and in the reference alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from multipass.evaluation.surfaces import NSD_TOLERANCES_MM, surface, surface_distances
from multipass.geometry.labelmaps import boxes_of

NSD = tuple(f"nsd_{tolerance_mm}mm" for tolerance_mm in NSD_TOLERANCES_MM)
OVERLAPS = ("dice", *NSD)  # from 0 to 1, the higher the better
DISTANCES = ("hd95_mm", "assd_mm")  # the lower the better
METRICS = ("dice", *DISTANCES, *NSD)
MEAN_OF_STRUCTURES = "mean of structures"


def compare(
    mask: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    names: Sequence[str],
    statuses: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Scores every structure of a label map against a reference on the same grid.

    Args:
        mask: (X, Y, Z) integers; 1 + k marks the structure `names[k]`.
        reference: the same, same shape.
        spacing_mm: of the three axes.
        statuses: the reference's status per structure; 'absent' ones are not scored. None: a
            structure without a voxel in the reference counts as empty.

    Returns:
        One row a structure: structure, outcome, the METRICS, volume_ml, reference_ml. Volumes are
        of the whole scan.

    Raises:
        ValueError: the shapes differ.
    """
    if mask.shape != reference.shape:
        raise ValueError(
            f"a mask of {mask.shape} voxels cannot be compared with a reference of "
            f"{reference.shape}: both must lie on the scan's own grid"
        )
    boxes = [boxes_of(array, len(names)) for array in (mask, reference)]
    rows = []
    for k, name in enumerate(names):
        status = statuses[k] if statuses is not None else None
        box = _joint_box([found[k] for found in boxes])
        pair = (mask[box] == k + 1, reference[box] == k + 1)
        rows.append({"structure": name, **compare_structure(*pair, spacing_mm, status)})
    return rows


def compare_structure(
    mask: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float], status: str | None = None
) -> dict[str, Any]:
    """Scores one structure: two boolean arrays of one shape. Rules as in the module's docstring."""
    in_mask, in_reference = int(np.count_nonzero(mask)), int(np.count_nonzero(reference))
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    nothing = dict.fromkeys(METRICS, float("nan"))
    volumes = {"volume_ml": in_mask * voxel_ml, "reference_ml": in_reference * voxel_ml}
    if status == "absent":
        return {"outcome": "not scored", **nothing, **volumes, "reference_ml": float("nan")}
    if not in_mask and not in_reference:
        return {"outcome": "rightly empty", **nothing, **volumes}
    if not in_mask or not in_reference:
        outcome = "missed" if in_reference else "false alarm"
        none_near = dict.fromkeys(OVERLAPS, 0.0)
        return {"outcome": outcome, **nothing, **none_near, **volumes}
    dice = 2 * int(np.count_nonzero(mask & reference)) / (in_mask + in_reference)
    surfaces = surface(mask, spacing_mm), surface(reference, spacing_mm)
    distances = surface_distances(*surfaces, spacing_mm)
    return {"outcome": "scored", "dice": dice, **distances, **volumes}


def bootstrap_interval(
    values: Iterable[float],
    groups: Iterable[Hashable] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean over cases; NaN values are left out.

    Args:
        groups: of each value what it shares with others, as the anatomy that several scans show:
            then whole groups are drawn, since values of one group are no independent ones. None:
            each value is drawn by itself.

    Returns:
        The lower and the upper end; (NaN, NaN) for fewer than two groups.
    """
    values = np.asarray(list(values), float)
    kept = np.isfinite(values)
    groups = range(values.size) if groups is None else groups
    owners = np.unique([str(group) for group in groups], return_inverse=True)[1][kept]
    counts = np.bincount(owners)
    sums = np.bincount(owners, values[kept])[counts > 0]
    if sums.size < 2:
        return float("nan"), float("nan")
    found = bootstrap(
        (sums, counts[counts > 0]),
        lambda drawn, number, axis: drawn.sum(axis) / number.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def table(rows: Iterable[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Cohort figures per pass and structure, from rows of `compare` with 'case' and 'pass' added,
    and 'group' where cases share what intervals are to be taken over, see `bootstrap_interval`.

    Returns:
        One row a pass and structure, then one a pass over the cases' means of their structures:
        pass, structure, cases (scored, missed or falsely alarmed), missed, false_alarms, and for
        each metric its mean over cases, `<metric>_low` and `_high` (95 % interval) and `_worst`.
    """
    rows = list(rows)
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    lines = []
    for number in passes:
        of_pass = [row for row in rows if row["pass"] == number]
        for name in structures:
            chosen = [row for row in of_pass if row["structure"] == name]
            lines.append({"pass": number, "structure": name, **_figures(chosen, chosen, seed)})
        means = _case_means(of_pass)
        lines.append(
            {"pass": number, "structure": MEAN_OF_STRUCTURES, **_figures(means, of_pass, seed)}
        )
    return lines


def _case_means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a case: the mean of each metric over the structures that have a value."""
    means = []
    for case in dict.fromkeys(row["case"] for row in rows):
        of_case = [row for row in rows if row["case"] == case]
        values = {m: _mean([row[m] for row in of_case]) for m in METRICS}
        means.append({"case": case, "group": of_case[0].get("group", case)} | values)
    return means


def _figures(
    values: list[dict[str, Any]], counted: list[dict[str, Any]], seed: int
) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "cases": sum(1 for row in values if np.isfinite(row["dice"])),
        "missed": sum(1 for row in counted if row["outcome"] == "missed"),
        "false_alarms": sum(1 for row in counted if row["outcome"] == "false alarm"),
    }
    for metric in METRICS:
        kept = [row for row in values if np.isfinite(row[metric])]
        finite = [row[metric] for row in kept]
        groups = [row.get("group", row["case"]) for row in kept]
        low, high = bootstrap_interval(finite, groups, seed)
        worst = (max if metric in DISTANCES else min)(finite, default=float("nan"))
        figures[metric] = _mean(finite)
        figures.update({f"{metric}_low": low, f"{metric}_high": high, f"{metric}_worst": worst})
    return figures


def _mean(values: list[float]) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")


def _joint_box(boxes: list[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    found = [box for box in boxes if box is not None]
    if not found:
        return (slice(0, 0),) * 3
    return tuple(
        slice(min(s.start for s in axis), max(s.stop for s in axis))
        for axis in zip(*found, strict=True)
    )
