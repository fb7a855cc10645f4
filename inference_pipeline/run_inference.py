"""Segment the pelvic bones in CT scans with a trained network.

    python inference_pipeline/run_inference.py
    python inference_pipeline/run_inference.py --input DIR --output DIR --model best_model.pth
    python inference_pipeline/run_inference.py --input DIR --output DIR --jobs 4

Every DICOM series, NIfTI, NRRD, MHA, patient .pkl or zip under INPUT becomes OUTPUT/<case>/ with
mask.nii.gz on the scan's own grid, seg.dcm for DICOM, overlay.png and report.json. Where a
reference lies beside the scan, Dice, HD95, ASSD and NSD of the first and the last pass go into
OUTPUT/summary.csv. A second run does only what is missing or changed; summary.csv and index.html
show all cases in OUTPUT. The exit code is 0 only if every case was segmented and all was written.
--version says which version of the program this is.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

ROOT = Path(__file__).resolve().parent.parent
# Appended: inserted in front it would hide this folder's processing.py behind the root's.
sys.path.append(str(ROOT))

from multipass import startup

startup.settle(__name__)

from multipass.terminal import limit_threads, options_of, short

TEST_DATA = ROOT / "inference_pipeline" / "test_data"
RESULTS = ROOT / "inference_pipeline" / "processed_files" / "inference_results"
MODEL = ROOT / "inference_pipeline" / "best_model.pth"
OWN_MODEL = ROOT / "best_model.pth"
LOG_NAME = "inference.log"
# 512 x 512 x 824 and dcmqi's process beside it (docs/speed.md).
JOB_BYTES = 2400 << 20


@dataclass(frozen=True)
class Options:
    """CT scans to masks of the pelvic bones."""

    input: Annotated[Path, short("-i")] = TEST_DATA
    """A folder of scans, or one scan's file."""
    output: Annotated[Path, short("-o")] = RESULTS
    """Where each case gets its folder; made if it is missing."""
    model: Path = MODEL
    """A checkpoint of training.py."""
    passes: int | None = None
    """How often the network looks; as often as in its training by default."""
    format: tuple[Literal["nifti", "seg", "labelmap", "rtstruct"], ...] = ("nifti", "seg")
    """mask.nii.gz; for DICOM input seg.dcm, the same as labelmap.dcm, contours as rtstruct.dcm."""
    probabilities: bool = False
    """Also write the last pass's class probabilities, on the grid of its windows."""
    meshes: Literal["none", "stl", "ply"] = "none"
    """Also write a surface of each bone, in mm, LPS."""
    part_voxel_mm: float = 1.9  # windows.PART_VOXEL_MM
    """Voxels of a third pass at most; 1.2 looks closer and takes up to four times as long."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes CUDA where there is one."""
    threads: int | None = None
    """CPU threads at most, of all jobs, or of each worker of a cluster; as many as there are cores,
    or as Dask gave the worker, by default."""
    jobs: int = 1
    """Cases segmented at the same time, as far as memory allows; each takes up to 2.4 GB."""
    cluster: str | None = None
    """Address of a Dask scheduler, tcp://host:8786: its workers segment the cases."""
    tta: bool = False
    """Also look at the mirrored scan, left and right swapped back; passes take twice as long."""
    structures: Path | None = None
    """JSON file of a site's own segment names, for the scores of a SEG, see docs/data.md."""
    page: bool = True
    """Write index.html and a page per case to look at, with NiiVue from the installed ipyniivue."""
    least_part_mm3: float = 200.0  # labelmaps.LEAST_PART_MM3, which would import numpy too early
    """Remove parts of a bone smaller than this; its largest part always stays. 0: none."""
    overwrite: bool = False
    """Segment finished cases again."""
    quiet: bool = False
    """No progress bar and no line per case."""

    @property
    def threads_each(self) -> int | None:
        """CPU threads at most of each job; None: as many as there are cores."""
        if self.jobs <= 1:
            return self.threads
        return max(1, (self.threads or os.cpu_count() or 1) // self.jobs)


if __name__ == "__main__":
    # Before numpy and torch are imported: they count threads then, and help need not wait for them.
    OPTIONS = options_of(Options, __doc__, "--input")
    limit_threads(OPTIONS.threads_each)

from tqdm import tqdm

from multipass import api
from multipass.claims import claimed
from multipass.data.case import Case
from multipass.data.scans import FoundCases, find_cases
from multipass.files import sha256_of
from multipass.inference.case import Request
from multipass.inference.cohort import Labour, each_segmented
from multipass.model.checkpoint import Model
from multipass.results.output_folder import OutputFolder, check_folders, log_file
from multipass.results.page import write_viewer
from multipass.results.summary import Outcome
from multipass.results.viewer import VIEWER_NAME
from multipass.workers import affordable

log = logging.getLogger("run_inference")


def main(options: Options) -> int:
    request, labour = request_of(options), labour_of(options)
    check_folders(options.input, options.output)
    with claimed(options.output):
        return segment_folder(options, request, labour)


def request_of(options: Options) -> Request:
    settings = api.Settings(
        options.passes, options.part_voxel_mm, options.least_part_mm3, options.probabilities,
        options.tta,
    )  # fmt: skip
    meshes = "" if options.meshes == "none" else options.meshes
    rules_path = options.structures and options.structures.absolute()
    more = options.format, meshes, rules_path, options.overwrite
    return Request(settings, options.model.absolute(), options.device, *more)


def labour_of(options: Options) -> Labour:
    labour = Labour(options.jobs, options.cluster or "", options.threads_each)
    jobs = affordable(options.jobs, JOB_BYTES)
    if jobs < options.jobs:
        print(f"There is memory for --jobs {jobs}, not {options.jobs}.")
    return replace(labour, jobs=jobs)


def segment_folder(options: Options, request: Request, labour: Labour) -> int:
    """Finds the cases, segments them and says what became of them; returns the exit code."""
    model = load_model(options.model, "cpu" if options.cluster else options.device)
    print(introduction(options.model, model))
    with ExitStack() as stack:
        found = find(options, stack)
        stack.enter_context(log_file(log, options.output / LOG_NAME))
        output, outcome = OutputFolder(options.output), Outcome(failed=list(found.refused))
        if options.page:
            outcome.attempt(VIEWER_NAME, lambda: write_viewer(options.output))
            has_viewer = (options.output / VIEWER_NAME).exists()
            request = replace(request, page="viewer" if has_viewer else "picture")
        try:
            segment_all(found.cases, request, labour, model, output, outcome, options.quiet)
        except KeyboardInterrupt:
            outcome.conclude(output, options.page)
            print("Stopped. Finished cases are whole; run again for the rest.", file=sys.stderr)
            return startup.INTERRUPTED
        outcome.conclude(output, options.page)
    return 0 if outcome.is_whole else 1


def load_model(path: Path, device: str) -> Model:
    """The network on a device.

    Raises:
        ValueError: there is no such device or checkpoint, or it is not one of ours.
    """
    if not path.is_file():
        trained = f"; one that you trained lies at {OWN_MODEL}" if OWN_MODEL.is_file() else ""
        raise ValueError(
            f"no network at {path}: `make demo` trains one on synthetic scans, python training.py "
            f"on yours; then pass --model{trained}"
        )
    return api.load_model(path, device)


def introduction(path: Path, model: Model) -> str:
    line = f"Network {path}, SHA-256 {model.sha256}, {model.origin}."
    if OWN_MODEL.is_file() and sha256_of([OWN_MODEL]) != model.sha256:
        line += f" A network you trained lies at {OWN_MODEL}: pass --model or copy it."
    return line


def find(options: Options, stack: ExitStack) -> FoundCases:
    """The cases to segment; for a cluster, archives are unpacked where all workers can read.

    Raises:
        ValueError: there is none.
    """
    root, unpack_to = options.input, None
    if options.cluster:
        root, unpack_to = root.absolute(), options.output.absolute()
    found = find_cases(root, stack, unpack_to)
    if not found.cases and not found.refused:
        raise ValueError(
            f"no scan in {options.input}: put DICOM series folders, NIfTI, NRRD or MHA files "
            "there, or name another folder with --input"
        )
    return found


def segment_all(
    cases: list[Case],
    request: Request,
    labour: Labour,
    model: Model,
    output: OutputFolder,
    outcome: Outcome,
    quiet: bool,
) -> None:
    """Segments the cases; a failing one is noted and the others go on."""
    with tqdm(total=len(cases), unit="case", disable=quiet) as bar:
        announce = lambda case, stage: bar.set_postfix_str(f"{case}: {stage}")  # noqa: E731
        work = labour.work(request, model, output.path, announce)
        with closing(each_segmented(cases, output, work, labour.workers)) as segmented:
            for case, done in segmented:
                bar.update()
                line = outcome.add(output.called(case), done)
                log.log(logging.ERROR if isinstance(done, Exception) else logging.INFO, "%s", line)
                if not quiet and not isinstance(done, Exception):
                    tqdm.write(line)


def stop(*_: object) -> None:
    """A scheduler's or `kill`'s end of the run is like Ctrl-C: what is finished is summed up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    startup.finish(main, OPTIONS)
