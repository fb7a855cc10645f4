"""Time and peak memory of run_inference.py by stage, on a phantom as DICOM, and its throughput.

    python benchmarks/inference.py                      # 512 x 512 x 401
    python benchmarks/inference.py --slices 824
    python benchmarks/inference.py --structures 5 60    # what memory grows by for each structure
    python benchmarks/inference.py --folder DIR         # keeps the phantom for another run
    python benchmarks/inference.py --cases 6            # seconds a case with --jobs 1 and --jobs 2

The network runs as in use; then its probabilities are replaced by the phantom's own fractions, so
that the stages after it meet real bones whatever the network has learnt. Writes seg.dcm, the mask,
the picture and the page, everything that a plain run writes. For more than five structures the five
bones are cut into bands along z. Each number of structures is run in a process of its own.
Throughput is that of the script itself with the network that ships, on the same scan as many times,
all cores shared among the jobs.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent
HEIGHT_MM, BELOW_MM = 480.0, 200.0
SCRIPT = ROOT / "inference_pipeline" / "run_inference.py"
SHIPPED = ROOT / "inference_pipeline" / "best_model.pth"
UNLIKELY_LOGIT = -20.0
sys.path[:0] = [str(SCRIPT.parent), str(ROOT)]

# As run_inference.py does; it must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

from multipass.dicom.seg_reader import read_reference  # noqa: E402
from multipass.dicom.series import find  # noqa: E402
from multipass.geometry.volume import Grid, Volume, ints3, resample  # noqa: E402
from multipass.geometry.windows import HU_RANGE, close_windows, pelvis_box  # noqa: E402
from multipass.model import passes  # noqa: E402
from multipass.model.checkpoint import Model, load  # noqa: E402
from multipass.model.maps import ClassMaps, PassResult  # noqa: E402
from multipass.model.network import BLOCK, MultiPassUNet, transfer  # noqa: E402
from multipass.phantom import Subject, make_subject, write_subject  # noqa: E402
from multipass.results.timing import peak_mb  # noqa: E402
from multipass.structures import PELVIS, Structure  # noqa: E402


@dataclass(frozen=True)
class Options:
    """run_inference.py by stage."""

    slices: int = 400
    matrix: int = 512
    folder: Path | None = None
    """Keeps the phantom there, for another run."""
    structures: tuple[int, ...] = (len(PELVIS),)
    """Numbers of structures, multiples of five, to run one after the other."""
    reference: bool = False
    """Leave the phantom's SEG beside the scan, so that it is scored too."""
    cases: int = 0
    """For the throughput of --jobs 2 against --jobs 1; 0: time the stages."""


def main(options: Options) -> None:
    if any(count % len(PELVIS) or count < 1 for count in options.structures):
        raise ValueError(
            f"--structures {options.structures}: multiples of {len(PELVIS)} are needed"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if not (folder / "Patient_01").exists():
            write_subject(folder / "Patient_01", phantom(options))
        if options.cases:
            throughput(folder / "Patient_01" / "im_1", options.cases)
            return
        spawned = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)
        with spawned as pool:
            measuring = partial(measure, folder, options.reference)
            reports = pool.map(measuring, options.structures, chunksize=1)
    for report in reports:
        print_stages(report)
    if len(reports) > 1:
        print_growth(reports[0], reports[-1])


def throughput(series: Path, cases: int) -> None:
    """run_inference.py on copies of a scan, with one job and with two."""
    seconds = {}
    with tempfile.TemporaryDirectory() as scratch:
        many = Path(scratch, "many")
        for number in range(cases):  # a folder that links lead to counts once
            shutil.copytree(series, many / f"scan_{number:02d}")
        for jobs in (1, 2):
            command = [sys.executable, str(SCRIPT), "--input", str(many), "--quiet"]
            command += ["--output", str(Path(scratch, f"out{jobs}")), "--jobs", str(jobs)]
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[jobs] = time.perf_counter() - start
            assert len(list(Path(scratch, f"out{jobs}").glob("*/report.json"))) == cases
            print(f"--jobs {jobs}: {seconds[jobs]:.1f} s, {seconds[jobs] / cases:.1f} s a case")
    print(f"{seconds[1] / seconds[2]:.2f} times the throughput with two, {os.cpu_count()} cores")


def measure(folder: Path, with_reference: bool, count: int) -> dict[str, Any]:
    """report.json of a run with `count` structures, what replaced the network's maps taken out."""
    script = load_script()
    patient, prepared = folder / "Patient_01", folder / "input"
    prepared.mkdir(exist_ok=True)
    for part in ("im_1", "im_3"):
        link = prepared / part
        link.unlink(missing_ok=True)
        if part == "im_1" or with_reference:
            link.symlink_to((patient / part).resolve())
    structures = pieces(count)
    network = knowing_network(count)
    model = Model(network, structures, HU_RANGE, ("scan", "pelvis"), {}, "0" * 64)
    script.load_model = lambda path, device: model
    replaced = {"seconds": 0.0, "peak_mb": None}
    passes.segment = perfect(passes.segment, patient / "im_3", count, replaced)
    with tempfile.TemporaryDirectory() as output:
        script.main(script.Options(prepared, Path(output), quiet=True))
        report = json.loads(next(Path(output).glob("*/report.json")).read_text())
    report["seconds"] -= replaced["seconds"]
    report["stages"]["passes"]["seconds"] -= replaced["seconds"]
    report["stages"]["passes"]["peak_mb"] = replaced["peak_mb"]
    return report | {"threads": torch.get_num_threads()}


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("run_inference", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def phantom(options: Options) -> Subject:
    """An abdomen and pelvis of 480 mm in the wanted number of slices."""
    step = HEIGHT_MM / options.slices
    return make_subject(
        1, 0, matrix=options.matrix, size="abdomen", slice_step_mm=step, slice_thickness_mm=step,
        bottom_mm=-BELOW_MM, top_mm=HEIGHT_MM - BELOW_MM,
    )  # fmt: skip


def pieces(count: int) -> list[Structure]:
    """The five bones, or a structure for each band of each."""
    if count == len(PELVIS):
        return list(PELVIS)
    return [
        Structure(f"piece {k + 1}", "99BENCH", f"P{k + 1}", f"Piece {k + 1}", "", (k % 256, 90, 90))
        for k in range(count)
    ]


def knowing_network(count: int) -> MultiPassUNet:
    """A network whose classes are as sure as a trained one's: that which ships, what it does not
    know next to impossible."""
    network = MultiPassUNet(classes=1 + count).eval()
    known = min(count, len(PELVIS))
    kept = [k if k <= known else -1 for k in range(1 + count)]
    transfer(network, load(SHIPPED).network, kept)
    bias = network.backbone.output_block.conv.conv.bias
    bias.data[(1 + known) * BLOCK :] = UNLIKELY_LOGIT
    return network


def perfect(segment, seg_dir: Path, count: int, replaced: dict[str, Any]):
    """Runs the passes, then puts the reference's fractions in the place of what they found; the
    seconds that this takes, and the peak before it, go into `replaced`."""

    def segment_then_replace(model, volume: Volume, passes: int, **how) -> list[PassResult]:
        results = segment(model, volume, passes, **how)
        replaced["peak_mb"], start = peak_mb(), time.perf_counter()
        reference = read_reference(find(seg_dir).seg, volume.grid)
        joined = Volume((reference.labels() > 0).astype(np.uint8), volume.grid)
        scan = results[0].windows[0]
        bones = Volume(resample(joined, scan, outside=0.0), scan)
        box = pelvis_box(bones, volume.grid.box_mm())
        spans = [
            volume.grid.cropped(segment.start, ints3(segment.mask.shape)).box_mm()[:, 2]
            for segment in reference.segments
        ]
        found = []
        for index, result in enumerate(results):
            windows = close_windows(box) if index else result.windows
            kept_as = result.probabilities[0].dtype
            maps = [
                ClassMaps(in_bands(reference.fractions(w), w, spans, count, kept_as))
                for w in windows
            ]
            found.append(PassResult(windows, maps, []))
        replaced["seconds"] = time.perf_counter() - start
        return found

    return segment_then_replace


def in_bands(
    fractions: np.ndarray, window: Grid, spans: list[np.ndarray], count: int, dtype: np.dtype
) -> np.ndarray:
    """Probabilities (1 + count, 128, 128, 72): each bone cut into bands of equal height.

    Args:
        spans: each bone's lower and upper end in mm.
    """
    places = window.origin_mm[2] + np.arange(window.size[2]) * window.spacing_mm[2]
    bands = count // len(PELVIS)
    maps = np.zeros((1 + count, *window.size), dtype)
    maps[0] = 1 - fractions.sum(0) / np.float32(255)
    for bone, (low, high) in enumerate(spans):
        band = np.floor((places - low) / (high - low) * bands).clip(0, bands - 1)
        for number in range(bands):
            here = band == number
            into = maps[1 + bone * bands + number]
            into[:, :, here] = fractions[bone][:, :, here] / np.float32(255)
    return maps


def print_stages(report: dict[str, Any]) -> None:
    size = " x ".join(map(str, report["grid"]["size"]))
    print(f"{size}, {len(report['structures'])} structures, {report['threads']} threads")
    for name, stage in report["stages"].items():
        peak = f"{stage['peak_mb']:8.0f} MB" if stage["peak_mb"] else ""
        print(f"{name:16s} {stage['seconds']:7.2f} s {peak}")
    print(f"{'all':16s} {report['seconds']:7.2f} s {highest_mb(report):8.0f} MB")


def print_growth(few: dict[str, Any], many: dict[str, Any]) -> None:
    """What each stage's peak grows by for each further structure."""
    more = len(many["structures"]) - len(few["structures"])
    print(f"Peak memory grows by, for each of {more} further structures:")
    for name, stage in few["stages"].items():
        if stage["peak_mb"] and name in many["stages"]:
            growth = (many["stages"][name]["peak_mb"] - stage["peak_mb"]) / more
            print(f"{name:16s} {growth:7.2f} MB")
    print(f"{'all':16s} {(highest_mb(many) - highest_mb(few)) / more:7.2f} MB")


def highest_mb(report: dict[str, Any]) -> float:
    return max(stage["peak_mb"] or 0 for stage in report["stages"].values())


if __name__ == "__main__":
    main(tyro.cli(Options))
