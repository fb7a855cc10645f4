"""From a patient's DICOM folder to the patient file's content: the pipeline of `processing.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from multipass.data.levels import make_levels
from multipass.data.patient_files import FORMAT
from multipass.dicom.belonging import fitting
from multipass.dicom.choice import choose, fit
from multipass.dicom.ct import CT, read_ct
from multipass.dicom.reference import Reference, marked_cut
from multipass.dicom.seg_header import SegHeader
from multipass.dicom.seg_reader import read_reference
from multipass.dicom.series import Found, Series, find
from multipass.geometry.volume import Grid, Volume, ints3, upright
from multipass.geometry.windows import (
    body_box,
    joined,
    pelvis_box,
    scan_windows,
    window_image,
    window_over,
)
from multipass.structures import OTHER_BONE, Identify, by_codes

# Of a CTPEL patient; landmarks are ignored.
CT_FOLDER, SEG_FOLDER, LANDMARK_FOLDER = "im_1", "im_3", "im_2"

# A scan of another part of the body has a near level of its middle.
NEAR_WITHOUT_BONES_MM = 200.0
# Labels are stored as uint8.
MAX_STRUCTURES = 255


def patient_name(folder: Path) -> str:
    """The folder's name, as text that any file and program can hold: a byte that is no UTF-8 is
    written as %E4."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", folder.name)


def prepare_patient(
    folder: Path, root: Path, series_uid: str | None = None, rules: Identify = by_codes
) -> tuple[dict, dict]:
    """Read a patient's CT and SEG and lay both windows over them.

    Args:
        folder: the patient's folder; CT in im_1 and SEG in im_3 where these exist, else anywhere
            below it.
        root: the cohort's folder, to which the file's `source` path is relative.
        series_uid: the CT series to take instead of the chosen one.
        rules: from a segment's attributes to structures, see `read_reference`.

    Returns:
        (the patient file's dict, the report's facts).

    Raises:
        ValueError: what is wrong with this patient, in one sentence.
    """
    found = find_images(folder)
    if not found.seg:
        raise ValueError(f"no DICOM SEG or RT Structure Set in {_where(folder, SEG_FOLDER)}")
    series, others = choose(found, series_uid)
    headers, notes = fitting(found.seg, series, fit(found), series.uid == series_uid)
    if not headers:
        raise ValueError(f"no segmentation of {series}: {'; '.join(notes)}")
    ct = read_ct(series)
    volume = upright(ct.volume)
    reference = read_reference(headers, volume.grid, rules, ct)
    if len(reference.segments) > MAX_STRUCTURES:
        raise ValueError(
            f"{len(reference.segments)} structures, a patient file holds {MAX_STRUCTURES} at most; "
            "--structures can leave some out"
        )
    reference = marked_cut(reference, ct.view)
    source = _source(folder, root, series, headers, ct)
    patient = as_patient(patient_name(folder), volume, reference, source)
    left_out = [f"{other}: {reason}" for other, reason in others]
    notes += [*found.missing_of(series), *found.unread_elsewhere()]
    notes += [*ct.notes, *reference.notes, *(f"left out {text}" for text in left_out)]
    return patient, _facts(series, ct.volume.grid, reference, notes)


def as_patient(
    patient_id: str, volume: Volume, reference: Reference, source: Mapping[str, Any]
) -> dict:
    """The patient file's dict.

    Args:
        volume: upright, HU.
        reference: on its grid.
        source: where the patient came from, see `_source`.
    """
    body = body_box(volume)
    scan, pelvis = _windows(volume, body, reference)
    levels = make_levels(volume, reference.fractions, _bones_box(reference, volume.grid))
    return {
        "format": FORMAT,
        "patient_id": patient_id,
        "structures": [{**s.structure.to_dict(), "status": s.status} for s in reference.segments],
        **_view(volume, reference, window_over(pelvis)),
        "scan": _view(volume, reference, scan),
        "body_mm": body.tolist(),
        "levels": [level.to_dict() for level in levels],
        "source": dict(source),
    }


def find_images(folder: Path) -> Found:
    """The patient's DICOM files: im_1 and im_3 where they exist (im_2 holds landmarks)."""
    parts = [folder / name for name in (CT_FOLDER, SEG_FOLDER) if (folder / name).is_dir()]
    return find(parts or folder)


def _where(folder: Path, part: str) -> str:
    return f"{folder.name}/{part}" if (folder / CT_FOLDER).is_dir() else folder.name


def _windows(volume: Volume, body_mm: np.ndarray, reference: Reference) -> tuple[Grid, np.ndarray]:
    """The scan window that holds most of the bones, and the pelvis box of the reference."""
    windows = scan_windows(body_mm)
    foregrounds = [
        _bones(reference).fractions(window).sum(axis=0, dtype=np.float32) / 255
        for window in windows
    ]
    fullest = max(range(len(windows)), key=lambda k: foregrounds[k].sum())
    box = pelvis_box(joined(windows, foregrounds), volume.grid.box_mm())
    return windows[fullest], windows[fullest].box_mm() if box is None else box


def _bones(reference: Reference) -> Reference:
    """The reference without bone that belongs to no structure."""
    kept = tuple(s for s in reference.segments if s.structure.key != OTHER_BONE.key)
    return replace(reference, segments=kept)


def _bones_box(reference: Reference, scan: Grid) -> np.ndarray:
    """(2, 3) mm: the box of all bones of structures; the scan's middle where there are none."""
    boxes = [
        reference.grid.cropped(s.start, ints3(s.mask.shape)).box_mm()
        for s in _bones(reference).segments
        if s.mask.size
    ]
    if not boxes:
        low, high = scan.box_mm()
        half = np.minimum(high - low, NEAR_WITHOUT_BONES_MM) / 2
        return np.stack([(low + high) / 2 - half, (low + high) / 2 + half])
    return np.stack([np.min([b[0] for b in boxes], 0), np.max([b[1] for b in boxes], 0)])


def _view(volume: Volume, reference: Reference, window: Grid) -> dict:
    fractions = reference.fractions(window)
    background = 255 - np.minimum(fractions.sum(axis=0, dtype=np.uint16), 255)
    ranked = np.concatenate([background[None].astype(np.uint8), fractions])
    return {
        "image": window_image(volume, window).astype(np.float16, order="C"),
        "label": ranked.argmax(axis=0).astype(np.uint8),
        "fractions": fractions,
        "window": {
            "origin_mm": list(window.origin_mm),
            "spacing_mm": list(window.spacing_mm),
        },
    }


def _source(folder: Path, root: Path, series: Series, headers: list[SegHeader], ct: CT) -> dict:
    """Where the patient came from, and the grid that a mask has to go back to."""
    grid = ct.volume.grid
    return {
        "path": folder.relative_to(root).as_posix(),
        "study_uid": series.study_uid,
        "series_uid": series.uid,
        "frame_of_reference_uid": series.frame_of_reference_uid,
        "seg_uids": [header.uid for header in headers],
        "size": list(grid.size),
        "spacing_mm": list(grid.spacing_mm),
        "origin_mm": list(grid.origin_mm),
        "direction": list(grid.direction),
    }


def _facts(series: Series, grid: Grid, reference: Reference, notes: list[str]) -> dict:
    voxel_ml = reference.grid.voxel_ml
    return {
        "series_uid": series.uid,
        "position": series.patient_position,
        "size": " x ".join(map(str, grid.size)),
        "spacing_mm": " x ".join(f"{v:.3g}" for v in grid.spacing_mm),
        "structures": "; ".join(
            f"{s.structure.name} {s.status} {float(s.mask.sum(dtype=np.float64)) * voxel_ml:.1f} mL"
            for s in reference.segments
        ),
        "notes": "; ".join(notes),
    }
