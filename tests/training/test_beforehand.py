"""What training.py says or refuses before it trains, and what it leaves when it cannot go on."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from balls import patient, write_cohort

from multipass.claims import claimed
from multipass.data.cohort import Cohort
from multipass.data.patient_files import write_patient
from multipass.model import checkpoint
from multipass.structures import PELVIS
from multipass.training.beforehand import check_annotations

ROOT = Path(__file__).resolve().parents[2]
NAN = float("nan")


WRONG = [
    *[{key: -1} for key in ("epochs", "passes", "batch_size", "steps_per_epoch", "minutes")],
    *[{key: -0.1} for key in ("lr", "weight_decay", "ema", "coarse", "augmentation")],
    *[{key: NAN} for key in ("lr", "weight_decay", "ema", "coarse", "augmentation", "minutes")],
    *[{key: 1.5} for key in ("ema", "coarse", "augmentation")],
    {"epochs": 0}, {"passes": 0}, {"lr": float("inf")}, {"seed": -1},
    {"filters": (4, 0, 8, 8)}, {"filters": (-4, 4, 8, 8)},
    {"folds": 0}, {"folds": 1}, {"folds": -2}, {"fold": 5}, {"fold": -1},
    {"name": "../elsewhere"}, {"name": "a/b"}, {"name": ".."},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_an_option_that_makes_no_sense_is_named(script, tmp_path, wrong):
    (key,) = wrong
    with pytest.raises(ValueError, match=f"--{key.replace('_', '-')} "):
        script.main(script.Options(data=tmp_path / "none", output=tmp_path / "new", **wrong))
    assert not (tmp_path / "new").exists()


def test_a_second_training_is_refused_before_it_writes(script, data, tmp_path):
    with claimed(tmp_path):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(ValueError, match="another run is writing to"):
            script.main(script.Options(data=data, output=tmp_path, folds=3))
        assert sorted(tmp_path.iterdir()) == before


def test_an_output_that_is_a_file_is_refused(script, data, tmp_path):
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(ValueError, match="is no folder"):
        script.main(script.Options(data=data, output=tmp_path / "letter", folds=3))


# ------------------------------------------------------------------- annotations


def annotated(folder: Path, *statuses: dict[str, str]) -> Cohort:
    folder.mkdir()
    for number, status in enumerate(statuses, 1):
        write_patient(folder / f"Patient_{number}.pkl", patient(number, status))
    return Cohort(folder)


def all_but(*names: str, status: str) -> dict[str, str]:
    return {s.name: status for s in PELVIS if s.name not in names}


def test_structures_that_no_patient_of_a_part_shows_are_said(tmp_path):
    cohort = annotated(
        tmp_path / "files",
        {"sacrum": "absent", "left femur": "empty"},
        {"sacrum": "complete", "left femur": "empty", "right femur": "cut"},
    )
    one, two = cohort.ids
    unseen, unjudged = check_annotations(cohort, [one], [two])
    assert unseen.startswith("In NO training patient") and "sacrum, left femur." in unseen
    assert unjudged.startswith("In no validation patient") and unjudged.endswith(" left femur.")
    (unjudged,) = check_annotations(cohort, [one, two], [one])[1:]
    assert "sacrum, left femur." in unjudged


@pytest.mark.parametrize("status", ["absent", "empty"])
def test_nothing_to_learn_or_to_judge_is_refused(tmp_path, status):
    cohort = annotated(tmp_path / "files", all_but("sacrum", status=status), {}, {})
    nothing = annotated(tmp_path / "nothing", all_but(status="empty"), {})
    assert not check_annotations(cohort, cohort.ids, cohort.ids)
    one, two = nothing.ids
    with pytest.raises(ValueError, match="nothing to learn"):
        check_annotations(nothing, [one], [two])
    with pytest.raises(ValueError, match="no model could be chosen"):
        check_annotations(nothing, [two], [one])


def test_the_script_refuses_before_the_first_epoch(script, tmp_path):
    annotated(tmp_path / "files", *[all_but(status="empty")] * 3)
    with pytest.raises(ValueError, match="nothing to learn"):
        script.main(script.Options(data=tmp_path / "files", output=tmp_path / "out", folds=3))
    assert not (tmp_path / "out" / "runs").exists()


# ------------------------------------------------------------- a folder's record


def test_a_patient_file_that_the_record_does_not_name_is_left_out(tmp_path):
    folder = write_cohort(tmp_path / "files", 2).parent
    write_patient(folder / "Patient_09.pkl", patient(9))
    cohort = Cohort(folder)
    assert cohort.ids == ["Patient_01", "Patient_02"]
    assert cohort.left_out == [folder / "Patient_09.pkl"]
    (folder / "Patient_01.pkl").unlink()
    with pytest.raises(ValueError, match=r"Patient_01\.pkl is gone"):
        Cohort(folder)
    (folder / ".complete_dataset.json").write_text('{"files": 3}')
    with pytest.raises(ValueError, match="damaged"):
        Cohort(folder)


def test_a_folder_put_together_by_hand_holds_each_patient_once(tmp_path):
    write_patient(tmp_path / "a.pkl", patient(1))
    assert Cohort(tmp_path).ids == ["Patient_01"]
    write_patient(tmp_path / "b.pkl", patient(1))
    with pytest.raises(ValueError, match=r"a\.pkl and b\.pkl are of one patient"):
        Cohort(tmp_path)


# ----------------------------------------------------------------------- resuming


def untrained(script: ModuleType, options) -> tuple:
    """What `begin` makes of a cohort of the pelvis' structures."""
    cohort = type("Cohort", (), {"structures": list(PELVIS), "extra": []})
    return script.begin(options, cohort, {"name": "n", "settings": {}}, torch.device("cpu"))


def test_resuming_where_nothing_is_says_so(script, tmp_path, capsys):
    options = script.Options(output=tmp_path / "mistyped", filters=(4, 4, 4, 4), resume=True, lr=1)
    untrained(script, options)
    assert f"there is no {tmp_path / 'mistyped' / 'last.pth'}" in capsys.readouterr().out
    untrained(script, replace(options, resume=False))
    assert "last.pth" not in capsys.readouterr().out


def test_good_weights_are_only_spoken_of_where_they_were_saved(script, tmp_path):
    options = script.Options(output=tmp_path, filters=(4, 4, 4, 4), lr=1)
    state, _ = untrained(script, options)
    with pytest.raises(ValueError, match="loss became nan in epoch 1") as error:
        script.check_finite(state, "loss", NAN)
    assert "last good weights" not in str(error.value)
    state.epoch = 1
    with pytest.raises(ValueError, match="hold the last good weights"):
        script.check_finite(state, "loss", NAN)


def test_a_full_disk_is_an_oserror_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "a.pth", {"weights": torch.zeros(9)})
    before = (tmp_path / "a.pth").read_bytes()

    @contextlib.contextmanager
    def on_a_full_disk(path: Path):
        yield Path("/dev/full")

    monkeypatch.setattr(checkpoint, "replacing", on_a_full_disk)
    with pytest.raises(OSError, match=r"a\.pth cannot be written, is the disk full"):
        checkpoint.save(tmp_path / "a.pth", {"weights": torch.zeros(10_000_000)})
    assert (tmp_path / "a.pth").read_bytes() == before
