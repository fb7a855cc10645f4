"""Damage inputs in seeded ways and check that the readers refuse them or read them right.

    python benchmarks/fuzz.py --cases 2000 --seed 0

Each case takes a small valid patient and damages one file: flips bits, cuts it off, edits DICOM
tags. The readers run in a process of their own with bounded memory and time. A case is good if they
raise ValueError (or OSError) with one sentence, say in a note what is odd, or return what the
undamaged input gives: the same grid, structures and labels. Values of pixels may differ: damaged
pixels are still pixels. A NIfTI's header is all that is known of its grid: there, any grid counts.
"""

from __future__ import annotations

import collections
import multiprocessing
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
import tyro
from pydicom.dataset import Dataset
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from multipass.data.case import Case  # noqa: E402
from multipass.data.patient_files import read_patient, write_patient  # noqa: E402
from multipass.data.prepare import prepare_patient  # noqa: E402
from multipass.data.scan import read_scan  # noqa: E402
from multipass.geometry.volume import Volume, to_sitk  # noqa: E402
from multipass.phantom import make_subject  # noqa: E402
from multipass.phantom.reference import write_segmentation  # noqa: E402
from multipass.phantom.writer import write_ct  # noqa: E402

# inference_pipeline/ is a folder of scripts, not a package.
KINDS = ("ct", "seg", "pickle", "nifti")
MEMORY_BYTES = 4 << 30
TIMEOUT_S = 60
# The part of labelled voxels that a few flipped bits of a segment's own pixels may change.
LABEL_TOLERANCE = 0.02


@dataclass(frozen=True)
class Options:
    """Seeded damage of DICOM, SEG and pickle inputs."""

    cases: int = 2000
    seed: int = 0


def main(options: Options) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        good = make_good_inputs(Path(scratch) / "good")
        outcomes: collections.Counter = collections.Counter()
        faults = []
        start = time.perf_counter()
        for case in tqdm(range(options.cases), unit="case"):
            kind = KINDS[case % len(KINDS)]
            outcome, detail = run_case(good, kind, (options.seed, case))
            outcomes[kind, outcome] += 1
            if outcome == "FAULT":
                faults.append(f"{kind} {options.seed}/{case}: {detail}")
        for (kind, outcome), count in sorted(outcomes.items()):
            print(f"{kind:7s} {outcome:8s} {count}")
        print(f"{options.cases} cases in {time.perf_counter() - start:.0f} s, {len(faults)} faults")
        print("\n".join(faults))
    return 1 if faults else 0


def make_good_inputs(folder: Path) -> Path:
    """A patient of 12 slices of 48 x 48 through the pelvis, and its patient file."""
    subject = make_subject(1, 0, matrix=48, size="small", implant="", padding=None)
    grid = subject.volume.grid
    start = (0, 0, grid.size[2] // 3)
    part = grid.cropped(start, (grid.size[0], grid.size[1], 12))
    span = slice(start[2], start[2] + 12)
    patient = folder / "cohort" / "Patient_01"
    slices = write_ct(
        patient / "im_1", Volume(subject.volume.array[:, :, span], part), subject.recipe
    )
    label = Volume(subject.label[:, :, span], part)
    write_segmentation(patient / "im_3", label, patient / "im_1", slices, subject.recipe)
    content, _ = prepare_patient(patient, patient.parent)
    write_patient(folder / "Patient_01.pkl", content)
    image = to_sitk(Volume(subject.volume.array[:, :, span], part))
    sitk.WriteImage(image, str(folder / "scan.nii"))
    return folder


def run_case(good: Path, kind: str, seed: tuple[int, int]) -> tuple[str, str]:
    """('refused' | 'same' | 'noted' | 'FAULT', detail) for one damaged input."""
    generator = np.random.default_rng([*seed, KINDS.index(kind)])
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "work"
        shutil.copytree(good, work)
        target = choose_target(work, kind, generator)
        damage = describe(damage_file(target, generator))
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=read_in_process, args=(sender, work, good, kind))
        process.start()
        sender.close()
        try:
            answer = receiver.recv() if receiver.poll(TIMEOUT_S) else ("FAULT", "hang")
        except EOFError:
            answer = ("FAULT", "the process died")
        process.kill()
        process.join()
    outcome, detail = answer
    return outcome, f"{damage}: {detail}"


def choose_target(work: Path, kind: str, generator: np.random.Generator) -> Path:
    if kind in ("pickle", "nifti"):
        return work / ("Patient_01.pkl" if kind == "pickle" else "scan.nii")
    folder = work / "cohort" / "Patient_01" / ("im_1" if kind == "ct" else "im_3")
    return sorted(folder.iterdir())[int(generator.integers(len(list(folder.iterdir()))))]


# ---------------------------------------------------------------------- damage


def damage_file(path: Path, generator: np.random.Generator) -> tuple[str, str]:
    kinds: list[Callable] = [flip_bits, cut_off, overwrite]
    if path.suffix == ".dcm":
        kinds += [edit_tag, drop_tag, edit_tag]
    chosen = kinds[int(generator.integers(len(kinds)))]
    return chosen.__name__, chosen(path, generator)


def describe(damage: tuple[str, str]) -> str:
    return f"{damage[0]}({damage[1]})"


def flip_bits(path: Path, generator: np.random.Generator) -> str:
    """A few bits, most of them in the first 2 kB, where the header is."""
    data = bytearray(path.read_bytes())
    places = []
    for _ in range(int(generator.integers(1, 5))):
        header = 352 if path.suffix == ".nii" else 2048
        end = min(len(data), header) if generator.random() < 0.8 else len(data)
        place = int(generator.integers(end))
        data[place] ^= 1 << int(generator.integers(8))
        places.append(place)
    path.write_bytes(data)
    return str(places)


def cut_off(path: Path, generator: np.random.Generator) -> str:
    data = path.read_bytes()
    end = int(generator.integers(len(data)))
    path.write_bytes(data[:end])
    return str(end)


def overwrite(path: Path, generator: np.random.Generator) -> str:
    """A run of random or extreme bytes."""
    data = bytearray(path.read_bytes())
    start = int(generator.integers(min(len(data), 4096)))
    length = int(generator.integers(1, 64))
    filler = [generator.bytes(length), b"\xff" * length, b"\x00" * length]
    data[start : start + length] = filler[int(generator.integers(3))]
    path.write_bytes(data)
    return f"{start}+{length}"


EXTREMES = {
    "US": [0, 1, 65535],
    "SS": [-32768, 0, 32767],
    "IS": ["0", "-1", "2147483647"],
    "DS": ["0", "-1", "1e30", "1e-30"],
    "FD": [0.0, -1.0, 1e300],
    "CS": ["", "LOCALIZER", "MR", "FRACTIONAL"],
    "UI": ["", "1.2.3", "1.2.840.10008.5.1.4.1.1.4"],
    "LO": ["", "../../escape", "\\..\\x"],
    "SH": ["", "../../x"],
    "PN": ["../../evil"],
    "UL": [0, 4294967295],
}


def all_elements(dataset: Dataset) -> list[tuple[Dataset, object]]:
    elements = []
    for element in dataset:
        elements.append((dataset, element))
        if element.VR == "SQ":
            for item in element.value:
                elements += all_elements(item)
    return elements


def edit_tag(path: Path, generator: np.random.Generator) -> str:
    dataset = pydicom.dcmread(path)
    elements = [e for e in all_elements(dataset) if e[1].VR in EXTREMES]
    _, element = elements[int(generator.integers(len(elements)))]
    values = EXTREMES[element.VR]
    value = values[int(generator.integers(len(values)))]
    if element.VM > 1:
        items = list(element.value)
        items[int(generator.integers(len(items)))] = value
        element.value = items
    else:
        element.value = value
    save(dataset, path)
    return f"{element.keyword}={value!r}"


def drop_tag(path: Path, generator: np.random.Generator) -> str:
    dataset = pydicom.dcmread(path)
    elements = all_elements(dataset)
    owner, element = elements[int(generator.integers(len(elements)))]
    del owner[element.tag]
    save(dataset, path)
    return str(element.keyword)


def save(dataset: Dataset, path: Path) -> None:
    """As written as it can be: an edit that pydicom will not write is left undone."""
    try:
        dataset.save_as(path.with_suffix(".new"))
    except (ValueError, TypeError, AttributeError, OverflowError, struct.error, KeyError):
        path.with_suffix(".new").unlink(missing_ok=True)
        return
    path.with_suffix(".new").replace(path)


# --------------------------------------------------------------------- reading


def read_in_process(sender, work: Path, good: Path, kind: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    notes = ""
    try:
        if kind == "nifti":
            scan = read_scan(Case("scan", work / "scan.nii"))
            whole = read_scan(Case("scan", good / "scan.nii"))
            if scan.notes:
                sender.send(("noted", "; ".join(scan.notes)))
            else:
                sender.send(image_verdict(scan.upright, whole.upright))
            return
        if kind == "pickle":
            content = read_patient(work / "Patient_01.pkl")
            read_scan(Case("patient", work / "Patient_01.pkl"))
        else:
            cohort = work / "cohort"
            content, facts = prepare_patient(cohort / "Patient_01", cohort)
            notes = facts["notes"]
        sender.send(verdict(content, read_patient(good / "Patient_01.pkl"), notes, kind))
    except (ValueError, OSError) as error:
        text = str(error)
        fine = 0 < len(text) < 1000 and "Traceback" not in text
        sender.send(("refused" if fine else "FAULT", text[:200]))
    except BaseException as error:
        sender.send(("FAULT", f"{type(error).__name__}: {error}"[:300]))


def image_verdict(volume: Volume, good: Volume) -> tuple[str, str]:
    """Another grid or another rescale is another image; else few voxels may differ."""
    if volume.grid != good.grid:
        return "same", f"grid {volume.grid}"
    changed = np.count_nonzero(volume.array != good.array)
    rescaled = abs(np.corrcoef(volume.array.ravel(), good.array.ravel())[0, 1]) > 0.9
    return (
        ("FAULT", f"{changed} voxels changed") if changed > 100 and not rescaled else ("same", "")
    )


def verdict(content: dict, good: dict, notes: str, kind: str) -> tuple[str, str]:
    names = [row["code"] for row in content["structures"]]
    if kind == "pickle":
        return "same", ""
    if names != [row["code"] for row in good["structures"]]:
        return ("noted", notes) if notes else ("same", "other codes")
    for key in ("origin_mm", "spacing_mm", "size", "direction"):
        if not np.allclose(content["source"][key], good["source"][key], atol=0.05):
            return ("noted", notes) if notes else ("FAULT", f"{key} {content['source'][key]}")
    changed = np.count_nonzero(content["scan"]["label"] != good["scan"]["label"])
    if changed > LABEL_TOLERANCE * np.count_nonzero(good["scan"]["label"]):
        return ("noted", notes) if notes else ("FAULT", f"{changed} labelled voxels changed")
    return "same", ""


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
