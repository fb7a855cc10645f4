"""Image files and the label maps beside them, told apart by their names."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from multipass.data.archives import SUFFIX as ZIP
from multipass.data.images import detached

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, ".pkl", ZIP)
REFERENCE_ENDINGS = ("_seg", "-seg", ".seg", "_label", "-label", "_reference", "-reference")


def stem_of(path: Path) -> str | None:
    """The name without its suffix of an image, patient file or archive; None: another file."""
    for suffix in KNOWN_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return None


def voxels_of(path: Path) -> list[Path]:
    """Detached voxels of an image file; none where its header cannot be read, which its reader
    will say."""
    try:
        return detached(path)
    except (OSError, ValueError):
        return []


class Beside:
    """What lies beside image files; a folder is listed once, however many they are."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    def is_reference(self, path: Path) -> bool:
        """Whether a file is called as another one with an ending of label maps."""
        stem = stem_of(path) or ""
        for ending in REFERENCE_ENDINGS:
            if stem.lower().endswith(ending):
                scan = stem[: -len(ending)]
                return any(stem_of(p) == scan for p in self._called(scan, path.parent) if p != path)
        return False

    def reference_of(self, path: Path) -> Path | None:
        """The label map that is called as an image file with such an ending."""
        names = [f"{stem_of(path)}{ending}" for ending in REFERENCE_ENDINGS]
        beside = [p for name in names for p in self._called(name, path.parent)]
        return min((p for p in beside if p.name.lower().endswith(IMAGE_SUFFIXES)), default=None)

    def _called(self, stem: str, folder: Path) -> list[Path]:
        """The files of a folder by their stem, whatever its letters' case."""
        if folder not in self._listed:
            stems = defaultdict(list)
            for path in folder.iterdir():
                stems[(stem_of(path) or "").lower()].append(path)
            self._listed[folder] = stems
        return self._listed[folder].get(stem.lower(), [])
