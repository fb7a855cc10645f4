"""Work in processes: one that dies costs its item, and no other."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest

from multipass import workers
from multipass.workers import affordable, cluster, each_done, processes, this_process


def halve(number: int, once: Path) -> float:
    """12 kills its process, 8 does the first time, 0 cannot be divided."""
    if number == 12 or (number == 8 and not once.exists()):
        once.touch() if number == 8 else None
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 0:
        raise ZeroDivisionError
    return number / 2


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_process_that_is_killed_costs_no_other_item(tmp_path):
    items = [2, 12, 0, 8, 6]
    work = partial(halve, once=tmp_path / "once")
    done = dict(each_done(work, items, partial(processes, 2)))
    assert sorted(done) == sorted(items)
    assert {k: v for k, v in done.items() if isinstance(v, float)} == {2: 1, 8: 4, 6: 3}
    assert isinstance(done[0], ZeroDivisionError)
    assert isinstance(done[12], ValueError) and "killed, twice" in str(done[12])


def test_no_more_items_are_at_work_than_there_is_room_for_and_suspects_are_alone():
    at_work: list[int] = []
    together: list[tuple[int, ...]] = []

    def work(item: int) -> int:
        at_work.append(item)
        together.append(tuple(at_work))
        time.sleep(0.02)
        at_work.remove(item)
        if item in (1, 2):
            raise BrokenProcessPool
        return item

    @contextlib.contextmanager
    def threads() -> Iterator[tuple[workers.Submit, int]]:
        with ThreadPoolExecutor(9) as pool:
            yield pool.submit, 3

    done = dict(each_done(work, range(7), threads))
    assert {k for k, v in done.items() if isinstance(v, Exception)} == {1, 2}
    assert max(map(len, together)) == 3
    assert (1,) in together and (2,) in together


def test_in_this_process_items_are_taken_and_done_one_after_the_other():
    seen = []

    def items() -> Iterator[int]:
        for item in (2, 0, 6):
            seen.append(f"take {item}")
            yield item

    def work(item: int) -> float:
        seen.append(f"do {item}")
        return 12 / item

    done = [(item, result) for item, result in each_done(work, items(), this_process)]
    assert seen == ["take 2", "do 2", "take 0", "do 0", "take 6", "do 6"]
    assert [result for _, result in done if isinstance(result, float)] == [6, 2]
    assert isinstance(done[1][1], ZeroDivisionError)


def test_items_are_taken_as_there_is_room_for_them():
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(6):
            taken.append(item)
            yield item

    @contextlib.contextmanager
    def threads() -> Iterator[tuple[workers.Submit, int]]:
        with ThreadPoolExecutor(2) as pool:
            yield pool.submit, 2

    for count, _ in enumerate(each_done(abs, items(), threads), start=1):
        assert len(taken) <= count + 1


def test_ctrl_c_in_this_process_ends_the_work():
    def work(item: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(each_done(work, [1], this_process))


def test_no_more_processes_than_there_is_memory_for(monkeypatch, tmp_path):
    free = workers._available_bytes()
    assert free is None or free > 1 << 20
    monkeypatch.setattr(workers, "_available_bytes", lambda: 7 << 30)
    assert [affordable(count, 2 << 30) for count in (1, 3, 8)] == [1, 3, 3]
    assert affordable(4, 9 << 30) == 1
    monkeypatch.setattr(workers, "_available_bytes", lambda: None)
    assert affordable(8, 2 << 30) == 8
    monkeypatch.undo()
    (tmp_path / "limit").write_text(f"{1 << 20}\n")
    monkeypatch.setattr(workers, "CONTAINERS_LIMIT", tmp_path / "limit")
    assert free is None or workers._available_bytes() == 1 << 20


def leave(path: Path) -> Path:
    """A temporary file that nothing removes; its process is killed the first time."""
    descriptor, name = tempfile.mkstemp()
    os.close(descriptor)
    if not path.exists():
        path.write_text(name)
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(name)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_temporary_files_go_with_the_processes_that_left_them(tmp_path):
    ((_, left),) = each_done(leave, [tmp_path / "left"], partial(processes, 1))
    assert not left.exists() and not Path((tmp_path / "left").read_text()).exists()
    assert left.parent != Path(tempfile.gettempdir())


def test_processes_end_with_the_run_that_started_them(tmp_path):
    """As after Ctrl-C: at once, not after the items that they are at."""
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), processes(1) as (submit, _):
        running = submit(time.sleep, 300)
        while not running.running():
            time.sleep(0.05)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 60


def test_a_scheduler_that_is_down_is_one_sentence(monkeypatch):
    pytest.importorskip("dask.distributed")
    monkeypatch.setattr(workers, "CONNECT_TIMEOUT_S", 0.5)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(ValueError, match=f"no Dask scheduler answers at {address}"):
            list(each_done(abs, [1], partial(cluster, address)))


@pytest.mark.slow
def test_a_cluster_that_loses_its_scheduler_names_what_is_left():
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as local:
        done = []
        for item, result in each_done(abs, [-1, -2], partial(cluster, local.scheduler_address)):
            done.append((item, result))
            local.close()
    assert done[0] == (-1, 1)
    assert done[1][0] == -2 and isinstance(done[1][1], ConnectionError)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_cluster_s_worker_that_is_killed_costs_no_other_item(tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None
    ) as local:
        work = partial(halve, once=tmp_path / "once")
        done = dict(each_done(work, [2, 12, 6], partial(cluster, local.scheduler_address)))
    assert {k: v for k, v in done.items() if isinstance(v, float)} == {2: 1, 6: 3}
    assert "killed, twice" in str(done[12])
