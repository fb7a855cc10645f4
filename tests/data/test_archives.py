"""Archives: unpacked when they are needed, within bounds, whatever is wrong with one."""

from __future__ import annotations

import struct
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from multipass.data import archives, scans
from multipass.data.archives import Archive
from multipass.data.scans import find_cases

NOISE = bytes((k * k * 7919) % 251 for k in range(5000))


def packed(path: Path, *names: str, method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names:
            archive.writestr(name, NOISE)
    return path


def nested(path: Path, depth: int) -> Path:
    """A zip in a zip ..., a scan in the innermost."""
    packed(path, "scan.nrrd")
    for _ in range(depth - 1):
        content = path.read_bytes()
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inner.zip", content)
    return path


def unpacked(tmp_path: Path, path: Path) -> Archive:
    (tmp_path / "folder").mkdir()
    archive = Archive(path, tmp_path / "folder")
    archive.unpack()
    return archive


def files_of(archive: Archive) -> list[str]:
    held = sorted(p for p in archive.folder.rglob("*") if p.is_file())
    return [path.relative_to(archive.folder).as_posix() for path in held]


@pytest.mark.parametrize("method", [0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_file_does_not_stop_the_others(tmp_path, method):
    path = packed(tmp_path / "a.zip", "1.nii", "2.nii", "3.nii", method=method)
    with zipfile.ZipFile(path) as archive:
        item = archive.getinfo("2.nii")
    content = bytearray(path.read_bytes())
    start = item.header_offset + 40
    content[start : start + item.compress_size // 2] = b"\x55" * (item.compress_size // 2)
    path.write_bytes(content)
    archive = unpacked(tmp_path, path)
    assert files_of(archive) == ["1.nii", "3.nii"]
    assert [name for name, _ in archive.damaged] == ["2.nii"] and archive.damaged[0][1]


def test_what_cannot_be_decoded_is_named(tmp_path):
    path = packed(tmp_path / "a.zip", "1.nii", "2.nii")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = content.index(b"PK\x01\x02")
        content[at + 8] |= 1  # the flag of an encrypted file
        second = content.index(b"PK\x01\x02", at + 1)
        content[second + 10 : second + 12] = struct.pack("<H", 9)
    path.write_bytes(content)
    archive = unpacked(tmp_path, path)
    reasons = " ".join(reason for _, reason in archive.damaged)
    assert files_of(archive) == []
    assert "encrypted" in reasons and "compression method is not supported" in reasons


def test_a_file_without_a_name_is_told(tmp_path):
    path = packed(tmp_path / "a.zip", "a.nii")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"text")
    archive = unpacked(tmp_path, path)
    assert files_of(archive) == ["a.nii"] and len(archive.damaged) == 1


def test_names_of_any_length_are_told_in_brief(tmp_path):
    """As where a damaged directory says that a name is as long as the rest of the archive."""
    archive = unpacked(tmp_path, packed(tmp_path / "a.zip", "a.nii", "PK\1\n" * 9000))
    ((name, reason),) = archive.damaged
    assert name.isprintable() and len(name) <= 160 and reason.isprintable() and len(reason) <= 160


@pytest.mark.parametrize("content", [b"", b"PK nothing", b"PK\x05\x06" + b"\xff" * 18])
def test_what_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ValueError, match="no zip file, or damaged"):
        unpacked(tmp_path, tmp_path / "a.zip")


def test_archives_in_archives_to_a_depth(tmp_path):
    deepest = unpacked(tmp_path, nested(tmp_path / "a.zip", archives.MAX_DEPTH))
    assert files_of(deepest) == ["inner/inner/scan.nrrd"] and not deepest.damaged
    deepest.clear()
    deeper = Archive(nested(tmp_path / "b.zip", 500), deepest.folder)
    deeper.unpack()
    assert files_of(deeper) == [] and "more than 3 deep" in deeper.damaged[0][1]


def test_names_stay_in_the_folder_and_none_is_lost(tmp_path):
    names = ("../../up/a.nii", "/etc/b.nii", "c.nii", "d" * 300 + ".nii", "c.nii/e.nii")
    path = packed(tmp_path / "a.zip", *names)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("c.nii", b"another")
    archive = unpacked(tmp_path, path)
    assert files_of(archive) == ["c.nii", "etc/b.nii", "up/a.nii"]
    assert (archive.folder / "c.nii").read_bytes() == NOISE
    assert len(archive.damaged) == 3 and archive.damaged[-1][1] == "a second file of this name"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "folder"]


@pytest.mark.parametrize(
    ("bound", "value", "reason"),
    [
        ("MAX_BYTES", 9000, "at most 0 GiB are unpacked"),
        ("MAX_FILES", 1, "2 files, at most 1 are"),
        ("RATIO_FROM_BYTES", 0, "times its size"),
        ("SPARE_BYTES", 1 << 60, "TMPDIR"),
    ],
)
def test_bombs_are_refused_before_they_unpack(tmp_path, monkeypatch, bound, value, reason):
    path = packed(tmp_path / "a.zip", "1.nii")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.nii", bytes(8 << 20))
    monkeypatch.setattr(archives, bound, value)
    with pytest.raises(ValueError, match=reason):
        unpacked(tmp_path, path)
    assert list((tmp_path / "folder").iterdir()) == []


def test_an_archive_is_unpacked_while_its_cases_are_read(tmp_path, monkeypatch):
    packed(tmp_path / "in" / "a.zip", "1.nii", "2.nii")
    packed(tmp_path / "in" / "b.zip", "deep/3.nii")
    for kept in (scans.KEPT_BYTES, 0):
        monkeypatch.setattr(scans, "KEPT_BYTES", kept)
        with ExitStack() as stack:
            first, second, third = find_cases(tmp_path / "in", stack).cases
            assert [case.name for case in (first, second, third)] == ["a_1", "a_2", "b"]
            assert first.path.exists() == bool(kept)
            with first.at_hand():
                assert first.path.read_bytes() == NOISE
            with second.at_hand():
                assert second.path.exists()
            assert not second.path.exists()
            assert third.source == tmp_path / "in" / "b.zip" / "deep" / "3.nii"
            folder = first.archive.folder
        assert not folder.exists()


def test_the_cases_of_a_damaged_archive_say_so(tmp_path):
    path = packed(tmp_path / "in" / "a.zip", "1.nii", "2.nii")
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    packed(tmp_path / "in" / "b.zip", "readme.txt")
    (tmp_path / "in" / "x").mkdir()
    (tmp_path / "in" / "x" / "b.zip").write_bytes(b"")
    with ExitStack() as stack:
        found = find_cases(tmp_path / "in", stack)
    (case,) = found.cases
    assert case.name == "a" and case.notes[0].startswith("1 file of a.zip could not be unpacked")
    refused = sorted(found.refused)
    assert refused[:2] == [("a.zip", case.notes[0]), ("b.zip", "no scan in it")]
    assert refused[2][0] == "x/b.zip" and refused[2][1].startswith("cannot be unpacked: no zip")
