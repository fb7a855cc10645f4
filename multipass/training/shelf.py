"""Levels of patients on the training device, unpacked when they are first needed.

On a GPU the cohort stays in its memory, as far as it fits; on a CPU blocks are unpacked anew for
each window, so that memory does not grow with the cohort.
"""

from __future__ import annotations

from threading import Lock

import numpy as np
import torch

from multipass.data.cohort import Cohort, Sample
from multipass.data.levels import KEPT_HU, STEP_HU, WHOLE_SHARE, Level
from multipass.geometry.windows import HU_RANGE

GPU_SHARE = 0.6  # of the device's memory for levels

Pairs = list[tuple[torch.Tensor, torch.Tensor | None]]


class Shelf:
    """Gives boxes of levels as float32 channels on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[tuple[str, str], tuple[torch.Tensor, Pairs]] = {}
        self._samples: dict[str, Sample] = {}
        self._lock = Lock()  # batches are made by several threads
        self._keeps, self._room = device.type == "cuda", 0.0
        if self._keeps:
            self._room = GPU_SHARE * torch.cuda.get_device_properties(device).total_memory

    def sample(self, cohort: Cohort, patient_id: str) -> Sample:
        """A patient, read anew each time unless the cohort stays in a GPU's memory."""
        if not self._keeps:
            return cohort.sample(patient_id)
        with self._lock:
            if patient_id not in self._samples:
                self._samples[patient_id] = cohort.sample(patient_id)
            return self._samples[patient_id]

    def channels(
        self, sample: Sample, level: Level, start: np.ndarray, stop: np.ndarray
    ) -> torch.Tensor:
        """(1 + C, X, Y, Z): image in [0, 1] and the fractions of the cohort's channels in a level's
        voxels from `start` to `stop`."""
        box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        image, pairs = self._read(sample, level, box)
        low, high = HU_RANGE
        out = image.new_zeros((1 + len(sample.rows), *image.shape), dtype=torch.float32)
        out[0] = image.float().mul_(STEP_HU).add_(KEPT_HU[0] - low).div_(high - low).clamp_(0, 1)
        for label, share in pairs:
            for channel, row in enumerate(sample.rows, start=1):
                if row:
                    of_row = (label == row).float()
                    out[channel] += of_row if share is None else of_row * (share / WHOLE_SHARE)
        return out

    def _read(self, sample: Sample, level: Level, box: tuple) -> tuple[torch.Tensor, Pairs]:
        key = sample.patient_id, level.name
        with self._lock:
            if key not in self._held:
                if not self._room_for(level):
                    return self._unpacked(level, box)
                self._held[key] = self._unpacked(level, None)
            image, pairs = self._held[key]
        return image[box], [(a[box], None if b is None else b[box]) for a, b in pairs]

    def _room_for(self, level: Level) -> bool:
        size = np.prod(level.grid.size) * (2 + sum(1 + (b is not None) for _, b in level.parts))
        if size > self._room:
            return False
        self._room -= float(size)
        return True

    def _unpacked(self, level: Level, box: tuple | None) -> tuple[torch.Tensor, Pairs]:
        def on_device(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(self.device)

        pairs = [
            (on_device(label), None if share is None else on_device(share))
            for label, share in level.shares(box)
        ]
        return on_device(level.steps(box)), pairs
