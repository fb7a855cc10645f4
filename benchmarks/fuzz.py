"""Damage inputs in seeded ways and check that the readers refuse them or read them right.

    python benchmarks/fuzz.py --cases 2000 --seed 0

Each case takes a small valid patient and damages one file: flips bits, cuts it off, edits DICOM
tags, nests sequences and archives, announces more than there is, packs it otherwise (damage.py).
The readers run in a process of their own with bounded memory and time: processing's on `ct` and
`seg`, inference's on `study` and `zip`. A case is good if they raise ValueError (or OSError) with
one sentence, say in a note what is odd, or return what the undamaged input gives: the same grid,
structures and labels. Values of pixels may differ: damaged pixels are still pixels. A NIfTI's
header is all that is known of its grid: there, any grid counts.
"""

from __future__ import annotations

import collections
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import SimpleITK as sitk
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.damage import LABEL_MAP, damage_file, one_of  # noqa: E402
from multipass.data.case import Case  # noqa: E402
from multipass.data.patient_files import read_patient, write_patient  # noqa: E402
from multipass.data.prepare import CT_FOLDER, SEG_FOLDER, prepare_patient  # noqa: E402
from multipass.data.scan import Scan, read_scan  # noqa: E402
from multipass.data.scans import find_cases  # noqa: E402
from multipass.evaluation.scoring import reference_labels  # noqa: E402
from multipass.geometry.volume import Volume, to_sitk  # noqa: E402
from multipass.phantom import make_subject  # noqa: E402
from multipass.phantom.reference import write_segmentation  # noqa: E402
from multipass.phantom.writer import write_ct  # noqa: E402
from multipass.structures import PELVIS  # noqa: E402

FILES = {"pickle": "Patient_01.pkl", "nifti": "scan.nii", "zip": "study.zip"}
KINDS = ("ct", "seg", "study", *FILES)
MEMORY_BYTES = 4 << 30
# Damaged pixels are still pixels.
MANY_VOXELS = 100
# The part of labelled voxels that a few flipped bits of a segment's own pixels may change.
LABEL_TOLERANCE = 0.02
# 'refused', 'same', 'noted' or 'FAULT', and details.
Outcome = tuple[str, str]


@dataclass(frozen=True)
class Options:
    """Seeded damage of DICOM, SEG and pickle inputs."""

    cases: int = 2000
    seed: int = 0
    timeout_s: float = 60.0
    """A reader that takes longer hangs; more on a busy machine."""


def main(options: Options) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        good = make_good_inputs(Path(scratch) / "good")
        outcomes: collections.Counter = collections.Counter()
        faults = []
        start = time.perf_counter()
        for case in tqdm(range(options.cases), unit="case"):
            kind = KINDS[case % len(KINDS)]
            outcome, detail = run_case(good, kind, (options.seed, case), options.timeout_s)
            outcomes[kind, outcome] += 1
            if outcome == "FAULT":
                faults.append(f"{kind} {options.seed}/{case}: {detail}")
                tqdm.write(faults[-1])
        for (kind, outcome), count in sorted(outcomes.items()):
            print(f"{kind:7s} {outcome:8s} {count}")
        print(f"{options.cases} cases in {time.perf_counter() - start:.0f} s, {len(faults)} faults")
    return 1 if faults else 0


@dataclass(frozen=True)
class Good:
    """Undamaged inputs, and what is read from them.

    Attributes:
        content: of the patient file.
        scan, labels: as inference reads them from DICOM.
        image: the NIfTI file, upright.
    """

    folder: Path
    content: dict[str, Any]
    scan: Scan
    labels: np.ndarray
    image: Volume


def make_good_inputs(folder: Path) -> Good:
    """A patient of 12 slices of 48 x 48 through the pelvis, in all forms that are damaged."""
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
    write_label_map(folder / LABEL_MAP, patient)
    image = to_sitk(Volume(subject.volume.array[:, :, span], part))
    sitk.WriteImage(image, str(folder / FILES["nifti"]))
    shutil.make_archive(str(folder / "study"), "zip", patient.parent)
    with ExitStack() as stack:
        (case,) = find_cases(patient.parent, stack).cases
        scan = read_scan(case)
        found = reference_labels(case, scan, PELVIS)
    assert found is not None
    whole = read_scan(Case("scan", folder / FILES["nifti"])).upright
    return Good(folder, content, scan, found[0], whole)


def write_label_map(path: Path, patient: Path) -> None:
    """The patient's segmentation as a label map (Supplement 243)."""
    slices = [pydicom.dcmread(p) for p in sorted((patient / CT_FOLDER).iterdir())]
    (seg_path,) = (patient / SEG_FOLDER).iterdir()
    seg = highdicom.seg.segread(seg_path)
    uids = [piece.SOPInstanceUID for piece in slices]
    labels = seg.get_pixels_by_source_instance(
        uids,
        combine_segments=True,
        skip_overlap_checks=True,
        assert_missing_frames_are_empty=True,
        ignore_spatial_locations=True,
    )
    highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=labels.astype(np.uint8),
        segmentation_type="LABELMAP",
        segment_descriptions=[seg.get_segment_description(n) for n in seg.segment_numbers],
        series_instance_uid=highdicom.UID(),
        series_number=9,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="M",
        manufacturer_model_name="M",
        software_versions="1",
        device_serial_number="1",
    ).save_as(path)


def run_case(
    good: Good, kind: str, seed: tuple[int, int], timeout_s: float = Options.timeout_s
) -> Outcome:
    """('refused' | 'same' | 'noted' | 'FAULT', detail) for one damaged input."""
    generator = np.random.default_rng([*seed, KINDS.index(kind)])
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "work"
        shutil.copytree(good.folder, work)
        target = choose_target(work, kind, generator)
        damage = damage_file(target, generator)
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=read_in_process, args=(sender, work, good, kind))
        process.start()
        sender.close()
        try:
            answer = receiver.recv() if receiver.poll(timeout_s) else ("FAULT", "hang")
        except EOFError:
            answer = ("FAULT", "the process died")
        process.kill()
        process.join()
    outcome, detail = answer
    return outcome, f"{damage}: {detail}"


def choose_target(work: Path, kind: str, generator: np.random.Generator) -> Path:
    if kind in FILES:
        return work / FILES[kind]
    folders = {"ct": [CT_FOLDER], "seg": [SEG_FOLDER], "study": [CT_FOLDER, SEG_FOLDER]}[kind]
    folder = work / "cohort" / "Patient_01" / one_of(generator, folders)
    return one_of(generator, sorted(folder.iterdir()))


# --------------------------------------------------------------------- reading


def read_in_process(sender, work: Path, good: Good, kind: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        sender.send(READERS[kind](work, good))
    except (ValueError, OSError) as error:
        sender.send(refused(str(error)))
    except BaseException as error:
        sender.send(("FAULT", f"{type(error).__name__}: {error}"[:300]))


def refused(text: str) -> Outcome:
    is_sentence = 0 < len(text) < 1000 and "Traceback" not in text
    return ("refused" if is_sentence else "FAULT", text[:200])


def read_by_processing(work: Path, good: Good) -> Outcome:
    cohort = work / "cohort"
    content, facts = prepare_patient(cohort / "Patient_01", cohort)
    wrong = differing(content, good.content)
    return ("noted", facts["notes"]) if facts["notes"] and wrong else verdict(wrong)


def read_pickle(work: Path, good: Good) -> Outcome:
    read_patient(work / FILES["pickle"])
    read_scan(Case("patient", work / FILES["pickle"]))
    return "same", ""


def read_nifti(work: Path, good: Good) -> Outcome:
    scan = read_scan(Case("scan", work / FILES["nifti"]))
    if scan.notes:
        return "noted", "; ".join(scan.notes)
    if scan.upright.grid != good.image.grid:
        return "same", f"grid {scan.upright.grid}"
    return verdict(other_image(scan.upright, good.image))


def read_study(path: Path, good: Good) -> Outcome:
    """What inference finds below a path, against what it finds in the undamaged patient."""
    with ExitStack() as stack:
        found = find_cases(path, stack)
        told = [f"{name}: {reason}" for name, reason in found.refused]
        wrong = "" if found.cases else "nothing found"
        for case in found.cases:
            with case.at_hand():
                scan = read_scan(case)
                labels = reference_labels(case, scan, PELVIS)
            told += [*case.notes, *scan.notes]
            wrong = wrong or other_scan(scan, labels, good)
    if wrong and told:
        return refused("; ".join(told)) if not found.cases else ("noted", "; ".join(told))
    return verdict(wrong)


def other_scan(scan: Scan, labels: tuple[np.ndarray, list[str]] | None, good: Good) -> str:
    if scan.grid != good.scan.grid:
        return f"grid {scan.grid}"
    if labels is None:
        return "its segmentation is lost"
    return other_image(scan.upright, good.scan.upright) or other_labels(labels[0], good.labels)


def verdict(wrong: str) -> Outcome:
    return ("FAULT", wrong) if wrong else ("same", "")


def other_image(volume: Volume, good: Volume) -> str:
    """Another rescale is another image; else few voxels may differ."""
    changed = np.count_nonzero(volume.array != good.array)
    rescaled = abs(np.corrcoef(volume.array.ravel(), good.array.ravel())[0, 1]) > 0.9
    return f"{changed} voxels changed" if changed > MANY_VOXELS and not rescaled else ""


def other_labels(labels: np.ndarray, good: np.ndarray) -> str:
    changed = np.count_nonzero(labels != good)
    is_other = changed > LABEL_TOLERANCE * np.count_nonzero(good)
    return f"{changed} labelled voxels changed" if is_other else ""


def differing(content: dict[str, Any], good: dict[str, Any]) -> str:
    """What a patient file holds otherwise; other codes are another segmentation."""
    if [row["code"] for row in content["structures"]] != [r["code"] for r in good["structures"]]:
        return ""
    for key in ("origin_mm", "spacing_mm", "size", "direction"):
        if not np.allclose(content["source"][key], good["source"][key], atol=0.05):
            return f"{key} {content['source'][key]}"
    return other_labels(content["scan"]["label"], good["scan"]["label"])


READERS: dict[str, Callable[[Path, Good], Outcome]] = {
    "ct": read_by_processing,
    "seg": read_by_processing,
    "study": lambda work, good: read_study(work / "cohort", good),
    "pickle": read_pickle,
    "nifti": read_nifti,
    "zip": lambda work, good: read_study(work / FILES["zip"], good),
}

if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
