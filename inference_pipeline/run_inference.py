"""Segment the pelvic bones in CT scans with a trained network.

    python inference_pipeline/run_inference.py
    python inference_pipeline/run_inference.py --input DIR --output DIR --model best_model.pth

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
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

ROOT = Path(__file__).resolve().parent.parent
# Appended: inserted in front it would hide this folder's processing.py behind the root's.
sys.path.append(str(ROOT))

from multipass.interrupts import end_silently, raise_again  # noqa: E402

if __name__ in ("__main__", "__mp_main__"):  # the script, and its workers
    end_silently()

# Threads that spin while they wait make a shared machine several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from multipass.terminal import (  # noqa: E402
    command_line,
    limit_threads,
    one_sentence,
    settle_streams,
    short,
)

TEST_DATA = ROOT / "inference_pipeline" / "test_data"
RESULTS = ROOT / "inference_pipeline" / "processed_files" / "inference_results"
MODEL = ROOT / "inference_pipeline" / "best_model.pth"
OWN_MODEL = ROOT / "best_model.pth"
INTERRUPTED = 130
LOG_NAME = "inference.log"


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
    format: tuple[Literal["nifti", "seg", "rtstruct"], ...] = ("nifti", "seg")
    """mask.nii.gz; for DICOM input seg.dcm, and contours as rtstruct.dcm."""
    probabilities: bool = False
    """Also write the last pass's class probabilities, on the grid of its windows."""
    meshes: Literal["none", "stl", "ply"] = "none"
    """Also write a surface of each bone, in mm, LPS."""
    part_voxel_mm: float = 1.9  # windows.PART_VOXEL_MM
    """Voxels of a third pass at most; 1.2 looks closer and takes up to four times as long."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes CUDA where there is one."""
    threads: int | None = None
    """CPU threads at most; as many as there are cores by default."""
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


if __name__ == "__main__":
    # Before numpy and torch are imported: they count threads then, and help need not wait for them.
    settle_streams()
    OPTIONS = command_line(Options, __doc__, "--input")
    limit_threads(OPTIONS.threads)

from tqdm import tqdm  # noqa: E402

from multipass import api  # noqa: E402
from multipass.data.case import Case  # noqa: E402
from multipass.data.scans import find_cases  # noqa: E402
from multipass.evaluation.scoring import score  # noqa: E402
from multipass.files import claimed, sha256_of  # noqa: E402
from multipass.model.checkpoint import Model  # noqa: E402
from multipass.model.mirrored import with_mirroring  # noqa: E402
from multipass.results.output_folder import OutputFolder, check_folders, log_file  # noqa: E402
from multipass.results.page import CASE_PAGE, write_viewer  # noqa: E402
from multipass.results.products import Wanted, page_of, products_of, write_case  # noqa: E402
from multipass.results.summary import Outcome  # noqa: E402
from multipass.results.timing import Stages  # noqa: E402
from multipass.results.viewer import VIEWER_NAME  # noqa: E402
from multipass.structures import read_rules  # noqa: E402
from processing import Scan, read_scan  # noqa: E402

log = logging.getLogger("run_inference")


def main(options: Options) -> int:
    check_options(options)
    check_folders(options.input, options.output)
    with claimed(options.output):
        return segment_folder(options)


def segment_folder(options: Options) -> int:
    """Finds the cases, segments them and says what became of them; returns the exit code."""
    model = load_model(options.model, options.device)
    print(introduction(options.model, model))
    if options.tta:
        model = with_mirroring(model)
    with ExitStack() as stack:
        found = find_cases(options.input, stack)
        if not found.cases and not found.refused:
            raise ValueError(
                f"no scan in {options.input}: put DICOM series folders, NIfTI, NRRD or MHA files "
                "there, or name another folder with --input"
            )
        stack.enter_context(log_file(log, options.output / LOG_NAME))
        output, outcome = OutputFolder(options.output), Outcome(failed=list(found.refused))
        if options.page:
            outcome.attempt(VIEWER_NAME, lambda: write_viewer(options.output))
        try:
            segment_all(found.cases, model, options, output, outcome)
        except KeyboardInterrupt:
            outcome.conclude(output, options.page)
            print("Stopped. Finished cases are whole; run again for the rest.", file=sys.stderr)
            return INTERRUPTED
        outcome.conclude(output, options.page)
    return 0 if outcome.is_whole else 1


def check_options(options: Options) -> None:
    """Raise ValueError for what cannot work, before anything is read or written."""
    settings_of(options)
    if not options.format:
        raise ValueError("--format: name nifti, seg, rtstruct or several of them")
    read_rules(options.structures)


def settings_of(options: Options) -> api.Settings:
    return api.Settings(
        options.passes, options.part_voxel_mm, options.least_part_mm3, options.probabilities,
        options.tta,
    )  # fmt: skip


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
    trained_on = model.info.get("trained_on") or {}
    if isinstance(trained_on, dict):
        count = trained_on.get("patients", "an unknown number of")
        trained_on = f"{count} {trained_on.get('description') or 'patients'}"
    when = str(model.info.get("date") or "")[:10] or "on an unknown day"
    line = f"Network {path}, SHA-256 {model.sha256}, trained on {trained_on}, {when}."
    if OWN_MODEL.is_file() and sha256_of([OWN_MODEL]) != model.sha256:
        line += f" A network you trained lies at {OWN_MODEL}: pass --model or copy it."
    return line


def segment_all(
    cases: list[Case],
    model: Model,
    options: Options,
    output: OutputFolder,
    outcome: Outcome,
) -> None:
    """Segments case after case; a failing one is noted and the others go on."""
    bar = tqdm(cases, unit="case", disable=options.quiet)
    for case in bar:
        stages = Stages(lambda stage, name=case.name: bar.set_postfix_str(f"{name}: {stage}"))
        try:
            with case.at_hand():
                report = segment_case(case, model, options, output, stages)
        except Exception as error:  # a fault of ours must not stop the cohort either
            outcome.failed.append((output.called(case), one_sentence(error)))
            log.error("%s: %s", *outcome.failed[-1])
            continue
        output.reports[report["case"]] = report
        outcome.reports.append(report)
        outcome.failed += [(report["case"], problem) for problem in report["problems"]]
        flags = f" ({'; '.join(report['flags'])})" if report["flags"] else ""
        log.info("%s: %.1f s%s", report["case"], report["seconds"], flags)
        if not options.quiet:
            tqdm.write(f"{report['case']}: {report['seconds']:.1f} s{flags}")


def segment_case(
    case: Case,
    model: Model,
    options: Options,
    output: OutputFolder,
    stages: Stages,
) -> dict[str, Any]:
    """One scan from its files to its folder of results; returns report.json's content.

    Raises:
        ValueError: the scan cannot be read or segmented.
    """
    with stages.stage("hash"):
        identity = identity_of(case, model, options)
        content = identity["input_sha256"]
        case = replace(case, name=output.name_for(case, content))
        earlier = output.finished(case.name, identity)
    if earlier is not None and not options.overwrite:
        return earlier
    output.check(case.name)
    with stages.stage("read"):
        scan = read_scan(case)
    if "nifti" not in options.format and not scan.slices:
        formats = " ".join(options.format)
        raise ValueError(f"--format {formats} is for DICOM, and this is none: add nifti")
    result = look(case, scan, model, options, stages)
    meshes = "" if options.meshes == "none" else options.meshes
    what = Wanted(options.format, options.probabilities, meshes)
    products = products_of(result.segmented, what)
    wanted = [*products, *([CASE_PAGE] if options.page else [])]
    with output.renewed(case, content, wanted) as (folder, kept):
        facts = {**result.facts, "case": case.name, "identity": identity}
        flags = [*result.flags, *what.not_for(scan.slices), *kept]
        facts |= {"structures": result.structures, "flags": flags}
        page = partial(page_of, result.segmented, with_viewer=has_viewer(options))
        return write_case(folder, products, facts, stages, page if options.page else None)


def has_viewer(options: Options) -> bool:
    return (options.output / VIEWER_NAME).exists()


def look(case: Case, scan: Scan, model: Model, options: Options, stages: Stages) -> api.Result:
    """The result, with scores where a reference lies beside the scan."""
    scan = replace(scan, notes=(*case.notes, *scan.notes))
    result, found = api.look(case.name, scan, model, settings_of(options), stages)
    with stages.stage("scores"):
        volumes_ml = [row["visible_ml"] for row in result.structures]
        compared = case, scan, result.array, found, model.structures, volumes_ml
        rules = read_rules(options.structures)
        scored = score(*compared, rules, least_part_mm3=options.least_part_mm3)
    facts = {
        **result.facts,
        "input": case.source,
        "series_uid": case.series_uid,
        "model": {"path": options.model, **model.info},
        "scores": scored.rows,
        "problems": [scored.problem] if scored.problem else [],
    }
    segmented = replace(result.segmented, reference=scored.reference)
    return replace(result, facts=facts, segmented=segmented)


def identity_of(case: Case, model: Model, options: Options) -> dict[str, Any]:
    """What a finished result depends on."""
    return {
        **settings_of(options).identity(model, sha256_of(case.files)),
        "reference_sha256": reference_sha256(case, options),
        "format": sorted(set(options.format)),
        "meshes": options.meshes,
        "page": options.page and ("viewer" if has_viewer(options) else "picture"),
    }


def reference_sha256(case: Case, options: Options) -> str | None:
    """None where there is no reference; "" for one that cannot be read, which scoring will say."""
    rules = [options.structures] if options.structures else []
    try:
        references = case.reference_files
        return sha256_of([*references, *rules]) if references else None
    except (OSError, ValueError):
        return ""


def stop(*_: object) -> None:
    """A scheduler's or `kill`'s end of the run is like Ctrl-C: what is finished is summed up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise_again()
    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(main(OPTIONS))
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"run_inference.py: {one_sentence(error)}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
