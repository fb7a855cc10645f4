from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import SimpleITK as sitk

from multipass import files


def test_code_sha256_covers_every_room(monkeypatch):
    hashed = []
    monkeypatch.setattr(files, "sha256_of", lambda paths: hashed.extend(paths) or "")
    files.code_sha256.__wrapped__()
    kinds = (".py", ".html", ".css", ".js")
    package = {path for kind in kinds for path in (files.ROOT / "multipass").rglob(f"*{kind}")}
    assert package <= set(hashed) and {path.suffix for path in package} == {*kinds}
    rooms = {path.parent.name for path in hashed}
    assert {"geometry", "dicom", "data", "model", "evaluation", "results", "anatomy"} <= rooms
    assert files.ROOT / "inference_pipeline" / "run_inference.py" in hashed


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with files.replacing(path) as first, files.replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and held(tmp_path) == ["a.txt"]


def test_a_file_of_the_longest_name_is_written(tmp_path):
    for letter in ("x", "ä", "日"):
        path = tmp_path / (letter * (250 // len(letter.encode())) + ".csv")
        with files.replacing(path) as temporary:
            temporary.write_text("whole")
        assert path.read_text() == "whole"


def test_a_folder_takes_the_place_of_another_whole_or_not_at_all(tmp_path):
    path = tmp_path / "case"
    for text in ("old", "new"):
        with files.replacing_folder(path) as temporary:
            (temporary / text).write_text(text)
        assert held(path) == [text]
    with pytest.raises(RuntimeError), files.replacing_folder(path) as temporary:
        (temporary / "half").write_text("half")
        raise RuntimeError
    assert held(path) == ["new"] and held(tmp_path) == ["case"]


def test_the_old_folder_stands_until_the_new_one_does(tmp_path, monkeypatch):
    path = tmp_path / "case"
    with files.replacing_folder(path) as temporary:
        (temporary / "old").write_text("old")
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".partial"):
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError), files.replacing_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert held(path) == ["old"] and held(tmp_path) == ["case"]


CLAIM = """
import sys, time
from pathlib import Path
from multipass.files import claimed
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
        with pytest.raises(ValueError, match=sentence), files.claimed(folder):
            raise AssertionError("claimed twice")
    with files.claimed(folder):  # although the run before was killed
        pass
    assert held(folder) == []


def test_a_claim_ends_with_an_error_in_it(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), files.claimed(tmp_path):
            raise RuntimeError
    again = files.claimed(tmp_path)
    with files.claimed(tmp_path), pytest.raises(ValueError, match="another run"):
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
    with files.claimed(tmp_path):
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
    with files.claimed(tmp_path):
        assert held(tmp_path) == [files.LOCK_NAME]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(ValueError, match="is no folder, or lies in none"),
            files.claimed(folder),
        ):
            pass


def test_a_read_only_folder_is_named(tmp_path, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.open", read_only)
    with (
        pytest.raises(ValueError, match=r"cannot be written to \(Read-only file system\)"),
        files.claimed(tmp_path),
    ):
        pass


def test_a_file_system_without_locks_keeps_no_run_out(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", without)
    leftover = tmp_path / ".a.7-0123456789abcdef.partial"
    leftover.write_text("perhaps someone is at work on it")
    with files.claimed(tmp_path), files.claimed(tmp_path):
        assert leftover.exists()


def test_links_to_folders_are_entered_once(tmp_path):
    (tmp_path / "root" / ".hidden").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("root/b", "root/.c", "root/.hidden/d", "other/a"):
        (tmp_path / name).write_text("")
    root = tmp_path / "root"
    (root / "link").symlink_to(tmp_path / "other")
    (root / "loop").symlink_to(root)
    assert files.files_below(root) == [root / "b", root / "link" / "a"]


def test_what_is_no_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert files.files_below(tmp_path) == [tmp_path / "gone"]


def test_itk_reads_a_file_of_any_name(tmp_path):
    """In a process of its own, since ITK would end it."""
    code = (
        "import sys, SimpleITK as sitk; from pathlib import Path; from multipass.scratch import *\n"
        "with in_utf8(Path(sys.argv[1])) as name: print(sitk.ReadImage(name).GetSize())"
    )
    for name in (b"M\xfcller.nii.gz", b"\xff/a.mha", "Müller 日本.nii".encode()):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        suffix = "".join(path.suffixes)
        sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkInt16), str(tmp_path / f"a{suffix}"))
        (tmp_path / f"a{suffix}").rename(path)
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True)
        assert done.stdout == "(4, 5, 6)\n", done.stderr
