"""Time processing a patient against the plain way of doing it, on the same scan in the same run.

    python benchmarks/processing.py                        # 512 x 512 x 520, about five minutes
    python benchmarks/processing.py --slices 120 --patients 4

The plain way is what one writes first: segimage2itkimage, SimpleITK's series reader, the whole
volume smoothed by a Gaussian against aliasing, sitk.Resample for image and labels, one process.
Each way runs in a process of its own, which measures its peak memory. Prints ratios.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from multipass.data.prepare import prepare_patient  # noqa: E402
from multipass.dicom.dcmqi import run_dcmqi  # noqa: E402
from multipass.geometry.windows import GRID_SIZE  # noqa: E402
from multipass.phantom import make_subject, write_subject  # noqa: E402

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ONE_THREAD["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"


@dataclass(frozen=True)
class Options:
    """Processing against the plain way."""

    slices: int = 520
    matrix: int = 512
    repeats: int = 3
    patients: int = 4
    """For the throughput of --jobs 2 against --jobs 1."""
    folder: Path | None = None
    """Keeps the phantom there, for another run."""
    way: str = ""
    """Internal: run one way once, on the patient in `folder`, and print seconds and MB."""


def main(options: Options) -> None:
    if options.way:
        assert options.folder is not None
        run_way(options.way, options.folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        patient = folder / "cohort" / "Patient_01"
        if not patient.exists():
            make_phantom(patient, options)
        print(f"{os.cpu_count()} cores, {options.matrix} x {options.matrix} x {options.slices}")
        ours = measured("ours", patient, options.repeats)
        plain = measured("plain", patient, options.repeats)
        print(f"one core, ours   {ours[0]:6.1f} s  {ours[1]:6.0f} MB")
        print(f"one core, plain  {plain[0]:6.1f} s  {plain[1]:6.0f} MB")
        print(f"{plain[0] / ours[0]:.2f} times faster a patient")
        throughput(folder / "cohort", Path(scratch), options.patients)


def make_phantom(patient: Path, options: Options) -> None:
    subject = make_subject(1, 0, matrix=options.matrix, size="abdomen")
    bottom = subject.recipe.bottom_mm
    subject = make_subject(
        1, 0, matrix=options.matrix, recipe=subject.recipe, slice_step_mm=1.0,
        slice_thickness_mm=1.0, top_mm=bottom + options.slices,
    )  # fmt: skip
    write_subject(patient, subject)


def measured(way: str, patient: Path, repeats: int) -> tuple[float, float]:
    """The fastest of several runs, and the largest peak memory in MB (children included)."""
    results = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--way", way, "--folder", str(patient)]
        done = subprocess.run(
            command, env=os.environ | ONE_THREAD, capture_output=True, text=True, check=True
        )
        seconds, megabytes = map(float, done.stdout.split()[-2:])
        results.append((seconds, megabytes))
    return min(r[0] for r in results), max(r[1] for r in results)


def run_way(way: str, patient: Path) -> None:
    import resource

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    start = time.perf_counter()
    (plain_way if way == "plain" else our_way)(patient)
    seconds = time.perf_counter() - start
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    print(seconds, max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024)


def our_way(patient: Path) -> None:
    prepare_patient(patient, patient.parent)


def plain_way(patient: Path) -> dict[str, np.ndarray]:
    """Image and labels on a 128 x 128 x 72 grid over the whole scan and over the bones' box."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(patient / "im_1"))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    image = sitk.Cast(reader.Execute(), sitk.sitkFloat32)
    label = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    label.CopyInformation(image)
    seg = next((patient / "im_3").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        run_dcmqi("segimage2itkimage", "--inputDICOM", str(seg), "--outputDirectory", folder)
        for value, path in enumerate(sorted(Path(folder).glob("*.nrrd")), 1):
            part = sitk.ReadImage(str(path)) > 0
            part = sitk.Resample(part, image, sitk.Transform(), sitk.sitkNearestNeighbor)
            label = sitk.Maximum(label, sitk.Cast(part, sitk.sitkUInt8) * value)
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.Execute(label > 0)
    box = statistics.GetBoundingBox(1)
    result = {}
    for name, (start, size) in {
        "scan": ((0, 0, 0), image.GetSize()),
        "pelvis": (box[:3], box[3:]),
    }.items():
        spacing = np.multiply(image.GetSpacing(), size) / GRID_SIZE
        origin = image.TransformIndexToPhysicalPoint([int(v) for v in start])
        sigma = [max(float(s), 0.01) / 2 for s in spacing]
        smooth = sitk.SmoothingRecursiveGaussian(image, sigma)
        grid = (GRID_SIZE, sitk.Transform(), sitk.sitkLinear, origin, spacing, image.GetDirection())
        clipped = sitk.Clamp(
            sitk.Resample(smooth, *grid, -1024.0), lowerBound=-200, upperBound=1000
        )
        result[f"{name} image"] = (sitk.GetArrayFromImage(clipped) + 200) / 1200
        grid = (*grid[:2], sitk.sitkNearestNeighbor, *grid[3:])
        result[f"{name} label"] = sitk.GetArrayFromImage(sitk.Resample(label, *grid, 0))
    return result


def throughput(cohort: Path, scratch: Path, patients: int) -> None:
    """processing.py on copies of the patient, with one job and with two."""
    many = scratch / "many"
    many.mkdir()
    for number in range(patients):
        (many / f"Patient_{number:02d}").symlink_to(cohort / "Patient_01")
    seconds = {}
    for jobs in (1, 2):
        command = [sys.executable, str(ROOT / "processing.py"), "--input", str(many)]
        command += ["--output", str(scratch / f"out{jobs}"), "--jobs", str(jobs)]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=os.environ | ONE_THREAD)
        seconds[jobs] = time.perf_counter() - start
    print(f"{patients} patients, --jobs 1: {seconds[1]:.1f} s, --jobs 2: {seconds[2]:.1f} s")
    print(f"{seconds[1] / seconds[2]:.2f} times the throughput with two jobs")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
