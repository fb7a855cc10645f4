"""The cases of a run, in this process or by workers, which see the same folders under the same
paths."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch

from multipass import api
from multipass.claims import holder_of
from multipass.data.case import Case
from multipass.files import code_sha256, sha256_of
from multipass.inference.case import Announce, Request, Task, segment_case
from multipass.model.checkpoint import Model
from multipass.model.mirrored import with_mirroring
from multipass.results.output_folder import OutputFolder
from multipass.workers import (
    Workers,
    cluster,
    each_done,
    processes,
    this_process,
    threads_of_worker,
)

Work = Callable[[Task], dict[str, Any]]


@dataclass(frozen=True)
class Labour:
    """Who segments the cases of a run: this process, several of this machine, or a cluster.

    Attributes:
        jobs: processes of this machine.
        cluster: address of a Dask scheduler, '' for this machine.
        threads: of each process or worker; as many as Dask gave it if None.
    """

    jobs: int = 1
    cluster: str = ""
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"--jobs {self.jobs}: at least 1")
        if self.jobs > 1 and self.cluster:
            raise ValueError("--jobs is for one machine: a worker of --cluster takes one case")

    def work(self, request: Request, model: Model, output: Path, announce: Announce) -> Work:
        """What segments a case.

        Raises:
            ValueError: the network cannot mirror, and shall.
        """
        if request.settings.tta:
            model = with_mirroring(model)
        if self.jobs == 1 and not self.cluster:
            return partial(segment_case, request=request, model=model, announce=announce)
        holder = holder_of(output) if self.cluster else None
        run = Run(model.sha256, code_sha256(), self.threads, holder)
        return partial(segment_apart, request=request, run=run)

    @property
    def workers(self) -> Workers:
        """Who does."""
        if self.cluster:
            return partial(cluster, self.cluster)
        return this_process if self.jobs == 1 else partial(processes, self.jobs)


def each_segmented(
    cases: Sequence[Case], output: OutputFolder, work: Work, workers: Workers
) -> Iterator[tuple[Case, dict[str, Any] | Exception]]:
    """Each case with report.json's content, or with what went wrong, as they are done.

    Archives are unpacked, and names given, here and one after the other.

    Args:
        work, workers: of a `Labour`.
    """
    at_hand: dict[Path, ExitStack] = {}
    failed: list[tuple[Case, Exception]] = []

    def tasks() -> Iterator[Task]:
        for case in cases:
            with ExitStack() as stack:
                try:
                    stack.enter_context(case.at_hand())
                    place = output.place_for(case, partial(_sha256, case))
                except Exception as error:  # it must not stop the cohort
                    failed.append((case, error))
                    continue
                at_hand[place.path] = stack.pop_all()
            yield Task(case, place)

    for task, done in each_done(work, tasks(), workers):
        yield from failed
        failed.clear()
        at_hand.pop(task.place.path).close()
        if not isinstance(done, Exception):
            output.take(done, task.place)
        yield task.case, done
    yield from failed


def _sha256(case: Case) -> str:
    return sha256_of(case.files)


# --------------------------------------------------------------------- workers


@dataclass(frozen=True)
class Run:
    """What a worker must have in common with the run that it works for.

    Attributes:
        threads: of the worker; as many as Dask gave it if None.
        holder: of the lock of the folder of results, see `claims.holder_of`; None where workers end
            with the run. Those of a cluster go on after it was stopped: what they make then is
            thrown away, since another run may be at work there.
    """

    model_sha256: str
    code_sha256: str
    threads: int | None
    holder: str | None


def segment_apart(task: Task, request: Request, run: Run) -> dict[str, Any]:
    """As `segment_case`, in a worker, which reads the network once.

    Raises:
        ValueError: also where the worker has another network or other code than the run.
    """
    if code_sha256() != run.code_sha256:
        raise ValueError(
            f"the worker on {socket.gethostname()} has another version of this program than the "
            "run: install the same there and start it again"
        )
    threads = run.threads or threads_of_worker()
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    model = _model(request.model_path, run.model_sha256, request.device, request.settings.tta)
    is_wanted = partial(_is_wanted, task.place.path.parent, run.holder)
    return segment_case(task, request, model, is_wanted=is_wanted)


def _is_wanted(folder: Path, holder: str | None) -> bool:
    return holder is None or holder_of(folder) == holder


@lru_cache(maxsize=1)
def _model(path: Path, sha256: str, device: str, tta: bool) -> Model:
    model = api.load_model(path, device)
    if model.sha256 != sha256:
        raise ValueError(
            f"{path} on {socket.gethostname()} is another network than that of the run (SHA-256 "
            f"{model.sha256}, not {sha256}): give --model a path that all workers share"
        )
    return with_mirroring(model) if tta else model
