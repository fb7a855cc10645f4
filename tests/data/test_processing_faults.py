"""processing.py when things go wrong: no patient, file or disk takes others with it."""

from __future__ import annotations

import contextlib
import csv
import errno
import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from balls import patient

from multipass.claims import claimed
from multipass.data.patient_files import read_dataset

ROOT = Path(__file__).resolve().parents[2]
REASONS = {"full": OSError(errno.ENOSPC, "No space left on device"), "big": MemoryError()}
REASONS |= {"odd": ZeroDivisionError(), "text": UnicodeDecodeError("utf-8", b"\xe4", 0, 1, "why")}


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    """processing.py, its patients balls, in threads; a folder's name says what goes wrong."""
    spec = importlib.util.spec_from_file_location("processing_script", ROOT / "processing.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)

    def prepare(folder: Path, *_):
        for file in folder.iterdir():
            if file.name in REASONS:
                raise REASONS[file.name]
        made = {**patient(1), "patient_id": module.patient_name(folder)}
        return made, {"size": "1 x 1 x 1", "spacing_mm": "1 x 1 x 1", "notes": ""}

    @contextlib.contextmanager
    def threads(count: int):
        with ThreadPoolExecutor(count) as pool:
            yield pool.submit, count

    monkeypatch.setattr(module, "prepare_patient", prepare)
    monkeypatch.setattr(module, "processes", threads)
    return module


def cohort(tmp_path: Path, **wrong: str) -> tuple[Path, Path]:
    """Folders of patients, each with a file named after what is wrong with it; the output."""
    for name, what in {"P1": "", "P2": "", **wrong}.items():
        (tmp_path / "ctpel" / name).mkdir(parents=True)
        (tmp_path / "ctpel" / name / (what or "scan")).touch()
    return tmp_path / "ctpel", tmp_path / "out"


def run(script: ModuleType, data: Path, output: Path) -> int:
    return script.main(script.Options(input=data, output=output, jobs=2))


def patients(output: Path) -> list[str]:
    return sorted(read_dataset(output / "complete_dataset.pkl")["patients"])


def files(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir())


WRITTEN = [".complete_dataset.json", ".state", "P1.pkl", "P2.pkl", "complete_dataset.pkl"]
WRITTEN += ["processing_report.csv", "processing_report.png"]


def test_one_that_fails_in_any_way_is_named_and_the_rest_is_whole(script, tmp_path, capsys):
    data, output = cohort(tmp_path, a="full", b="big", c="odd", d="text", complete_dataset="")
    assert run(script, data, output) == 1
    told = capsys.readouterr().err
    assert "Not processed: a: [Errno 28] No space left on device" in told
    assert "Not processed: b: not enough memory" in told
    assert "Not processed: c: unexpected ZeroDivisionError" in told
    assert "Not processed: d: unexpected UnicodeDecodeError" in told
    assert "cannot have the name complete_dataset" in told
    assert patients(output) == ["P1", "P2"] and files(output) == WRITTEN
    with (output / "processing_report.csv").open(encoding="utf-8-sig") as file:
        assert [r["outcome"] for r in csv.DictReader(file)].count("failed") == 5


def test_an_earlier_file_stays_where_the_new_one_fails_but_not_in_the_dataset(
    script, tmp_path, capsys
):
    data, output = cohort(tmp_path)
    assert run(script, data, output) == 0
    before = (output / "P2.pkl").read_bytes()
    (data / "P2" / "full").touch()
    assert run(script, data, output) == 1
    assert "its earlier file stays, outside the dataset" in capsys.readouterr().err
    assert (output / "P2.pkl").read_bytes() == before and patients(output) == ["P1"]


def test_no_patient_left_leaves_the_earlier_dataset(script, tmp_path, capsys):
    data, output = cohort(tmp_path)
    assert run(script, data, output) == 0
    for name in ("P1", "P2"):
        (data / name / "big").touch()
    assert run(script, data, output) == 1
    assert "that of an earlier run stays" in capsys.readouterr().err
    assert patients(output) == ["P1", "P2"]


def test_a_withdrawn_patient_leaves_no_file(script, tmp_path, capsys):
    data, output = cohort(tmp_path)
    assert run(script, data, output) == 0
    (output / "mine.pkl").write_bytes(b"by hand")
    (data / "P2").rename(tmp_path / "withdrawn")
    assert run(script, data, output) == 0
    assert "patient files removed: P2" in capsys.readouterr().out
    assert patients(output) == ["P1"]
    assert files(output) == sorted({*WRITTEN, "mine.pkl"} - {"P2.pkl"})
    (data / "P1" / "big").touch()
    (data / "P1").rename(data / "P3")
    assert run(script, data, output) == 1
    assert not (output / "complete_dataset.pkl").exists()


@pytest.mark.parametrize("missing", ["png", "dataset"])
def test_one_product_that_cannot_be_written_stops_no_other(
    script, tmp_path, monkeypatch, capsys, missing
):
    def fails(*_):
        raise REASONS["full"]

    name = {"png": "cohort_sheet", "dataset": "write_complete_dataset"}[missing]
    monkeypatch.setattr(script, name, fails)
    data, output = cohort(tmp_path)
    assert run(script, data, output) == 1
    told = capsys.readouterr().err
    assert "was not written: [Errno 28] No space left on device" in told
    gone = {"png": {"processing_report.png"}}.get(missing, set(WRITTEN[:1] + WRITTEN[4:5]))
    assert set(files(output)) == set(WRITTEN) - gone


def test_names_that_are_no_text(script, tmp_path):
    data, output = cohort(tmp_path, **{"M\udcfcller": "", "Müller": "", "M\udce4": "full"})
    assert run(script, data, output) == 1
    assert patients(output) == ["M%FCller", "Müller", "P1", "P2"]
    assert (output / "M%FCller.pkl").exists()


def test_a_second_run_on_an_output_is_refused_and_changes_nothing(script, tmp_path):
    data, output = cohort(tmp_path)
    with claimed(output):
        with pytest.raises(ValueError, match="another run is writing to"):
            run(script, data, output)
        assert not list(output.glob("P*"))


def test_an_output_that_is_a_file_is_refused_before_any_work(script, tmp_path):
    data, output = cohort(tmp_path)
    output.write_text("a letter")
    with pytest.raises(ValueError, match="is no folder"):
        run(script, data, output)
    assert output.read_text() == "a letter"


@pytest.mark.parametrize("options", [["--jobs", "0"], ["--input", "/Müller"]])
def test_a_terminal_that_has_not_the_letters_shows_the_sentence(options):
    done = subprocess.run(
        [sys.executable, ROOT / "processing.py", *options],
        env={"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert {"0": "--jobs 0: at least 1"}.get(options[1], "M\\xfcller") in done.stderr
