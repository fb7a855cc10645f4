"""training.py, run as people run it, on a cohort of balls with a small network."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from balls import patient, write_cohort
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import ReduceLROnPlateau

from multipass.data.cohort import Cohort
from multipass.data.patient_files import read_patient, write_patient
from multipass.geometry.windows import COARSE_GRID_SIZE, GRID_SIZE
from multipass.model import checkpoint
from multipass.model.network import MultiPassUNet
from multipass.model.passes import computed_in
from multipass.structures import PELVIS
from multipass.training.loss import hard_dice, soft_loss, with_background

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--filters", "4", "4", "8", "8", "--folds", "3", "--steps-per-epoch", "1", "--lr", "0.01"]
SMALL += ["--passes", "2"]


def command(data: Path, output: Path, *more: str) -> list[str]:
    script = [sys.executable, str(ROOT / "training.py")]
    return [*script, "--data", str(data), "--output", str(output), *SMALL, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def train(data: Path, output: Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(data, output, *more), env=environment(), capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    output = tmp_path_factory.mktemp("out")
    done = train(data, output, "--epochs", "3", "--name", "one")
    assert done.returncode == 0, done.stderr
    return output, done


def same_weights(one: Path, two: Path) -> bool:
    a, b = (checkpoint.read(p)["training"]["state"] for p in (one, two))
    return all(
        torch.equal(a[part][name], b[part][name])
        for part in ("network", "average")
        for name in a[part]
    )


def test_it_reports_and_keeps_the_best(finished):
    output, done = finished
    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 3
    assert "best_model.pth: Dice 0.0000 -> " in done.stdout
    assert lines[-1].endswith(f"run_inference.py --model {output / 'best_model.pth'}")
    assert "dice=" in done.stderr and "loss=" in done.stderr
    model = checkpoint.load(output / "best_model.pth")
    assert model.structures == list(PELVIS)
    assert (model.windows, model.hu_range) == (("scan", "pelvis"), (-200.0, 1000.0))
    trained_on = model.info["trained_on"]
    assert trained_on["patients"] == 2
    ids = set(trained_on["training"]) | set(trained_on["validation"])
    assert ids == {"Patient_01", "Patient_02", "Patient_03"}
    assert not set(trained_on["training"]) & set(trained_on["validation"])


def test_the_run_folder(finished):
    folder = finished[0] / "runs" / "one"
    with (folder / "history.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["dice_pass2"]) == float(rows[-1]["dice"])
    by_structure = [float(rows[-1][f"dice_pass1_{structure.name}"]) for structure in PELVIS]
    assert float(rows[-1]["dice_pass1"]) == pytest.approx(np.mean(by_structure))
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["seed"] == 0 and len(config["trained_on"]["data_sha256"]) == 64
    assert config["options"]["epochs"] == 3 and config["options"]["filters"] == [4, 4, 8, 8]
    assert config["versions"]["torch"] == torch.__version__
    assert (folder / "curves.png").stat().st_size > 5000
    events = EventAccumulator(str(folder))
    events.Reload()
    assert len(events.Scalars("dice")) == 3
    assert events.Images("validation")


def test_without_scans_it_ends_with_the_windows_grids(finished):
    output, done = finished
    assert "No scan of a validation patient in" in done.stdout
    folder = output / "runs" / "one"
    with (folder / "grid.csv").open(encoding="utf-8-sig") as file:
        last = [float(r["dice"]) for r in csv.DictReader(file) if r["pass"] == "2"]
    with (folder / "history.csv").open(encoding="utf-8-sig") as file:
        best = max(float(row["dice"]) for row in csv.DictReader(file))
    assert np.mean(last) == pytest.approx(best, abs=1e-4)
    assert not (folder / "native.csv").exists()


def test_resuming_a_finished_run_gives_its_table_again(script, data, tmp_path, capsys):
    options = script.Options(
        data=data, output=tmp_path, name="one", filters=(4, 4, 8, 8), folds=3, steps_per_epoch=1,
        epochs=1, dicom=tmp_path / "nowhere",
    )  # fmt: skip
    assert script.main(options) == 0
    table = tmp_path / "runs" / "one" / "grid.csv"
    before, best = table.read_bytes(), (tmp_path / "best_model.pth").read_bytes()
    table.unlink()
    assert script.main(replace(options, resume=True)) == 0
    assert "Going on after epoch 1" in capsys.readouterr().out
    assert table.read_bytes() == before
    assert (tmp_path / "best_model.pth").read_bytes() == best


def test_resumed_after_kill_9_equals_undisturbed(data, finished, tmp_path):
    """Bit by bit; so two runs are the same as well."""
    start = command(data, tmp_path, "--epochs", "3", "--resume")
    process = subprocess.Popen(
        start, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "last.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.read(tmp_path / "last.pth")["training"]["state"]["epoch"] < 3
    done = train(data, tmp_path, "--epochs", "3", "--resume")
    assert "Going on after epoch" in done.stdout, done.stderr
    assert same_weights(finished[0] / "last.pth", tmp_path / "last.pth")
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize("other", [("--seed", "7"), ("--epochs", "9")])
def test_resume_refuses_another_run(data, finished, other):
    done = train(data, finished[0], "--epochs", "3", "--resume", *other)
    named = other[0].lstrip("-")
    assert done.returncode != 0 and named in done.stderr and "Traceback" not in done.stderr


def torchrun(arguments: list[str]) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    return subprocess.run(
        launch + arguments, env=environment(), capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_two_processes_equal_one(data, tmp_path):
    """The same batch of two, in one process and in two: the same losses within rounding.

    Two processes take a sample each if nobody says otherwise; both find the finished run again.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--epochs", "4", "--name", "x"]
    done = train(data, one, *more, "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    done = torchrun(command(data, two, *more)[1:])
    assert done.returncode == 0, done.stderr
    done = torchrun(command(data, two, *more, "--resume")[1:])
    assert done.returncode == 0 and "Going on after epoch 4" in done.stdout, done.stderr
    columns = []
    for output in (one, two):
        with (output / "runs" / "x" / "history.csv").open(encoding="utf-8-sig") as file:
            columns.append([float(r["train_loss"]) for r in csv.DictReader(file)])
    # bfloat16 rounds by up to 2^-8
    rounding = 1e-3 if computed_in(torch.device("cpu")) == torch.float32 else 2**-8
    np.testing.assert_allclose(columns[0], columns[1], rtol=rounding)


@pytest.mark.slow
def test_gradients_are_averaged_over_processes(tmp_path):
    script = tmp_path / "average.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import torch\n"
        "from multipass.training.processes import *\n"
        "start_processes()\n"
        "layer = torch.nn.Linear(2, 1)\n"
        "for p in layer.parameters():\n"
        "    p.grad = torch.full_like(p, 1.0 + 2 * rank())\n"
        "average_gradients(layer)\n"
        "assert all((p.grad == 2).all() for p in layer.parameters())\n"
        "assert from_first(rank()) == 0\n"
        "stop_processes()\n"
    )
    done = torchrun([str(script)])
    assert done.returncode == 0, done.stderr


def test_a_run_of_another_optimizer_is_not_resumed(finished, data, tmp_path):
    """As those of the releases before Muon, whose last.pth names none."""
    content = checkpoint.read(finished[0] / "last.pth")
    del content["training"]["settings"]["optimizer"]
    checkpoint.save(tmp_path / "last.pth", content)
    done = train(data, tmp_path, "--epochs", "3", "--name", "one", "--resume")
    assert done.returncode == 1 and "optimizer = None" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_is_one_sentence(tmp_path):
    done = train(Path("nowhere.pkl"), tmp_path)
    assert done.returncode == 1
    assert "processing.py" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"folds": 9}, "9 folds"),
        ({"folds": 3, "fold": 3}, "folds 0 to 2"),
        ({"passes": 0}, "--passes"),
        ({"folds": 3, "init": Path("nowhere.pth")}, "no such checkpoint"),
        ({"folds": 3, "structures": Path("nowhere.json")}, "nowhere.json"),
    ],
)
def test_options_that_make_no_sense(script, data, tmp_path, options, needed):
    with pytest.raises((ValueError, OSError), match=needed):
        script.main(script.Options(data=data, output=tmp_path, filters=(4, 4, 8, 8), **options))
    assert not list(tmp_path.iterdir())


def test_preview(script, data, tmp_path):
    script.main(script.Options(data=data, output=tmp_path / "new", folds=3, preview=True))
    assert (tmp_path / "new" / "preview.png").stat().st_size > 20_000
    assert not (tmp_path / "new" / "last.pth").exists()


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_what_is_no_number_stops_and_keeps_the_last_weights(
    script, data, tmp_path, monkeypatch, value
):
    options = script.Options(
        data=data, output=tmp_path, filters=(4, 4, 8, 8), folds=3, steps_per_epoch=1, epochs=1
    )
    script.main(options)
    before = [(tmp_path / name).read_bytes() for name in ("last.pth", "best_model.pth")]
    right, calls = script.soft_loss, []

    def wrong(logits, target, known):
        calls.append(right(logits, target, known))
        # Of the last pass of the second step: 0 or nan, with a gradient that is no number.
        return calls[-1] + torch.sqrt(0 * logits.sum()) * value if len(calls) == 4 else calls[-1]

    monkeypatch.setattr(script, "soft_loss", wrong)
    monkeypatch.setattr("multipass.training.beginning.SETTINGS", ())
    with pytest.raises(ValueError, match="the gradient became nan in epoch 2"):
        script.main(replace(options, epochs=2, steps_per_epoch=2, resume=True))
    assert [(tmp_path / name).read_bytes() for name in ("last.pth", "best_model.pth")] == before


def test_an_overflow_in_another_process_leaves_out_the_step_in_this_one(script, monkeypatch):
    """fp16: all processes must leave out the same steps, or their weights part for good."""
    network = MultiPassUNet(2, (4, 4, 4, 4))
    state = script.State(network, 0.1, 0.0, 0.9, torch.device("cpu"))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024)
    before = [p.clone() for p in network.parameters()]

    def all_reduce(network):
        for parameter in network.parameters():
            parameter.grad.fill_(float("inf"))

    monkeypatch.setattr(script, "average_gradients", all_reduce)
    script.descend(state, sum(p.square().sum() for p in network.parameters()))
    assert all(map(torch.equal, network.parameters(), before))
    assert state.scaler.get_scale() == 512


@pytest.fixture
def sizes(script, monkeypatch) -> list[tuple[int, ...]]:
    """Voxels of the windows that were trained on."""
    seen: list[tuple[int, ...]] = []
    learn = script.learn

    def watched(state, batch, **more):
        seen.append(tuple(batch.views[0].image.shape[2:]))
        return learn(state, batch, **more)

    monkeypatch.setattr(script, "learn", watched)
    return seen


@pytest.mark.parametrize(("schedule", "judged"), [("cosine", 0), ("plateau", 2)])
def test_the_first_part_of_training_is_coarse(
    script, data, tmp_path, monkeypatch, sizes, schedule, judged
):
    scores = []
    monkeypatch.setattr(ReduceLROnPlateau, "step", lambda self, dice: scores.append(dice))
    options = script.Options(
        data=data, output=tmp_path, dicom=tmp_path, epochs=4, steps_per_epoch=1,
        filters=(4, 4, 4, 4), folds=3, passes=2, schedule=schedule,
    )  # fmt: skip
    script.main(options)
    assert sizes == [COARSE_GRID_SIZE] * 2 + [GRID_SIZE] * 2
    assert len(scores) == judged


def test_a_training_of_one_epoch_ends_on_whole_windows(script, data, tmp_path, sizes):
    options = script.Options(
        data=data, output=tmp_path, dicom=tmp_path, epochs=1, steps_per_epoch=2,
        filters=(4, 4, 4, 4), folds=3, passes=2,
    )  # fmt: skip
    script.main(options)
    assert sizes == [COARSE_GRID_SIZE, GRID_SIZE]


def test_fine_tuning_is_not_coarse_and_never_worse_on_its_validation_patients(
    script, data, finished, tmp_path, sizes, capsys
):
    best = finished[0] / "best_model.pth"
    options = script.Options(
        data=data, output=tmp_path, dicom=tmp_path, epochs=1, steps_per_epoch=2, lr=3.0,
        filters=(4, 4, 8, 8), folds=3, passes=2, init=best,
    )  # fmt: skip
    script.main(options)
    assert sizes == [GRID_SIZE, GRID_SIZE]
    before = checkpoint.load(best).info["dice"]
    printed = capsys.readouterr().out
    assert "new structures: none" in printed
    assert f"Validation Dice before training {before:.4f}" in printed
    kept = checkpoint.load(tmp_path / "best_model.pth")
    assert kept.info["dice"] == pytest.approx(before, abs=1e-4)
    for name, value in checkpoint.load(best).network.state_dict().items():
        torch.testing.assert_close(kept.network.state_dict()[name], value)


@pytest.mark.parametrize(("passes", "window"), [(1, "pelvis"), (3, "pelvis"), (2, "scan")])
def test_any_number_of_passes_and_both_kinds_of_window(script, data, tmp_path, passes, window):
    options = script.Options(
        data=data, output=tmp_path, dicom=tmp_path, epochs=1, steps_per_epoch=1,
        filters=(4, 4, 4, 4), folds=3, passes=passes, window=window,
    )  # fmt: skip
    assert script.main(options) == 0
    model = checkpoint.load(tmp_path / "best_model.pth")
    looked = {"scan": ("scan", "scan"), "pelvis": ("scan", "pelvis", "parts")}[window]
    assert model.windows == looked[:passes]
    with (
        next((tmp_path / "runs").iterdir())
        .joinpath("history.csv")
        .open(encoding="utf-8-sig") as file
    ):
        (row,) = csv.DictReader(file)
    assert [k for k in row if k.startswith("dice_pass") and k[-1].isdigit()] == [
        f"dice_pass{k}" for k in range(1, passes + 1)
    ]


def test_a_published_network_is_not_overwritten(script, data, tmp_path):
    (tmp_path / "best_model.pth.sha256").write_text("0" * 64)
    with pytest.raises(ValueError, match="published"):
        script.main(script.Options(data=data, output=tmp_path, folds=3))


# ------------------------------------------------------------- cohort and losses


def test_folds_part_the_patients(data):
    cohort = Cohort(data)
    folds = [cohort.split(3, k) for k in range(3)]
    assert sorted(i for _, val in folds for i in val) == cohort.ids
    for training, validation in folds:
        assert not set(training) & set(validation)


def test_a_further_patient_leaves_the_folds_nearly_as_they_are(data):
    cohort = Cohort(data)
    cohort.ids = [f"Patient_{k:02d}" for k in range(1, 91)]
    before = [set(cohort.split(5, k)[1]) for k in range(5)]
    cohort.ids.append("Patient_91")
    for k, earlier in enumerate(before):
        assert len(earlier) == 18
        assert len(earlier & set(cohort.split(5, k)[1])) >= 17


def test_patient_files_that_a_dataset_was_not_joined_from_are_left_alone(tmp_path, monkeypatch):
    data = write_cohort(tmp_path, 3)
    write_patient(tmp_path / "Patient_09.pkl", {**patient(9), "patient_id": "Patient_09"})
    monkeypatch.setattr("multipass.data.cohort.MAX_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("multipass.data.cohort.read_dataset", None)
    assert Cohort(data).ids == ["Patient_01", "Patient_02", "Patient_03"]


def test_an_earlier_network_is_renamed_not_overwritten(script, data, tmp_path, capsys):
    options = script.Options(
        data=data,
        output=tmp_path,
        filters=(4, 4, 8, 8),
        folds=3,
        passes=2,
        steps_per_epoch=1,
        epochs=1,
    )
    script.main(options)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pth")}
    script.main(replace(options, name="again", seed=1))
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("*_20*.pth")}
    assert sorted(kept.values()) == sorted(before.values())
    assert "best_model.pth of an earlier run is now best_model_" in capsys.readouterr().out
    script.main(replace(options, name="again", seed=1, resume=True))
    assert len(list(tmp_path.glob("*.pth"))) == 4


def test_the_folder_is_the_same_cohort_as_the_file(data):
    held, streamed = Cohort(data), Cohort(data.parent)
    assert held.ids == streamed.ids and held.structures == streamed.structures
    one, two = (c.sample("Patient_02") for c in (held, streamed))
    assert one.levels == two.levels and np.array_equal(one.points_mm, two.points_mm)


def test_a_folder_is_read_one_patient_at_a_time(data, monkeypatch):
    alive: list[weakref.ref] = []
    together = []

    def watched(path: Path) -> dict:
        together.append(sum(image() is not None for image in alive))
        patient = read_patient(path)
        alive.append(weakref.ref(patient["fractions"]))
        return patient

    monkeypatch.setattr("multipass.data.cohort.read_patient", watched)
    opened = Cohort(data.parent)
    for patient_id in 2 * opened.ids:
        opened.sample(patient_id)
    assert len(together) == 9
    assert max(together) <= 1


def test_a_dataset_too_large_to_hold_is_read_from_the_files_beside_it(data, tmp_path, monkeypatch):
    monkeypatch.setattr("multipass.data.cohort.MAX_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("multipass.data.cohort.read_dataset", None)
    assert Cohort(data).ids == Cohort(data.parent).ids
    monkeypatch.undo()
    monkeypatch.setattr("multipass.data.cohort.MAX_IN_MEMORY_BYTES", 0)
    alone = tmp_path / "complete_dataset.pkl"
    alone.hardlink_to(data)
    assert Cohort(alone).ids == Cohort(data).ids


def test_an_absent_structure_keeps_its_channel(tmp_path):
    write_patient(tmp_path / "Patient_01.pkl", patient(1, {"sacrum": "absent"}))
    write_patient(tmp_path / "Patient_02.pkl", patient(2))
    cohort = Cohort(tmp_path)
    assert cohort.structures == list(PELVIS)
    sample = cohort.sample("Patient_01")
    assert sample.known.tolist() == [True, True, False, True, True]
    assert sample.rows == [1, 2, 0, 4, 5]


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    fractions = torch.softmax(torch.randn(2, 4, 12, 12, 12) * 3, 1)[:, 1:]
    return torch.randn(2, 4, 12, 12, 12), with_background(fractions)


def test_loss_is_least_at_the_fractions_themselves():
    _, target = problem()
    known = torch.ones(2, 3, dtype=torch.bool)
    best = soft_loss(target.log(), target, known)
    for seed in range(3):
        torch.manual_seed(seed)
        other = soft_loss(target.log() + 0.3 * torch.randn_like(target), target, known)
        assert other > best
    assert soft_loss(4 * target.log(), target, known) > best


def test_loss_says_nothing_about_a_structure_nobody_annotated():
    logits, target = problem()
    unknown = target.clone()
    unknown[:, 0] += unknown[:, 2]
    unknown[:, 2] = 0
    known = torch.tensor([[True, False, True]] * 2)
    logits.requires_grad_(True)
    soft_loss(logits, unknown, known).backward()
    share = torch.softmax(logits.detach()[:, [0, 2]], 1)
    gradient = logits.grad[:, [0, 2]]
    # Background and unknown are pushed together, each by its share: never apart.
    torch.testing.assert_close(
        gradient, gradient.sum(1, keepdim=True) * share, atol=1e-6, rtol=1e-3
    )


def test_loss_of_a_batch_is_the_mean_of_its_samples():
    logits, target = problem()
    known = torch.tensor([[True, True, True], [True, False, True]])
    parts = [soft_loss(logits[i : i + 1], target[i : i + 1], known[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(soft_loss(logits, target, known), sum(parts) / 2)


def test_a_sliver_of_a_structure_is_left_to_the_cross_entropy():
    target = torch.zeros(1, 2, 40, 40, 40)
    target[:, 0] = 1
    target[0, :, 0, 0, :5] = torch.tensor([0.0, 1.0])[:, None]
    known = torch.ones(1, 1, dtype=torch.bool)
    logits = torch.tensor([2.0, -2.0]).view(1, 2, 1, 1, 1).expand_as(target)
    expected = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(soft_loss(logits, target, known), expected)


def test_hard_dice():
    target = torch.zeros(1, 3, 4, 4, 4)
    target[:, 0] = 1
    target[0, :, :2] = torch.tensor([0.2, 0.8, 0.0])[:, None, None, None]
    known = torch.ones(1, 2, dtype=torch.bool)
    dice = hard_dice(target, target, known)[0]
    assert dice[0] == 1 and dice[1].isnan()
    half = target.clone()
    half[0, :, :1] = torch.tensor([1.0, 0, 0])[:, None, None, None]
    assert hard_dice(half, target, known)[0, 0] == pytest.approx(2 / 3)


def test_a_few_voxels_of_a_structure_have_no_dice_and_many_are_a_false_one():
    target = torch.zeros(1, 3, 32, 32, 32)
    target[:, 0] = 1
    known = torch.ones(1, 2, dtype=torch.bool)
    found = target.clone()
    found[0, 1, 0, 0, :4], found[0, 2, :4] = 2, 2
    dice = hard_dice(found, target, known)[0]
    assert dice[0].isnan() and dice[1] == 0
