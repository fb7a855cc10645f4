"""Work on many items in processes of this machine or of a Dask cluster, where one that dies costs
no more than its item."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Future,
    ProcessPoolExecutor,
    wait,
)
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
# Beyond this a scheduler's address is wrong or it is down.
CONNECT_TIMEOUT_S = 20
WORKER_TIMEOUT_S = 60  # for one that was killed to be started again
Submit = Callable[[Callable[[Any], Any], Any], Future]
Workers = Callable[[], contextlib.AbstractContextManager[tuple[Submit, int]]]
# Decoders redirect descriptors and warnings, which belong to the whole process.
_ALONE = threading.Lock()


def each_done(
    work: Callable[[T], R], items: Sequence[T], workers: Workers
) -> Iterator[tuple[T, R | Exception]]:
    """What a function makes of items, as it is done with them.

    An item whose process dies, as the system kills one that takes too much memory, is tried once
    more with no other beside it. All other items go on.

    Args:
        workers: opens what takes a function and an item, and says how many items it works on at a
            time.

    Yields:
        Each item with its result, or with the exception that it raised.
    """
    with workers():  # what cannot be opened is said before any work
        pass
    waiting = deque(items)
    while waiting:
        suspects = yield from _opened(work, waiting, workers)
        for item in suspects:
            for dead in (yield from _opened(work, deque([item]), workers, 1)):
                why = "its process was killed, twice; most often for want of memory"
                yield dead, ValueError(why)


def _opened(
    work: Callable[[T], R], waiting: deque[T], workers: Workers, most: int | None = None
) -> Generator[tuple[T, R | Exception], None, list[T]]:
    """As `_until_one_dies`, of new workers, with at most so many items at a time. Where these
    cannot be opened any more, that is what comes of all items."""
    with contextlib.ExitStack() as stack:
        try:
            submit, places = stack.enter_context(workers())
        except ValueError as error:
            yield from ((item, error) for item in waiting)
            waiting.clear()
            return []
        return (yield from _until_one_dies(work, waiting, submit, most or places))


def _until_one_dies(
    work: Callable[[T], R], waiting: deque[T], submit: Submit, places: int
) -> Generator[tuple[T, R | Exception], None, list[T]]:
    """Takes items from `waiting` until none is left or a process died; returns those that were
    with it."""
    running: dict[Future, T] = {}
    suspects: list[T] = []
    while running or (waiting and not suspects):
        while waiting and len(running) < places and not suspects:
            item = waiting.popleft()
            try:
                running[submit(work, item)] = item
            except BrokenExecutor:
                suspects.append(item)
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
    return suspects


# ---------------------------------------------------------------- this machine


@contextlib.contextmanager
def processes(count: int) -> Iterator[tuple[Submit, int]]:
    """Processes that end with this one, at once if the block ends with an error."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, initializer=_settle_process)
    try:
        yield pool.submit, count
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()
        raise


def _settle_process() -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
