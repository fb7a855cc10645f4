"""Results: each scan's own folder, nothing of others removed, finished only when all is there."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from multipass.data.case import Case
from multipass.geometry.volume import Grid, Volume
from multipass.results.case_folder import (
    as_json,
    is_finished,
    read_report,
    write_image,
    write_report,
)
from multipass.results.output_folder import OutputFolder, check_folders, log_file
from multipass.results.products import attempt, write_products
from multipass.results.summary import Outcome, rows_of
from multipass.results.timing import Stages
from multipass.results.viewer import page_data
from multipass.structures import PELVIS


def identity(sha256: str, code: str = "1") -> dict:
    return {"input_sha256": sha256, "code_sha256": code}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def segmented(output: Path, path: Path, sha256: str, text: str = "mask", **more) -> Path:
    """Writes a result for a scan, as a run of its own does."""
    output.mkdir(exist_ok=True)
    results = OutputFolder(output)
    case = Case(path.name.split(".")[0], path)
    place = results.place_for(case, lambda: sha256)
    place.check()
    files = {"mask.nii.gz": text, "seg.dcm": text, **more}
    with place.renewed(case, sha256, list(files)) as (folder, kept):
        for name, content in files.items():
            (folder / name).write_text(content)
        report = {"case": place.path.name, "identity": identity(sha256), "input": case.source}
        report |= {"structures": [], "flags": kept, "scores": [], "seconds": 1.0}
        report = write_report(folder, report, list(files))
    results.take(report, place)
    assert results.reports.keys() == OutputFolder(output).reports.keys()
    return place.path


def test_each_scan_of_one_name_gets_a_folder_of_its_own(tmp_path):
    output, scans = tmp_path / "out", [tmp_path / p / "ct.nii.gz" for p in ("A", "B", "x/B")]
    for _ in range(2):  # again, and nothing changes
        folders = [segmented(output, scan, str(k), f"mask {k}") for k, scan in enumerate(scans)]
        assert [folder.name for folder in folders] == ["ct", "B_ct", "B_ct_2"]
    assert [(f / "mask.nii.gz").read_text() for f in folders] == ["mask 0", "mask 1", "mask 2"]
    assert names(output) == ["B_ct", "B_ct_2", "ct"]


def test_a_scan_without_a_result_is_not_taken_for_another(tmp_path):
    segmented(tmp_path / "out", tmp_path / "A" / "ct.nii", "a")
    results = OutputFolder(tmp_path / "out")
    names = [results.called(Case("ct", tmp_path / place / "ct.nii")) for place in ("A", "B")]
    assert names == ["ct", f"ct ({tmp_path / 'B' / 'ct.nii'})"]
    assert results.called(Case("mr", tmp_path / "mr.nii")) == "mr"


def test_a_scan_that_moved_keeps_its_folder(tmp_path):
    first = segmented(tmp_path / "out", tmp_path / "here" / "ct.nii", "a")
    assert segmented(tmp_path / "out", tmp_path / "there" / "ct.nii", "a") == first


def test_scans_of_one_run_are_given_names_before_any_is_finished(tmp_path):
    """As workers need them, which segment several at a time."""
    output = tmp_path / "out"
    segmented(output, tmp_path / "A" / "ct.nii", "a")
    results = OutputFolder(output)
    scans = [("ct", "B/ct.nii"), ("B_ct", "C/B_ct.nii"), ("ct", "A/ct.nii"), ("ct", "D/ct.nii")]
    places = [results.place_for(Case(name, tmp_path / path), lambda: "b") for name, path in scans]
    assert [place.path.name for place in places] == ["B_ct", "C_B_ct", "ct", "D_ct"]
    moved = results.place_for(Case("ct", tmp_path / "E" / "ct.nii"), lambda: "a")
    assert moved.path.name == "E_ct"  # ct is given, to the scan that lies where it lay
    asides = [place.aside and place.aside.name for place in (*places, moved)]
    assert asides == [None, None, "ct_earlier", None, None]
    assert results.place_for(Case("ct_earlier", tmp_path / "x"), str).path.name != "ct_earlier"


def test_a_scan_that_a_killed_worker_had_finished_is_not_put_aside(tmp_path):
    output, scan = tmp_path / "out", tmp_path / "ct.nii"
    segmented(output, scan, "old")
    case = Case("ct", scan)
    place = OutputFolder(output).place_for(case, lambda: "new")
    for _ in range(2):
        with place.renewed(case, "new", []) as (folder, _):
            report = {"case": "ct", "identity": identity("new"), "input": scan}
            report |= {"structures": [], "flags": [], "scores": [], "seconds": 1.0}
            write_report(folder, report, [])
    assert names(output) == ["ct", "ct_earlier"]
    assert read_report(output / "ct_earlier")["identity"] == identity("old")


def test_a_scan_in_the_place_of_another_removes_no_result(tmp_path):
    output, path = tmp_path / "out", tmp_path / "ct.nii"
    for k in range(3):
        folder = segmented(output, path, str(k), f"mask {k}")
    assert folder.name == "ct" and (folder / "mask.nii.gz").read_text() == "mask 2"
    kept = {name: (output / name / "mask.nii.gz").read_text() for name in names(output)}
    assert kept == {"ct": "mask 2", "ct_earlier": "mask 0", "ct_earlier_2": "mask 1"}
    assert read_report(folder)["flags"] == [
        "the scan of this name has changed: earlier result kept in ct_earlier_2"
    ]


def test_what_someone_put_there_or_changed_stays(tmp_path):
    scan = tmp_path / "ct.nii"
    folder = segmented(tmp_path / "out", scan, "a", "old", **{"overlay.png": "old"})
    (folder / "corrected.nii.gz").write_text("by hand")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("by hand")
    (folder / "mask.nii.gz").write_text("corrected in place")
    (folder / "left_femur.stl").write_text("by hand")
    segmented(tmp_path / "out", scan, "a", "new", **{"left_femur.stl": "new"})
    held = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.*")}
    report = json.loads(held.pop("report.json"))
    assert held == {
        "mask.nii.gz": "new",
        "kept_mask.nii.gz": "corrected in place",
        "seg.dcm": "new",
        "corrected.nii.gz": "by hand",
        "notes/a.txt": "by hand",
        "left_femur.stl": "new",
        "kept_left_femur.stl": "by hand",
    }
    assert report["flags"] == [
        "left_femur.stl was of someone else: kept as kept_left_femur.stl",
        "mask.nii.gz had been changed: kept as kept_mask.nii.gz",
    ]
    assert list(report["files"]) == ["mask.nii.gz", "seg.dcm", "left_femur.stl"]


def test_an_error_leaves_the_old_result(tmp_path):
    folder = segmented(tmp_path / "out", tmp_path / "ct.nii", "a", "old")
    results, case = OutputFolder(tmp_path / "out"), Case("ct", tmp_path / "ct.nii")
    place = results.place_for(case, lambda: "a")
    with pytest.raises(OSError, match="full"), place.renewed(case, "a", []) as (new, _):
        (new / "mask.nii.gz").write_text("half")
        raise OSError("full")
    assert (folder / "mask.nii.gz").read_text() == "old" and names(tmp_path / "out") == ["ct"]


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "out" / "ct").mkdir(parents=True)
    (tmp_path / "out" / "ct" / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no report.json of this program"):
        segmented(tmp_path / "out", tmp_path / "ct.nii", "a")
    assert names(tmp_path / "out" / "ct") == ["report.json"]


def test_finished_means_that_all_that_was_wanted_is_there_whole(tmp_path):
    folder = segmented(tmp_path / "out", tmp_path / "ct.nii", "a", "0123456789")
    report = read_report(folder)
    assert is_finished(folder, report, identity("a"))
    assert not is_finished(folder, report, identity("b"))
    assert not is_finished(folder, report, identity("a", code="2"))
    mask = folder / "mask.nii.gz"
    for content in ("01234", "012345678_", None):
        mask.unlink() if content is None else mask.write_text(content)
        assert not is_finished(folder, report, identity("a"))
    mask.write_text("0123456789")
    assert is_finished(folder, report, identity("a"))
    missing = write_report(folder, report, ["mask.nii.gz", "seg.dcm", "view.html"])
    assert not is_finished(folder, missing, identity("a"))
    del missing["wanted"]
    assert not is_finished(folder, missing, identity("a"))


@pytest.mark.parametrize("text", ["", "[]", '{"case": 1}', "[" * 9999])
def test_a_report_that_is_none_is_not_read(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    assert read_report(tmp_path) is None


def test_reports_hold_any_name_and_number():
    path = Path(os.fsdecode(b"M\xfcller"))
    held = as_json({"a": path, "b": float("nan"), "c": (np.float32(0.5), np.int64(2)), path: 1})
    assert held == {"a": "M\\udcfcller", "b": None, "c": [0.5, 2], "M\\udcfcller": 1}
    json.dumps(held, ensure_ascii=False).encode()


def test_a_folder_that_itk_cannot_name_is_refused(tmp_path, monkeypatch):
    odd = tmp_path / os.fsdecode(b"M\xfcller")
    with pytest.raises(ValueError, match=r"--output .*M\\udcfcller: the name is not UTF-8"):
        check_folders(tmp_path / "in", odd)
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    with pytest.raises(ValueError, match="TMPDIR .*: the name is not UTF-8"):
        check_folders(tmp_path / "in", tmp_path / "out")


# ------------------------------------------------------------------- full disks


def test_a_file_that_cannot_be_written_takes_no_other_away(tmp_path):
    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    def crowded(path: Path) -> None:
        raise MemoryError

    whole = lambda path: path.write_text("whole")  # noqa: E731
    products = {"mask.nii.gz": whole, "overlay.png": full, "seg.dcm": crowded, "a.stl": whole}
    problems = write_products(tmp_path, products, Stages())
    assert problems == [
        "no overlay.png: [Errno 28] No space left on device",
        "no seg.dcm: not enough memory",
    ]
    assert names(tmp_path) == ["a.stl", "mask.nii.gz"]
    assert attempt(tmp_path / "none" / "b.stl", whole)[0].startswith("no b.stl: [Errno 2]")


def test_an_image_that_the_disk_cut_off_is_no_image(tmp_path, monkeypatch):
    image = sitk.GetImageFromArray(np.arange(4000, dtype=np.int16).reshape(10, 20, 20))
    write_image(tmp_path / "a.nii.gz", image)
    real = sitk.WriteImage

    def cutting(image, name, **options):
        real(image, name, **options)
        cut(name)

    monkeypatch.setattr(sitk, "WriteImage", cutting)
    for name in ("b.nii.gz", "b.nii"):
        with pytest.raises(ValueError, match="disk full"):
            write_image(tmp_path / name, image)


def test_a_page_is_not_made_of_an_image_that_was_cut_off(monkeypatch):
    volume = Volume(np.zeros((20, 20, 20), np.int16), Grid((20, 20, 20), (1, 1, 1), (0, 0, 0)))
    labels = np.ones((20, 20, 20), np.uint8)
    real = sitk.WriteImage
    page_data(volume, labels, PELVIS[:1])
    monkeypatch.setattr(sitk, "WriteImage", lambda image, name: (real(image, name), cut(name)))
    with pytest.raises(OSError, match="no room for temporary files in"):
        page_data(volume, labels, PELVIS[:1])


def cut(name: str) -> None:
    os.truncate(name, 700)


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    log = logging.getLogger("test")
    with log_file(log, tmp_path / "a.log"):
        log.error("Müller \udcfc")
        log.handlers[0].stream.close()
        log.handlers[0].stream = Path("/dev/full").open("w")  # noqa: SIM115
        log.error("lost")
    assert "Müller \\udcfc" in (tmp_path / "a.log").read_text(encoding="utf-8")
    assert capsys.readouterr().err == ""


# -------------------------------------------------------------- what is said


def test_summary_and_index_show_all_cases_and_the_end_counts_them(tmp_path, capsys):
    output = tmp_path / "out"
    for name in ("A", "B"):
        segmented(output, tmp_path / name / "ct.nii", name)
    results = OutputFolder(output)
    outcome = Outcome([results.reports["B_ct"]], [("x", "bad"), ("y", "bad"), ("B_ct", "no a.stl")])
    outcome.conclude(results, page=True)
    printed = capsys.readouterr()
    assert "1 of 3 cases segmented, 2 failed, 1 with something missing, results in" in printed.out
    assert "1 more from earlier runs in summary.csv" in printed.out
    assert not outcome.is_whole and printed.err.count("Failed: ") == 3
    lines = (output / "summary.csv").read_text(encoding="utf-8-sig").splitlines()
    assert [line.split(",")[0] for line in lines] == ["case", "B_ct", "ct"]
    page = (output / "index.html").read_text()
    assert str(tmp_path / "A" / "ct.nii") in page and str(tmp_path / "B" / "ct.nii") in page
    assert page.count("of an earlier run") == 1


def test_a_summary_that_cannot_be_written_is_said(tmp_path, capsys, monkeypatch):
    segmented(tmp_path / "out", tmp_path / "ct.nii", "a")
    (tmp_path / "out" / "summary.csv").mkdir()
    results = OutputFolder(tmp_path / "out")
    outcome = Outcome(list(results.reports.values()))
    outcome.conclude(results, page=True)
    assert "Failed: no summary.csv: " in capsys.readouterr().err and not outcome.is_whole
    assert (tmp_path / "out" / "index.html").exists()


def test_a_case_without_figures_has_a_line(tmp_path):
    report = {"case": "a", "flags": ["nothing"], "input": "a.nii", "scores": []}
    assert rows_of([report]) == [{"case": "a", "flags": "nothing", "input": "a.nii"}]
