"""What processing.py records: withdrawn patients, another cohort, what has changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from balls import patient

from multipass.data.patient_files import write_patient
from multipass.data.records import Record, fingerprint_of, withdrawn


def recorded(output: Path, *names: str) -> Path:
    """Files and records of patients; returns the folder that they are of."""
    cohort_dir = output.parent / "ctpel"
    for name in names:
        (output / f"{name}.pkl").parent.mkdir(exist_ok=True)
        (output / f"{name}.pkl").write_bytes(name.encode())
        Record.of(name, cohort_dir, output).write("f", {"patient": name})
    return cohort_dir


def test_only_recorded_patients_are_withdrawn(tmp_path):
    cohort_dir = recorded(tmp_path / "out", "A", "B", "C")
    (tmp_path / "out" / "mine.pkl").write_bytes(b"by hand")
    (gone,) = withdrawn(["A", "C", "D"], cohort_dir, tmp_path / "out")
    gone.remove()
    left = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert left == ["A.json", "A.pkl", "C.json", "C.pkl", "mine.pkl"]
    assert not withdrawn(["A", "C", "D"], cohort_dir, tmp_path / "out")


def test_another_cohort_does_not_take_the_place_of_the_first(tmp_path):
    recorded(tmp_path / "out", "A")
    with pytest.raises(ValueError, match="holds the patients of .*ctpel, not of .*other"):
        withdrawn(["A"], tmp_path / "other", tmp_path / "out")


def test_a_row_holds_while_the_patient_file_does(tmp_path):
    record = Record.of("P", tmp_path, tmp_path)
    write_patient(record.target, patient(1))
    record.write("f", {"patient": "P"})
    assert record.row_if_unchanged("f") == {"patient": "P"}
    assert record.row_if_unchanged("g") is None
    whole = record.target.read_bytes()
    record.target.write_bytes(whole[:-100])
    assert record.row_if_unchanged("f") is None
    record.target.write_bytes(whole)
    assert record.row_if_unchanged("f") == {"patient": "P"}
    record.path.write_text('{"row": 1')
    assert record.row_if_unchanged("f") is None


def test_a_fingerprint_sees_what_lies_behind_links_and_names_that_are_no_text(tmp_path):
    folder, elsewhere = tmp_path / "P", tmp_path / "elsewhere"
    for made in (folder, elsewhere):
        made.mkdir()
    (elsewhere / "scan.dcm").write_bytes(b"1")
    (folder / "CT").symlink_to(elsewhere)
    (folder / "up").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "M\udcfcller.dcm").write_bytes(b"1")
    before = fingerprint_of(folder)
    assert fingerprint_of(folder) == before != fingerprint_of(folder, "a series")
    (elsewhere / "scan.dcm").write_bytes(b"22")
    assert fingerprint_of(folder) != before
