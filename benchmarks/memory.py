"""Whether training takes more memory for more patients: peaks of short runs over few and over many.

    python benchmarks/memory.py                         # processed_files/, 4 and 40 patients
    python benchmarks/memory.py --data DIR --patients 4 90

The patient files of a folder are copied under other ids into a temporary folder, which is streamed.
Each run is a process of its own; half of the patients train and half validate. Linux and macOS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from multipass.data.patient_files import DATASET_NAME, read_patient, write_patient  # noqa: E402

# ru_maxrss is in KiB on Linux and in bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Options:
    data: Path = ROOT / "processed_files"
    """folder of patient files to copy"""
    patients: tuple[int, int] = (4, 40)
    epochs: int = 2
    steps: int = 4
    """batches an epoch"""


def peak_mib(folder: Path, output: Path, options: Options) -> float:
    """Peak resident memory of one training.

    Raises:
        ValueError: it failed.
    """
    command = [
        sys.executable, str(ROOT / "training.py"), "--data", str(folder), "--output", str(output),
        "--dicom", str(folder), "--epochs", str(options.epochs), "--folds", "2",
        "--steps-per-epoch", str(options.steps),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise ValueError(f"{' '.join(command)} failed.")
    return usage.ru_maxrss * RSS_UNIT / 2**20


def main(options: Options) -> None:
    sources = sorted(p for p in options.data.glob("*.pkl") if p.name != DATASET_NAME)
    if not sources:
        raise ValueError(f"{options.data}: no patient files. Run `python processing.py` first.")
    peaks = []
    for count in options.patients:
        with TemporaryDirectory(prefix="multipass_") as name:
            folder = Path(name) / "processed"
            folder.mkdir()
            for number in range(count):
                patient = read_patient(sources[number % len(sources)])
                patient["patient_id"] = f"Copy_{number + 1:03d}"
                write_patient(folder / f"{patient['patient_id']}.pkl", patient)
            peaks.append(peak_mib(folder, Path(name), options))
        print(f"{count} patients: at most {peaks[-1]:.0f} MiB", flush=True)
    print(f"{peaks[1] / peaks[0]:.3f} times the memory")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except ValueError as error:
        sys.exit(str(error))
