"""Training and inference on CUDA: mixed precision, overflow, resuming, and the CPU's masks.

Skipped where there is no CUDA device.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from multipass.data.cohort import Cohort
from multipass.model import checkpoint, passes
from multipass.model.maps import bone_labels
from multipass.model.network import MultiPassUNet
from multipass.phantom import make_subject
from multipass.structures import PELVIS
from multipass.training.batches import Batch
from multipass.training.state import State
from multipass.training.validation import Validation

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "inference_pipeline" / "best_model.pth"
WINDOWS = ("scan", "pelvis")
# fp16 keeps 11 bits, and convolutions on CUDA may add up in another order in each run.
LOSS_ROUNDING = 0.01
# Of the bones' voxels; bf16, in which CPUs compute, keeps 8 bits, and fp16 11.
MOST_DIFFERENT = {torch.float32: 1e-3, torch.bfloat16: 1e-2}


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda")


def begin(data: Path, device: torch.device) -> tuple[State, Batch]:
    """A small network to train, and a patient."""
    torch.manual_seed(0)
    cohort = Cohort(data)
    network = MultiPassUNet(1 + len(cohort.structures), (8, 8, 16, 16), scales=3).to(device)
    state = State(network, lr=0.01, weight_decay=0.0, ema=0.9, device=device)
    return state, Validation(cohort, WINDOWS, device).batches(cohort.ids[0])[0]


def learn(script: ModuleType, state: State, batch: Batch) -> float:
    """A step of training.py, each pass told what the one before found."""
    return script.learn(state, batch, 2, passes.precision(batch.known.device))[0].item()


def test_a_network_learns_in_fp16(script, data, device):
    state, batch = begin(data, device)
    assert passes.computed_in(device) == torch.float16 and state.scaler.is_enabled()
    losses = [learn(script, state, batch) for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    for weights in state.network.parameters():
        assert weights.dtype == torch.float32 and weights.isfinite().all()


def test_an_overflow_leaves_out_the_step_and_halves_the_scale(script, data, device):
    state, batch = begin(data, device)
    for _ in range(5):  # the first scale may be too large
        learn(script, state, batch)
    before = [p.clone() for p in state.network.parameters()]
    scale = state.scaler.get_scale()
    image = batch.views[0].image
    with passes.precision(device):
        logits = state.network(image, passes.blank(state.network, image))
    script.descend(state, logits.float().sum() * 1e30)
    assert all(map(torch.equal, state.network.parameters(), before))
    assert state.scaler.get_scale() == scale / 2
    assert np.isfinite(learn(script, state, batch))
    assert not all(map(torch.equal, state.network.parameters(), before))


def options(script: ModuleType, data: Path, output: Path, **more):
    return script.Options(
        data=data, output=output, filters=(8, 8, 16, 16), folds=3, steps_per_epoch=4, lr=0.01,
        epochs=3, coarse=0.0, augmentation=0.3, name="run", dicom=output / "none", **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(script, data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("out")
    assert script.main(options(script, data, output)) == 0
    return output


def test_a_resumed_run_goes_on_as_if_undisturbed(script, data, undisturbed, tmp_path, monkeypatch):
    train_epoch = script.train_epoch

    def until_the_second(state, *arguments):
        if state.epoch == 1:
            raise KeyboardInterrupt
        return train_epoch(state, *arguments)

    monkeypatch.setattr(script, "train_epoch", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        script.main(options(script, data, tmp_path))
    monkeypatch.setattr(script, "train_epoch", train_epoch)
    assert script.main(options(script, data, tmp_path, resume=True)) == 0

    outputs = undisturbed, tmp_path
    one, two = (checkpoint.read(o / "last.pth")["training"]["state"] for o in outputs)
    assert one["epoch"] == two["epoch"] == 3 and one["scaler"] == two["scaler"]
    losses = [[row["train_loss"] for row in state["history"]] for state in (one, two)]
    print("\nlosses undisturbed and resumed:", losses)
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_ROUNDING)
    assert losses[0][2] < losses[0][0] * (1 - LOSS_ROUNDING)


def test_a_checkpoint_made_on_cuda_loads_on_a_cpu(script, data, undisturbed):
    model = checkpoint.load(undisturbed / "best_model.pth")
    assert {p.device.type for p in model.network.parameters()} == {"cpu"}
    state, batch = begin(data, torch.device("cpu"))
    state.load_state_dict(checkpoint.read(undisturbed / "last.pth")["training"]["state"])
    assert {p.device.type for p in state.network.parameters()} == {"cpu"}
    assert np.isfinite(learn(script, state, batch))


def test_a_run_begun_on_a_cpu_goes_on_on_cuda(script, data, device):
    begun, batch = begin(data, torch.device("cpu"))
    learn(script, begun, batch)
    state, batch = begin(data, device)
    state.load_state_dict(begun.state_dict())
    assert state.scaler.is_enabled() and np.isfinite(learn(script, state, batch))


def test_masks_are_the_cpus_but_for_rounding(device, monkeypatch):
    subject = make_subject(1, 0, matrix=96, size="pelvis")

    def mask(where: torch.device | str) -> np.ndarray:
        model = checkpoint.load(SHIPPED, where)
        result = passes.segment(model, subject.volume)[-1]
        return bone_labels(result, subject.volume.grid)

    found = mask(device)
    assert (found > 0).sum() > 0.5 * (subject.label > 0).sum()
    for dtype, most in MOST_DIFFERENT.items():
        amp = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        monkeypatch.setattr(passes, "precision", lambda device, amp=amp: amp)
        reference = mask("cpu")
        share = (found != reference).sum() / (reference > 0).sum()
        print(f"\n{share:.2e} of the bones' voxels differ between CUDA and the CPU in {dtype}")
        assert share < most


def test_a_checkpoint_of_a_device_holds_each_tensor_once(device, tmp_path):
    sizes = []
    for where in (torch.device("cpu"), device):
        network = MultiPassUNet(3, (8, 8, 16, 16)).to(where)
        model = checkpoint.Model(network, list(PELVIS[:2]), (-200.0, 1000.0), WINDOWS)
        checkpoint.save(tmp_path / "model.pth", checkpoint.as_dict(model))
        sizes.append((tmp_path / "model.pth").stat().st_size)
    assert sizes[1] < 1.1 * sizes[0]
