"""A case's folder: files read back before they count, and a report that says which there are."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from multipass.files import replacing, replacing_folder, sha256_of
from multipass.geometry.volume import SAME_PLACE_MM, Grid, Volume, from_sitk, to_sitk
from multipass.terminal import printable

REPORT_NAME = "report.json"
# What a report needs to be shown among others.
REPORT_KEYS = {"case", "identity", "input", "structures", "flags", "scores", "seconds"}
# Held until the report is written, so that it finds room on a disk that the other files fill.
ROOM_NAME, ROOM_BYTES = ".room", 1 << 17


# --------------------------------------------------------------------- writing


def write_mask(path: Path, labels: np.ndarray, grid: Grid) -> None:
    """Writes a label map as NIfTI, reads it back and compares.

    Raises:
        ValueError: the file does not hold the same voxels at the same places.
    """
    written = from_sitk(write_image(path, to_sitk(Volume(labels, grid))))
    if np.abs(_corners(written.grid) - _corners(grid)).max() > SAME_PLACE_MM:
        raise ValueError("its format cannot hold this scan's axes")


def write_image(path: Path, image: sitk.Image) -> sitk.Image:
    """Writes an image, compressed, and returns what is read back.

    Raises:
        ValueError: it does not hold the same voxels: ITK says nothing where a disk is full.
    """
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
        written = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"it cannot be written and read back ({reason}); disk full?") from None
    if not np.array_equal(sitk.GetArrayViewFromImage(written), sitk.GetArrayViewFromImage(image)):
        raise ValueError("what was read back differs from what was written; disk full?")
    return written


@contextmanager
def renewed(folder: Path, wanted: Sequence[str]) -> Iterator[tuple[Path, list[str]]]:
    """A temporary folder that takes the place of a case's when the block ends without an error.
    What this program did not write stays in it.

    Yields:
        The folder, and sentences on what was kept.

    Raises:
        ValueError: the folder holds something else, or has a name that ITK cannot take.
    """
    check_utf8("the folder", folder.absolute())
    report = read_report(folder)
    if report is None and folder.exists() and not (folder.is_dir() and _is_empty(folder)):
        raise ValueError(left_alone(folder))
    with replacing_folder(folder) as temporary:
        hold_room(temporary)
        yield temporary, keep_others(folder, temporary, report, wanted)


def check_utf8(what: str, path: Path) -> None:
    """Raise ValueError for a name that is not UTF-8, at which ITK ends the process."""
    if printable(path) != str(path):
        raise ValueError(f"{what} {printable(path)}: the name is not UTF-8, give another one")


def left_alone(folder: Path) -> str:
    return f"{folder} holds no {REPORT_NAME} of this program and is left alone"


def _is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def hold_room(folder: Path) -> None:
    """Takes room for the report before the other files are written.

    Raises:
        OSError: the disk is full.
    """
    (folder / ROOM_NAME).write_bytes(bytes(ROOM_BYTES))


def write_report(folder: Path, report: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """Writes report.json with what was wanted, and size and SHA-256 of those files that are there;
    returns it as it can be read."""
    (folder / ROOM_NAME).unlink(missing_ok=True)
    there = [name for name in wanted if (folder / name).is_file()]
    content = as_json({**report, "wanted": wanted, "files": {n: _facts(folder / n) for n in there}})
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    with replacing(folder / REPORT_NAME) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return content


def as_json(value: Any) -> Any:
    """Values as strict JSON in UTF-8 holds them: NaN is null, undecodable bytes are spelled out."""
    if isinstance(value, Mapping):
        return {printable(str(key)): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return printable(value) if isinstance(value, (str, Path)) else value


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of([path])}


def _corners(grid: Grid) -> np.ndarray:
    last = np.asarray(grid.size) - 1
    indices = np.array([(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * last
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


# --------------------------------------------------------------------- reading


def read_report(folder: Path) -> dict[str, Any] | None:
    """A case's report; None where there is none that can be read."""
    try:
        report = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_one = isinstance(report, dict) and report.keys() >= REPORT_KEYS
    return report if is_one and isinstance(report["identity"], dict) else None


def is_finished(folder: Path, report: dict[str, Any] | None, identity: dict[str, Any]) -> bool:
    """Whether all files that were wanted of a case with this identity are there as written."""
    if report is None or report["identity"] != as_json(identity):
        return False
    wanted, files = report.get("wanted"), report.get("files")
    if not isinstance(wanted, list) or not isinstance(files, dict):
        return False
    return all(name in files and _is_as_written(folder / name, files[name]) for name in wanted)


def _is_as_written(path: Path, facts: dict[str, Any]) -> bool:
    try:
        return path.stat().st_size == facts["bytes"] and _facts(path) == facts
    except OSError:
        return False


def keep_others(
    old: Path, new: Path, report: dict[str, Any] | None, wanted: Sequence[str]
) -> list[str]:
    """Takes over from a case's old folder what this program did not write, or someone has changed.

    Args:
        wanted: names that the new folder needs for itself: a file of such a name gets another one.

    Returns:
        A sentence for each that did.
    """
    files = (report or {}).get("files") or {}
    notes = []
    for path in sorted(old.iterdir()) if old.is_dir() else []:
        if path.name in (REPORT_NAME, ROOM_NAME) or _is_ours(path, files):
            continue
        name = path.name
        if name in wanted:
            name = _free(new, path.name)
            why = "had been changed" if path.name in files else "was of someone else"
            notes.append(f"{path.name} {why}: kept as {name}")
        _take(path, new / name)
    return notes


def _is_ours(path: Path, files: Mapping[str, Any] | Sequence[str]) -> bool:
    if isinstance(files, Mapping) and isinstance(files.get(path.name), dict):
        return _is_as_written(path, files[path.name])
    return path.name in files


def _free(folder: Path, name: str) -> str:
    number, kept = 1, f"kept_{name}"
    while (folder / kept).exists():
        number += 1
        kept = f"kept_{number}_{name}"
    return kept


def _take(path: Path, target: Path) -> None:
    """A second name for a file, which needs no room; a copy where there are no links."""
    if path.is_dir() and not path.is_symlink():
        shutil.copytree(path, target, symlinks=True, copy_function=_link)
    else:
        _link(path, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)
