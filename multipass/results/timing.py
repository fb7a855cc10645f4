"""Seconds and peak memory of the stages of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
# Writing 5 resets the peak resident size, proc(5).
_RESET_PEAK = "5"


@dataclass
class Stages:
    """What each stage took; peaks are known on Linux only.

    Attributes:
        announce: told each stage's name as it starts.
        taken: name -> {'seconds', 'peak_mb'}; peak_mb None where it is not known.
    """

    announce: Callable[[str], None] = lambda name: None
    taken: dict[str, dict[str, float | None]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return round(sum(stage["seconds"] or 0 for stage in self.taken.values()), 2)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.announce(name)
        resettable = _reset_peak()
        start = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - start, 3)
        self.taken[name] = {"seconds": seconds, "peak_mb": peak_mb() if resettable else None}


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def peak_mb() -> float | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return None
