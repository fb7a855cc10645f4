"""Tables of scores and volumes: `summary.csv` and what the terminal shows."""

from __future__ import annotations

import csv
import math
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multipass.evaluation import metrics
from multipass.files import replacing

COLUMNS = (
    *("case", "pass", "structure", "value", "outcome", *metrics.METRICS),
    *("volume_ml", "reference_ml", "flags", "input"),
)
# Two tables under each other are as wide as a terminal: heading, metric, decimals.
_OVERLAPS = (("Dice [95 %] worst", "dice", 3), ("NSD 2 mm [95 %] worst", "nsd_2mm", 3))
_DISTANCES = (("HD95 mm [95 %] worst", "hd95_mm", 1), ("ASSD mm [95 %] worst", "assd_mm", 2))

# Where a percentile bootstrap covers less than 90 % of normal data's means; of 3 values it gives
# their range.
FEW_CASES = 10
FEW_NOTE = "Intervals are over cases: too narrow for fewer than 10, their range for 3."


def write_summary(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One line a case, pass and structure; what is unknown is left blank. UTF-8 with the mark by
    which spreadsheets know it."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8-sig", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def with_nan(row: dict[str, Any]) -> dict[str, Any]:
    """A row of report.json, where NaN is null, with NaN again."""
    return {
        key: math.nan if value is None and key in metrics.METRICS else value
        for key, value in row.items()
    }


def score_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The cohort's scores per pass and structure as lines of text; none without scores."""
    scored = [row for row in rows if row.get("outcome")]
    if not scored:
        return []
    cohort = metrics.table(scored)
    parts = [
        part
        for part in (_OVERLAPS, _DISTANCES)
        if any(math.isfinite(line[metric]) for line in cohort for _, metric, _ in part)
    ]
    lines = [line for part in parts for line in _part_lines(cohort, part)]
    few = 1 < max(line["cases"] for line in cohort) < FEW_CASES
    return lines + [FEW_NOTE] if few else lines


def _part_lines(
    cohort: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str, int]]
) -> list[str]:
    headings = [heading for heading, _, _ in columns]
    cells: list[tuple[str, ...]] = [("pass", "structure", "cases", *headings, "missed, false")]
    for line in cohort:
        figures = [_with_worst(line, metric, digits) for _, metric, digits in columns]
        counts = f"{line['missed']}, {line['false_alarms']}"
        cells.append((str(line["pass"]), line["structure"], str(line["cases"]), *figures, counts))
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, the headings first, as the lines of a Markdown table."""
    headings, *rows = (f"| {' | '.join(row)} |" for row in cells)
    return [headings, "|" + "---|" * len(cells[0]), *rows]


def _with_worst(line: dict[str, Any], metric: str, digits: int) -> str:
    mean, low, high, worst = (
        line[key] for key in (metric, f"{metric}_low", f"{metric}_high", f"{metric}_worst")
    )
    return f"{with_interval(mean, low, high, digits)} {_number(worst, digits)}"


def mean_with_interval(
    values: Iterable[float], digits: int, groups: Iterable[Hashable] | None = None
) -> str:
    """'mean [low, high]' of the values that are there; see `metrics.bootstrap_interval`."""
    values = list(values)
    return with_interval(
        float(np.nanmean(values)), *metrics.bootstrap_interval(values, groups), digits
    )


def with_interval(mean: float, low: float, high: float, digits: int) -> str:
    """'mean [low, high]'; the mean alone where there is no interval, '-' where there is neither."""
    figures = [_number(value, digits) for value in (mean, low, high)]
    return figures[0] if math.isnan(low) else "{} [{}, {}]".format(*figures)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return "" if value is None else value
