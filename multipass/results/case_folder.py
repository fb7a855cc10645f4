"""Writing a case's results: whole or not at all, and read back before they count."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from multipass.files import replacing
from multipass.geometry.volume import SAME_PLACE_MM, Grid, Volume, from_sitk, to_sitk

REPORT_NAME = "report.json"


@contextmanager
def case_folder(output: Path, name: str) -> Iterator[Path]:
    """A temporary folder that becomes `output/name` when the block ends without an error.

    Raises:
        ValueError: there is such a folder, and it is none of an earlier run.
    """
    temporary, final = output / f".{name}.partial", output / name
    if final.exists() and not (final / REPORT_NAME).is_file():
        raise ValueError(f"{final} holds no results and is left alone; give another --output")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if final.exists():
            shutil.rmtree(final)
        temporary.replace(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_mask(path: Path, labels: np.ndarray, grid: Grid) -> None:
    """Writes a label map as NIfTI, reads it back and compares.

    Raises:
        ValueError: the file does not hold the same voxels at the same places.
    """
    sitk.WriteImage(to_sitk(Volume(labels, grid)), str(path), useCompression=True)
    written = from_sitk(sitk.ReadImage(str(path)))
    if not np.array_equal(written.array, labels):
        raise ValueError(f"{path.name}: what was read back differs from the mask; disk full?")
    if np.abs(_corners(written.grid) - _corners(grid)).max() > SAME_PLACE_MM:
        raise ValueError(f"{path.name}: its format cannot hold this scan's axes")


def write_json(path: Path, content: Any) -> None:
    """Strict JSON: NaN becomes null."""
    with replacing(path) as temporary:
        text = json.dumps(_jsonable(content), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text, encoding="utf-8")


def finished_report(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The report of an earlier run with the same identity whose files are all there, or None."""
    try:
        report = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = all((folder / name).exists() for name in report.get("files", ()))
    return report if whole and report.get("identity") == _jsonable(identity) else None


@contextmanager
def log_file(log: logging.Logger, path: Path) -> Iterator[None]:
    """Appends the log's lines to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def _corners(grid: Grid) -> np.ndarray:
    last = np.asarray(grid.size) - 1
    indices = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * last
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return str(value) if isinstance(value, Path) else value
