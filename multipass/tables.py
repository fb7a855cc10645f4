"""Tables of scores and volumes: `summary.csv` and what the terminal shows."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from multipass import metrics
from multipass.patients import replacing

COLUMNS = (
    *("case", "pass", "structure", "value", "outcome", *metrics.METRICS),
    *("volume_ml", "reference_ml", "flags"),
)
_HEADINGS = ("pass", "structure", "cases", "Dice [95 %] worst", "HD95 mm worst", "ASSD mm")


def write_summary(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One line a case, pass and structure; what is unknown is left blank."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
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
    cells: list[tuple[str, ...]] = [(*_HEADINGS, "NSD 2 mm [95 %] worst", "missed, false")]
    for line in metrics.table(scored):
        cells.append(
            (
                str(line["pass"]),
                line["structure"],
                str(line["cases"]),
                _with_interval(line, "dice"),
                f"{_number(line['hd95_mm'], 1)} {_number(line['hd95_mm_worst'], 1)}",
                _number(line["assd_mm"], 2),
                _with_interval(line, "nsd_2mm"),
                f"{line['missed']}, {line['false_alarms']}",
            )
        )
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _with_interval(line: dict[str, Any], metric: str) -> str:
    low, high = line[f"{metric}_low"], line[f"{metric}_high"]
    interval = "" if math.isnan(low) else f" [{_number(low, 3)}, {_number(high, 3)}]"
    return f"{_number(line[metric], 3)}{interval} {_number(line[f'{metric}_worst'], 3)}"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return "" if value is None else value
