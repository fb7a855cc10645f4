"""One scan to segment, and what it is called."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from multipass.data.archives import Archive
from multipass.data.images import detached
from multipass.dicom.seg_header import SegHeader
from multipass.dicom.series import Series

RESULTS = {"summary.csv", "index.html", "inference.log", "niivue.js"}
RESERVED_NAMES = {*RESULTS, "con", "prn", "aux", "nul"}
# In bytes: with what is added to it, a temporary name stays below 255.
MAX_NAME = 80


@dataclass(frozen=True)
class Case:
    """One scan to segment: a DICOM series, or the file at `path`.

    Attributes:
        name: safe as a folder's name, and unique among the cases found with it.
        seg: SEG files and RT Structure Sets that belong to the series.
        reference_path: a label map beside an image file.
        notes: what a person should know of the files.
    """

    name: str
    path: Path
    series: Series | None = None
    seg: tuple[SegHeader, ...] = ()
    reference_path: Path | None = None
    notes: tuple[str, ...] = ()
    archive: Archive | None = None

    @property
    def source(self) -> Path:
        """Where it lies, absolute: study.zip/folder/scan.nii.gz where it lies in an archive."""
        return self.archive.inside(self.path) if self.archive else self.path.resolve()

    @property
    def series_uid(self) -> str:
        return self.series.uid if self.series else ""

    @property
    def longer_name(self) -> str:
        """Its name with that of the folder around it, as safe as a name."""
        around = self.archive.path if self.archive else self.path
        return safe_name(f"{around.resolve().parent.name}_{self.name}")

    def at_hand(self) -> AbstractContextManager[None]:
        """Its files can be read in the block.

        Raises:
            ValueError, OSError: they lie in an archive that cannot be unpacked.
        """
        return self.archive.at_hand() if self.archive else nullcontext()

    @property
    def files(self) -> list[Path]:
        """What the scan is read from, in a fixed order."""
        if self.series is None:
            return [self.path, *detached(self.path)]
        return sorted({piece.path for piece in self.series.slices})

    @property
    def reference_files(self) -> list[Path]:
        """What the reference is read from; [] where there is none."""
        beside = self.reference_path
        labels = [beside, *detached(beside)] if beside else []
        return [*(header.path for header in self.seg), *labels]


def safe_name(name: str) -> str:
    """As a folder may be called on any system."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._")
    return plain.encode()[:MAX_NAME].decode(errors="ignore") or "case"


def uniquely_named(cases: Sequence[Case]) -> list[Case]:
    """The cases with names that are safe as a folder's and unique whatever the letters' case: where
    several have one name, with that of the folder around each, so that another scan of that name
    renames none."""
    counts = Counter(safe_name(case.name).lower() for case in cases)
    numbers: Counter[str] = Counter()
    used = set(RESERVED_NAMES)
    named = []
    for case in cases:
        name = stem = safe_name(case.name)
        if counts[stem.lower()] > 1:
            name = stem = case.longer_name
        while name.lower() in used:
            numbers[stem.lower()] += 1
            name = f"{stem}_{numbers[stem.lower()] + 1}"
        used.add(name.lower())
        named.append(replace(case, name=name))
    return named
