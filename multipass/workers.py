"""Work on many items, in processes of this machine or of a Dask cluster, where one that dies costs
no more than its item."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    wait,
)
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from multipass.scratch import scratch_folder

T = TypeVar("T")
R = TypeVar("R")
# Beyond this a scheduler's address is wrong or it is down.
CONNECT_TIMEOUT_S = 20
WORKER_TIMEOUT_S = 60  # for one that was killed to be started again
END_TIMEOUT_S = 10  # for a process that is told to end
Submit = Callable[[Callable[[Any], Any], Any], Future]
Workers = Callable[[], contextlib.AbstractContextManager[tuple[Submit, int]]]
CONTAINERS_LIMIT = Path("/sys/fs/cgroup/memory.max")  # a container sees its own there
# Decoders redirect descriptors and warnings, which belong to the whole process.
_ALONE = threading.Lock()


def each_done(
    work: Callable[[T], R], items: Iterable[T], workers: Workers
) -> Iterator[tuple[T, R | Exception]]:
    """What a function makes of items, as it is done with them.

    An item whose process dies, as the system kills one that takes too much memory, is tried once
    more with no other beside it. All other items go on.

    Args:
        items: taken one after the other, as there is room for them.
        workers: opens what takes a function and an item, and says how many items it works on at a
            time.

    Yields:
        Each item with its result, or with the exception that it raised.
    """
    with workers():  # what cannot be opened is said before any work
        pass
    waiting = iter(items)
    while suspects := (yield from _opened(work, waiting, workers)):
        for item in suspects:
            for dead in (yield from _opened(work, iter([item]), workers, 1)):
                why = "its process was killed, twice; most often for want of memory"
                yield dead, ValueError(why)


def _opened(
    work: Callable[[T], R], waiting: Iterator[T], workers: Workers, most: int | None = None
) -> Generator[tuple[T, R | Exception], None, list[T]]:
    """As `_until_one_dies`, of new workers, with at most so many items at a time. Where these
    cannot be opened any more, that is what comes of all items."""
    with contextlib.ExitStack() as stack:
        try:
            submit, places = stack.enter_context(workers())
        except ValueError as error:
            yield from ((item, error) for item in waiting)
            return []
        return (yield from _until_one_dies(work, waiting, submit, most or places))


def _until_one_dies(
    work: Callable[[T], R], waiting: Iterator[T], submit: Submit, places: int
) -> Generator[tuple[T, R | Exception], None, list[T]]:
    """Takes items from `waiting` until none is left or a process died; returns those that were
    with it."""
    running: dict[Future, T] = {}
    suspects: list[T] = []
    while True:
        for item in islice(waiting, 0 if suspects else places - len(running)):
            try:
                running[submit(work, item)] = item
            except BrokenExecutor:
                suspects.append(item)
                break
        if not running:
            return suspects
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            item = running.pop(future)
            try:
                yield item, future.result()
            except (Exception, CancelledError) as error:
                if isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker":
                    suspects.append(item)
                elif isinstance(error, CancelledError):
                    yield item, ConnectionError("the scheduler of the cluster was lost")
                else:
                    yield item, error


# ---------------------------------------------------------------- this machine


@contextlib.contextmanager
def this_process() -> Iterator[tuple[Submit, int]]:
    """No other process: an item is done when it has been handed in."""
    yield _at_once, 1


def _at_once(work: Callable[[T], R], item: T) -> Future:
    future: Future = Future()
    try:
        future.set_result(work(item))
    except Exception as error:
        future.set_exception(error)
    return future


@contextlib.contextmanager
def processes(count: int) -> Iterator[tuple[Submit, int]]:
    """Processes that end with this one, at once if the block ends with an error; their temporary
    files go with them, however they end."""
    context = multiprocessing.get_context("spawn")
    with scratch_folder() as scratch:
        settled = partial(_settle_process, str(scratch))
        pool = ProcessPoolExecutor(count, context, initializer=settled)
        try:
            yield pool.submit, count
            pool.shutdown()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children = multiprocessing.active_children()
            for child in children:
                child.terminate()
            for child in children:  # what they were writing is removed next
                child.join(END_TIMEOUT_S)
            raise


def _settle_process(scratch: str) -> None:
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def affordable(count: int, bytes_each: int) -> int:
    """How many of so many processes there is memory for, at least one; all of them where the system
    does not say."""
    available = _available_bytes()
    return count if available is None else max(1, min(count, available // bytes_each))


def _available_bytes() -> int | None:
    """Memory that could be had, on Linux: of the machine, or of the container if that has less."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        available = int(facts["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        available = min(available, int(CONTAINERS_LIMIT.read_text(encoding="ascii")))
    return available


# --------------------------------------------------------------------- cluster


@contextlib.contextmanager
def cluster(address: str) -> Iterator[tuple[Submit, int]]:
    """The workers of a Dask scheduler; each works on one item at a time, whatever its threads.

    Raises:
        ValueError: it cannot be reached, or has no worker.
    """
    with _connected(address) as client:
        try:
            client.wait_for_workers(1, timeout=WORKER_TIMEOUT_S)
        except (TimeoutError, asyncio.TimeoutError):  # the same from Python 3.11 on
            raise ValueError(f"the Dask scheduler at {address} has no worker") from None
        submit = client.get_executor(pure=False).submit
        yield partial(submit, _one_at_a_time), len(client.nthreads())


def _one_at_a_time(work: Callable[[T], R], item: T) -> R:
    with _ALONE:
        return work(item)


def threads_of_worker() -> int:
    """How many threads the Dask worker was given that runs this."""
    from dask.distributed import get_worker

    return get_worker().state.nthreads


def _connected(address: str) -> Any:
    try:
        from dask.distributed import Client
    except ImportError:
        raise ValueError("a cluster needs Dask: pip install dask distributed") from None
    try:
        return Client(address, timeout=CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"no Dask scheduler answers at {address} ({reason})") from None
