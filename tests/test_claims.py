"""One run at a time in a folder."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from multipass import claims, files


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


CLAIM = """
import sys, time
from pathlib import Path
from multipass.claims import claimed
with claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_run(folder: Path):
    """A process that holds a claim; ends killed."""
    command = [sys.executable, "-c", CLAIM, str(folder)]
    with subprocess.Popen(command, cwd=files.ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_a_folder_is_claimed_by_one_process_at_a_time(tmp_path):
    folder = tmp_path / "new" / "out"
    with another_run(folder) as process:
        where = f"process {process.pid} on {socket.gethostname()}"
        sentence = rf"another run is writing to .*out \({where}\)"
        with pytest.raises(ValueError, match=sentence), claims.claimed(folder):
            raise AssertionError("claimed twice")
    with claims.claimed(folder):  # although the run before was killed
        pass
    assert held(folder) == []


def test_a_claim_ends_with_an_error_in_it(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), claims.claimed(tmp_path):
            raise RuntimeError
    again = claims.claimed(tmp_path)
    with claims.claimed(tmp_path), pytest.raises(ValueError, match="another run"):
        again.__enter__()


def test_what_a_killed_run_left_is_cleared_and_what_it_put_aside_comes_back(tmp_path):
    token = "7-0123456789abcdef"
    for name in (f".a.{token}.aside", f".b.{token}.aside", "b", f".a.{token}.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mask").write_text(name)
    (tmp_path / f".s.csv.{token}.partial").write_text("half")
    others = (".s.csv.partial", ".mine.7.partial", "x.partial", f"a.{token}.partial")
    for name in others:
        (tmp_path / name).write_text("someone's")
    with claims.claimed(tmp_path):
        pass
    assert held(tmp_path) == sorted([*others, "a", "b"])
    assert (tmp_path / "a" / "mask").read_text() == f".a.{token}.aside"
    assert (tmp_path / "b" / "mask").read_text() == "b"


def test_temporary_names_are_those_that_are_cleared(tmp_path):
    with ExitStack() as stack:
        stack.enter_context(files.replacing(tmp_path / "a.csv")).write_text("half")
        stack.enter_context(files.replacing_folder(tmp_path / "case"))
        killed = stack.pop_all()  # nothing is put away
    assert len(held(tmp_path)) == 2 and killed
    with claims.claimed(tmp_path):
        assert held(tmp_path) == [claims.LOCK_NAME]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(ValueError, match="is no folder, or lies in none"),
            claims.claimed(folder),
        ):
            pass


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.open", read_only)
    with (
        pytest.raises(ValueError, match=r"cannot be written to \(Read-only file system\)"),
        claims.claimed(tmp_path),
    ):
        pass


def test_a_file_system_without_locks_keeps_no_run_out(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", without)
    leftover = tmp_path / ".a.7-0123456789abcdef.partial"
    leftover.write_text("perhaps someone is at work on it")
    with claims.claimed(tmp_path), claims.claimed(tmp_path):
        assert leftover.exists()


def test_what_a_killed_process_of_the_run_left_is_cleared_at_its_end(tmp_path):
    with claims.claimed(tmp_path):
        (tmp_path / ".case.7-0123456789abcdef.partial").mkdir()
        (tmp_path / ".mine").mkdir()
    assert held(tmp_path) == [".mine"]


def test_a_lock_names_the_run_that_holds_it(tmp_path):
    assert claims.holder_of(tmp_path) == ""
    with claims.claimed(tmp_path):
        assert claims.holder_of(tmp_path).endswith(f" on {socket.gethostname()}")
    assert claims.holder_of(tmp_path) == ""
