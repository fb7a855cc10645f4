"""dcmqi's commands, and a mend of what they write."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

# Beyond this dcmqi hangs: writing the SEG of a whole body takes about a minute.
TIMEOUT_S = 300.0
PLACE = pydicom.tag.Tag("ImagePositionPatient")


class DcmqiHangsError(ValueError):
    """A command did not end in time; it would not the next time."""


def dcmqi_command(name: str) -> str:
    """The path of a dcmqi command: beside the running Python first, then on PATH.

    Raises:
        ValueError: it is installed in neither place.
    """
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside or shutil.which(name)
    if found is None:
        raise ValueError(f"dcmqi's {name} was not found: pip install -r requirements.txt")
    return found


def run_dcmqi(name: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> str:
    """Run a dcmqi command and return what it printed.

    Raises:
        ValueError: it failed or hung; the sentence carries its own last error.
    """
    command = [dcmqi_command(name), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise DcmqiHangsError(f"dcmqi's {name} did not end within {timeout_s:.0f} s") from None
    if done.returncode == -signal.SIGINT:  # Ctrl-C reaches it, too
        raise KeyboardInterrupt
    printed = done.stdout + done.stderr
    if done.returncode != 0:
        reason = complaint(printed) or f"exit code {done.returncode}"
        raise ValueError(f"dcmqi's {name} refused the file: {reason}")
    return printed


def complaint(printed: str) -> str:
    """The last error that a command printed, or ''."""
    lines = [line for line in printed.splitlines() if "rror" in line.lower() or "FATAL" in line]
    return lines[-1].strip() if lines else ""


def number_places(dataset: Dataset) -> None:
    """Numbers the places of a SEG's frames through all its segments, along the slices' normal: one
    dimension index value is one place (PS3.3 C.7.6.17), where dcmqi counts anew in each segment."""
    pointers = [item.DimensionIndexPointer for item in dataset.DimensionIndexSequence]
    column = pointers.index(PLACE)
    shared = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    row, down = np.split(np.asarray(shared.ImageOrientationPatient, float), 2)
    frames = dataset.PerFrameFunctionalGroupsSequence
    places = [f.PlanePositionSequence[0].ImagePositionPatient for f in frames]
    heights = np.round(np.asarray(places, float) @ np.cross(row, down), 3)
    numbers = 1 + np.unique(heights, return_inverse=True)[1].ravel()
    for frame, number in zip(frames, numbers, strict=True):
        content = frame.FrameContentSequence[0]
        values = list(content.DimensionIndexValues)
        values[column] = int(number)
        content.DimensionIndexValues = values
