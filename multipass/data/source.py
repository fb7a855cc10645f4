"""One scan, as a caller gives it: a path, a SimpleITK image or an array."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from multipass.data.case import Case
from multipass.data.images import Image, from_ras, from_sitk_image
from multipass.data.scan import Scan, read_scan, scan_of
from multipass.data.scans import find_cases
from multipass.files import sha256_of

Source = str | os.PathLike[str] | sitk.Image | tuple[np.ndarray, np.ndarray]
UNNAMED = "scan"
SHOWN_NAMES = 3


@dataclass(frozen=True)
class Opened:
    """A scan that was read.

    Attributes:
        origin: 'input', a path or what it is instead, and 'series_uid', '' where it has none.
        sha256: of its files; None where it has none.
    """

    name: str
    scan: Scan
    origin: dict[str, Any]
    sha256: str | None = None


def opened(source: Source) -> Opened:
    """Reads a scan; see `multipass.segment` for what it may be.

    Raises:
        ValueError: it is something else, no scan, several scans, or cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_path(Path(source))
    if isinstance(source, sitk.Image):
        name = "the SimpleITK image"
        return _from_memory(from_sitk_image(source, name), name)
    if isinstance(source, tuple) and len(source) == 2:
        name = "the array"
        return _from_memory(from_ras(*source, name), name)
    raise ValueError(
        f"a scan is a path, a SimpleITK image or (array, affine), not {type(source).__name__}"
    )


def _from_memory(image: Image, name: str) -> Opened:
    return Opened(UNNAMED, scan_of(image, name), {"input": name, "series_uid": ""})


def _from_path(path: Path) -> Opened:
    with ExitStack() as stack:
        case = _only_case(path, stack)
        stack.enter_context(case.at_hand())
        scan = read_scan(case)
        notes = (*case.notes, *scan.notes)
        if case.archive and scan.slices:
            # The slices that a SEG needs are gone from the temporary folder by then.
            scan = replace(scan, slices=())
            notes += ("read from an archive: unpack it to get a DICOM SEG",)
        origin = {"input": case.source, "series_uid": case.series_uid}
        return Opened(case.name, replace(scan, notes=notes), origin, sha256_of(case.files))


def _only_case(path: Path, stack: ExitStack) -> Case:
    """The one scan at a path.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = find_cases(path, stack)
    if len(found.cases) > 1:
        names = ", ".join(case.name for case in found.cases[:SHOWN_NAMES])
        names += ", ..." if len(found.cases) > SHOWN_NAMES else ""
        raise ValueError(
            f"{path}: {len(found.cases)} scans ({names}), and one is segmented at a time: name the "
            "file or folder of one"
        )
    reasons = [f"{name}: {reason}" for name, reason in found.refused]
    if not found.cases:
        raise ValueError(f"{path}: no scan ({'; '.join(reasons) or 'nothing that is read here'})")
    case = found.cases[0]
    left_aside = tuple(f"left aside: {reason}" for reason in reasons)
    return replace(case, notes=(*case.notes, *left_aside))
