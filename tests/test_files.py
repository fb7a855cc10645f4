from __future__ import annotations

import os
import socket
import subprocess
import sys
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
    assert set(hashed) == package and {path.suffix for path in package} == {*kinds}
    rooms = {path.parent.name for path in hashed}
    assert {"geometry", "dicom", "data", "model", "evaluation", "results", "anatomy"} <= rooms


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
