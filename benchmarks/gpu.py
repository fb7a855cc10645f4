"""Seconds and memory of training steps, of drawing batches and of inference on a CUDA device.

    python benchmarks/gpu.py steps                          # three passes, synthetic batches
    python benchmarks/gpu.py compiled                       # the same under torch.compile
    python benchmarks/gpu.py profile                        # a step's kernels, into profile.txt
    python benchmarks/gpu.py drawing --data processed_files # augmented batches of a cohort
    python benchmarks/gpu.py inference                      # a scan of 512 x 512 x 401, GPU and CPU

Network, loss, optimizer and step are training.py's. Each measurement is a line of
OUTPUT/measured.jsonl; those already there are kept, so that an interrupted run goes on.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # before this folder: `training` is the script in the root

import training  # noqa: E402
from multipass.data.cohort import Cohort  # noqa: E402
from multipass.geometry.volume import Grid, Volume  # noqa: E402
from multipass.geometry.windows import GRID_SIZE  # noqa: E402
from multipass.model import checkpoint, passes  # noqa: E402
from multipass.model.maps import bone_labels  # noqa: E402
from multipass.model.network import MultiPassUNet  # noqa: E402
from multipass.phantom import make_subject  # noqa: E402
from multipass.structures import PELVIS, mirror_partners  # noqa: E402
from multipass.training.batches import Batch, Batches, collate  # noqa: E402
from multipass.training.contexts import ContextOdds, RandContext  # noqa: E402
from multipass.training.state import State  # noqa: E402

WINDOWS = ("scan", "pelvis", "parts")
SHIPPED = ROOT / "inference_pipeline" / "best_model.pth"
LR, WEIGHT_DECAY, EMA = 1e-4, 1e-2, 0.999  # low, as synthetic batches teach nothing
COMPILED_BATCH = 4
KERNELS = 15  # lines of the profile
PHANTOM_MATRIX = 96
MIB = 1 << 20
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Options:
    what: Annotated[
        Literal["steps", "compiled", "profile", "drawing", "inference"], tyro.conf.Positional
    ]
    output: Path = ROOT / "runs" / "gpu"
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    data: Path = ROOT / "processed_files"
    """patient files, for drawing"""
    batch_sizes: tuple[int, ...] = (1, 4, 8)
    steps: int = 10
    """timed after three others"""
    size: tuple[int, int, int] = GRID_SIZE
    """voxels of a window"""
    scan: tuple[int, int, int] = (512, 512, 401)
    """voxels of the scan, for inference"""


def synthetic_batch(count: int, options: Options) -> Batch:
    """Windows of smooth noise with smooth fractions, on the device."""
    torch.manual_seed(0)
    coarse = [max(n // 16, 1) for n in options.size]
    boxes = [np.array([[-half] * 3, [half] * 3]) for half in (200.0, 150.0, 80.0)]
    rows = []
    for number in range(count):
        noise = torch.randn(len(WINDOWS), 2 + len(PELVIS), *coarse, device=options.device)
        smooth = F.interpolate(noise, options.size, mode="trilinear")
        fractions = torch.softmax(4 * smooth[:, 1:], 1)[:, 1:]
        known = torch.ones(len(PELVIS), dtype=torch.bool, device=options.device)
        context = RandContext(ContextOdds(blank=0.0), mirror_partners(PELVIS))
        context.set_random_state(number)
        rows.append((smooth[:, 0].sigmoid(), fractions, boxes, known, context))
    return collate(rows)


def new_state(options: Options, number: str, layout: torch.memory_format) -> State:
    network = MultiPassUNet(1 + len(PELVIS), scales=len(WINDOWS))
    network = network.to(options.device, memory_format=layout)
    state = State(network, LR, WEIGHT_DECAY, EMA, torch.device(options.device))
    if number != "fp16":
        state.scaler = torch.amp.GradScaler(options.device, enabled=False)
    return state


def synchronize(options: Options) -> None:
    if options.device == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], options: Options) -> dict:
    """Median seconds of `options.steps` calls, the first one's seconds, and peak MiB."""
    if options.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(3 + options.steps):
        start = time.perf_counter()
        work()
        synchronize(options)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds[3:]),
        "first": seconds[0],
        "peak_mib": peak_mib(options),
    }


def peak_mib(options: Options) -> float:
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stepper(
    options: Options, count: int, number: str, layout: str = "", compiled: bool = False
) -> Callable[[], object]:
    """A training step on a batch that is on the device."""
    memory = torch.channels_last_3d if layout else torch.contiguous_format
    state, batch = new_state(options, number, memory), synthetic_batch(count, options)
    if compiled:
        state.network.compile()
    dtype = DTYPES[number]
    amp = torch.autocast(options.device, dtype, enabled=dtype != torch.float32)
    return lambda: training.learn(state, batch, len(WINDOWS), amp)


def measure_step(options: Options, count: int, number: str, layout: str, compiled: bool) -> dict:
    row = timed(stepper(options, count, number, layout, compiled), options)
    return row | {"samples_per_second": count / row["seconds"]}


def steps(options: Options) -> Iterator[tuple[str, Callable[[], dict]]]:
    """What `main` measures: a name and how, as of all functions below."""
    middle = options.batch_sizes[len(options.batch_sizes) // 2]
    variants = [(count, "fp16", "") for count in options.batch_sizes]
    variants += [(middle, "bf16", ""), (middle, "fp16", "channels last")]
    for count, number, layout in variants:
        name = " ".join(filter(None, ("step", number, f"batch {count}", layout)))
        yield name, lambda c=count, n=number, o=layout: measure_step(options, c, n, o, False)


def compiled(options: Options) -> Iterator[tuple[str, Callable[[], dict]]]:
    count = min(COMPILED_BATCH, max(options.batch_sizes))
    name = f"step fp16 batch {count} compiled"
    yield name, lambda: measure_step(options, count, "fp16", "", True)


def profile(options: Options) -> Iterator[tuple[str, Callable[[], dict]]]:
    def kernels() -> dict:
        step = stepper(options, min(COMPILED_BATCH, max(options.batch_sizes)), "fp16")
        for _ in range(3):
            step()
        synchronize(options)
        with torch.profiler.profile() as recorded:
            step()
            synchronize(options)
        by = "self_cuda_time_total" if options.device == "cuda" else "self_cpu_time_total"
        table = recorded.key_averages().table(by, row_limit=KERNELS, max_name_column_width=60)
        (options.output / "profile.txt").write_text(table, encoding="utf-8")
        return {}

    yield "profile", kernels


def drawing(options: Options) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Augmented batches alone, of the patients in `options.data`."""

    def draw(count: int) -> dict:
        cohort = Cohort(options.data)
        batches = Batches(
            cohort, cohort.ids, WINDOWS, count, 0, torch.device(options.device), 3 + options.steps
        )
        made = batches.epoch(0, lambda step: options.size)
        row = timed(lambda: next(made), options)
        return row | {"samples_per_second": count / row["seconds"]}

    for count in options.batch_sizes:
        yield f"drawing batch {count}", lambda c=count: draw(c)


def inference(options: Options) -> Iterator[tuple[str, Callable[[], dict]]]:
    """Passes and the way back over one scan, by the network that ships."""
    volume = None

    def once(device: str) -> dict:
        nonlocal volume
        volume = volume or phantom_scan(options.scan)
        model = checkpoint.load(SHIPPED, device)
        passes.segment(model, volume)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        result = passes.segment(model, volume)[-1]
        found = time.perf_counter() - start
        label = bone_labels(result, volume.grid)
        return {
            "seconds": time.perf_counter() - start,
            "seconds_passes": found,
            "peak_mib": peak_mib(options) if device == "cuda" else None,
            "bone_ml": float((label > 0).sum() * volume.grid.voxel_ml),
            "threads": torch.get_num_threads(),
        }

    for device in dict.fromkeys((options.device, "cpu")):
        yield f"scan on {device}", lambda d=device: once(d)


def phantom_scan(size: tuple[int, int, int]) -> Volume:
    """A phantom's scan with as many voxels as asked for; smooth, and quickly made."""
    volume = make_subject(1, 0, matrix=PHANTOM_MATRIX, size="pelvis").volume
    factors = np.divide(size, volume.grid.size)
    array = ndimage.zoom(volume.array, factors, order=1, grid_mode=True, mode="nearest")
    spacing = tuple(float(s) for s in np.divide(volume.grid.spacing_mm, factors))
    return Volume(array, Grid(size, spacing, volume.grid.origin_mm))


def measured(path: Path) -> dict[str, dict]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in rows}


def main(options: Options) -> None:
    torch.backends.cudnn.benchmark = True  # as in training.py
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "measured.jsonl"
    device = "the CPU" if options.device == "cpu" else torch.cuda.get_device_name()
    parts = {f.__name__: f for f in (steps, compiled, profile, drawing, inference)}
    for name, work in parts[options.what](options):
        if (row := measured(path).get(name)) is None:
            try:
                row = {"name": name, "device": device, **work()}
            except (ValueError, RuntimeError) as error:  # out of memory is a RuntimeError
                print(f"{name}: failed, {str(error).splitlines()[0]}", flush=True)
                continue
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        print(line_of(row), flush=True)


def line_of(row: dict) -> str:
    values = [f"{row['name']:34s}"]
    for key, form in (
        ("seconds", "{:8.4f} s"),
        ("samples_per_second", "{:8.1f} samples/s"),
        ("peak_mib", "{:8.0f} MiB"),
        ("first", "first {:6.1f} s"),
        ("seconds_passes", "passes {:6.2f} s"),
    ):
        if row.get(key) is not None:
            values.append(form.format(row[key]))
    return "  ".join(values)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except ValueError as error:
        sys.exit(f"gpu.py: {error}")
