"""The cohort: its options, and one patient after another. (Worker processes import this module.)"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from multipass.claims import claimed_otherwise
from multipass.data import patient_files
from multipass.data.case import safe_name
from multipass.data.prepare import as_patient
from multipass.dicom.reference import Reference, Segment, marked_cut
from multipass.geometry.field_of_view import field_of_view
from multipass.geometry.labelmaps import box_of
from multipass.geometry.volume import ints3, touches_end
from multipass.phantom.anatomy.atlas import Atlas, load_atlas
from multipass.phantom.recipe import patient_size
from multipass.phantom.subject import Subject, make_subject
from multipass.phantom.writer import write_subject
from multipass.structures import OTHER_BONE, PELVIS

Size = Literal["pelvis", "abdomen", "body", "ctpel", "mixed", "views", "any", "small"]


@dataclass(frozen=True)
class Options:
    """What to write."""

    output: Path
    """Folder for Patient_01, Patient_02, ...; made if it is missing."""
    name: str = "Patient"
    """Of the patients, before their numbers; cohorts of several names share a folder."""
    patients: int = 12
    """Number of patients."""
    seed: int = 0
    """Seed of the cohort."""
    matrix: int = 512
    """Pixels a side of a slice, 32 to 1024."""
    size: Size | None = None
    """Length of the scans; by default a quarter show the abdomen, too, and none a whole body;
    ctpel: all show crests to ischia in 512 fine pixels a side and slices of 0.8 mm; mixed: a sixth
    show a whole body; views: all show a part, such as one hip, a thigh, a slab, a head or a chest,
    on at most --matrix pixels a side; any: half are views, 30 % ctpel, 20 % mixed."""
    anatomy: Path | None = None
    """Folder of real bone surfaces to build the patients around; parametric bones by default."""
    part: Literal["all", "train", "test"] = "all"
    """Which of the folder's subjects to draw from; those for testing never enter 'train'."""
    other_bone: bool = False
    """Write one more segment: all bone that is none of the five structures."""
    files: bool = False
    """Write patient files for training.py rather than DICOM, with the other bone in them."""
    jobs: int = 1
    """Patients made at the same time."""


def write_patient(options: Options, index: int) -> str:
    """Make and write one patient; the line to print."""
    name = f"{options.name}_{index + 1:02d}"
    folder = options.output / (f"{name}.pkl" if options.files else name)
    if folder.exists():
        return f"{name}: already there, kept"
    start = time.perf_counter()
    size = patient_size(options.seed, index, options.size)
    subject = make_subject(
        options.seed, index, matrix=options.matrix, size=size, atlas=_atlas(options)
    )
    if options.files:
        patient_files.write_patient(folder, patient_of(subject, name))
    else:
        write_subject(folder, subject, other_bone=options.other_bone)
    nx, ny, nz = subject.volume.grid.size
    sx, _, sz = subject.volume.grid.spacing_mm
    extra = "".join(f", {t}" for t in (subject.recipe.implant, subject.recipe.anatomy) if t)
    return (
        f"{name}: {nx} x {ny} x {nz} voxels of {sx:.2f} x {sx:.2f} x {sz:.2f} mm, "
        f"{subject.position}{extra}, {time.perf_counter() - start:.0f} s"
    )


def patient_of(subject: Subject, name: str) -> dict:
    """The patient file's dict of a subject, its other bone among the structures."""
    volume = subject.volume
    masks = {s: subject.label == value for value, s in enumerate(PELVIS, start=1)}
    segments = []
    for structure, mask in (masks | {OTHER_BONE: subject.other_bone}).items():
        box = box_of(mask) or (slice(0, 0),) * 3
        start = ints3(s.start for s in box)
        cut = touches_end(start, mask[box].shape, mask.shape)
        status = "empty" if not mask[box].size else "cut" if cut else "complete"
        segments.append(Segment(structure, start, mask[box], status))
    reference = Reference(volume.grid, tuple(segments), ())
    return as_patient(name, volume, marked_cut(reference, field_of_view(volume)), {})


def _atlas(options: Options) -> Atlas | None:
    return load_atlas(options.anatomy, options.part) if options.anatomy else None


def write_cohort(options: Options) -> Iterator[str]:
    """Write all patients; yields a line for each as it is finished, in order.

    Raises:
        ValueError: an option is out of range or the output folder can't be made.
    """
    _check(options)
    work = partial(write_patient, options)
    if options.jobs == 1:
        yield from map(work, range(options.patients))
        return
    # workers leave Ctrl-C to this process, which ends them on its way out of the pool
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(options.jobs, options.patients), _ignore_interrupt) as pool:
        yield from pool.imap(work, range(options.patients))


def _check(options: Options) -> None:
    if options.patients < 1 or options.jobs < 1:
        raise ValueError("--patients and --jobs must be at least 1")
    if not 32 <= options.matrix <= 1024:
        raise ValueError(f"--matrix {options.matrix}: must lie between 32 and 1024")
    if options.seed < 0:
        raise ValueError(f"--seed {options.seed}: must not be negative")
    if safe_name(options.name) != options.name:
        raise ValueError(f"--name {options.name!r}: no name for files")
    _atlas(options)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        _claim(options)
    except OSError as error:
        raise ValueError(f"--output {options.output}: {error.strerror}") from error


def _claim(options: Options) -> None:
    """Keeps what a cohort was made with beside it: patients of another are not mixed in.

    Raises:
        ValueError: the folder holds patients of other options.
    """
    facts = {key: str(getattr(options, key)) for key in ("seed", "matrix", "size", "part")}
    for key in ("other_bone", "files"):
        if getattr(options, key):
            facts[key.replace("_", "-")] = "True"
    facts["anatomy"] = str(options.anatomy.resolve()) if options.anatomy else ""
    if differing := claimed_otherwise(_facts_path(options), facts):
        key, value = differing
        raise ValueError(
            f"{options.output} holds patients of --{key} {value or 'none'}, not "
            f"{facts.get(key)}; give another --output"
        )


def _facts_path(options: Options) -> Path:
    return options.output / f".{options.name}.json"


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
