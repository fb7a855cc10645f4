"""Time and peak memory of run_inference.py by stage, on a phantom as DICOM.

    python benchmarks/inference.py                      # 512 x 512 x 400
    python benchmarks/inference.py --slices 824
    python benchmarks/inference.py --folder DIR         # keeps the phantom for another run

The network runs as in use; then its probabilities are replaced by the phantom's own fractions, so
that the stages after it meet real bones whatever the network has learnt. Writes seg.dcm, the mask,
the picture and the page, everything that a plain run writes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent
HEIGHT_MM, BELOW_MM = 480.0, 200.0
SCRIPT = ROOT / "inference_pipeline" / "run_inference.py"
sys.path[:0] = [str(SCRIPT.parent), str(ROOT)]

# As run_inference.py does; it must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

from multipass.checkpoint import Model  # noqa: E402
from multipass.maps import PassResult  # noqa: E402
from multipass.network import MultiPassUNet  # noqa: E402
from multipass.phantom import Subject, make_subject, write_subject  # noqa: E402
from multipass.segmentation import read_reference  # noqa: E402
from multipass.series import find  # noqa: E402
from multipass.structures import PELVIS  # noqa: E402
from multipass.volume import Volume, resample  # noqa: E402
from multipass.windows import HU_RANGE, pelvis_box, window_over  # noqa: E402


@dataclass(frozen=True)
class Options:
    """run_inference.py by stage."""

    slices: int = 400
    matrix: int = 512
    folder: Path | None = None
    """Keeps the phantom there, for another run."""
    reference: bool = False
    """Leave the phantom's SEG beside the scan, so that it is scored too."""


def main(options: Options) -> None:
    script = load_script()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        patient = folder / "Patient_01"
        if not patient.exists():
            write_subject(patient, phantom(options))
        prepared = folder / "input"
        prepared.mkdir(exist_ok=True)
        for part in ("im_1", "im_3"):
            link = prepared / part
            link.unlink(missing_ok=True)
            if part == "im_1" or options.reference:
                link.symlink_to((patient / part).resolve())
        network = MultiPassUNet(classes=1 + len(PELVIS)).eval()
        model = Model(network, list(PELVIS), HU_RANGE, 2, "pelvis", {}, "0" * 64)
        script.load_model = lambda path: model
        replacing: list[float] = []
        script.passes.segment = perfect(script.passes.segment, patient / "im_3", replacing)
        output = Path(scratch) / "output"
        script.main(script.Options(prepared, output, quiet=True, overwrite=True))
        report = json.loads(next(output.glob("*/report.json")).read_text())
        print_stages(report, sum(replacing))


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


def perfect(segment, seg_dir: Path, replacing: list[float]):
    """Runs the passes, then puts the reference's fractions in the place of what they found; the
    seconds that this takes go into `replacing`."""

    def segment_then_replace(model, volume: Volume, passes: int) -> list[PassResult]:
        results = segment(model, volume, passes)
        start = time.perf_counter()
        reference = read_reference(find(seg_dir).seg, volume.grid)
        found = []
        for index, result in enumerate(results):
            windows = result.windows
            if index:
                joined = Volume((reference.labels() > 0).astype(np.uint8), volume.grid)
                scan = results[0].windows[0]
                bones = Volume(resample(joined, scan, outside=0.0), scan)
                windows = [window_over(pelvis_box(bones, volume.grid.box_mm()))]
            maps = [reference.fractions(window) / np.float32(255) for window in windows]
            maps = [np.concatenate([1 - m.sum(0, keepdims=True), m]) for m in maps]
            found.append(PassResult(windows, maps, []))
        replacing.append(time.perf_counter() - start)
        return found

    return segment_then_replace


def print_stages(report: dict[str, Any], replacing: float) -> None:
    report["stages"]["passes"]["seconds"] -= replacing
    print(f"{' x '.join(map(str, report['grid']['size']))}, {torch.get_num_threads()} threads")
    for name, stage in report["stages"].items():
        peak = f"{stage['peak_mb']:8.0f} MB" if stage["peak_mb"] else ""
        print(f"{name:16s} {stage['seconds']:7.2f} s {peak}")
    peaks = [stage["peak_mb"] or 0 for stage in report["stages"].values()]
    print(f"{'all':16s} {report['seconds'] - replacing:7.2f} s {max(peaks):8.0f} MB")


if __name__ == "__main__":
    main(tyro.cli(Options))
