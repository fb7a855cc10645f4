"""Checkpoints: what is written comes back, and anything else is refused in one sentence."""

from __future__ import annotations

import pickle

import pytest
import torch

from multipass.files import sha256_of
from multipass.model import checkpoint
from multipass.model.network import MultiPassUNet
from multipass.model.publish import publish
from multipass.structures import PELVIS


@pytest.fixture
def model() -> checkpoint.Model:
    network = MultiPassUNet(1 + len(PELVIS), filters=(8, 8, 8, 8))
    info = {"dice": 0.9, "trained_on": {"patients": 7, "training": ["Doe"]}}
    return checkpoint.Model(network, list(PELVIS), (-200.0, 1000.0), ("scan", "pelvis"), info)


def test_written_and_read_back(model, tmp_path):
    path = tmp_path / "deep" / "best_model.pth"
    checkpoint.save(path, checkpoint.as_dict(model))
    back = checkpoint.load(path)
    assert back.structures == model.structures
    assert (back.hu_range, back.windows) == ((-200.0, 1000.0), ("scan", "pelvis"))
    assert back.info["dice"] == 0.9 and back.info["trained_on"]["patients"] == 7
    assert back.info["versions"]["torch"].startswith("2")
    assert back.sha256 == sha256_of([path]) and len(back.sha256) == 64
    for name, value in model.network.state_dict().items():
        assert torch.equal(back.network.state_dict()[name], value)
    assert not back.network.training
    assert [p.name for p in path.parent.iterdir()] == ["best_model.pth"]


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"no such checkpoint"):
        checkpoint.load(tmp_path / "best_model.pth")


def test_a_checksum_beside_it_must_agree(model, tmp_path):
    path = tmp_path / "x.pth"
    checkpoint.save(path, checkpoint.as_dict(model))
    beside = tmp_path / "x.pth.sha256"
    beside.write_text(f"{sha256_of([path])}  x.pth\n")
    assert checkpoint.load(path).sha256 == sha256_of([path])
    path.write_bytes(path.read_bytes()[:-2000])
    for written in (beside.read_text(), ""):
        beside.write_text(written)
        with pytest.raises(ValueError, match=r"download both again, or delete x\.pth\.sha256"):
            checkpoint.load(path)


def test_published_it_is_half_as_large_and_nearly_the_same(model, tmp_path):
    source, target = tmp_path / "best_model.pth", tmp_path / "shipped.pth"
    checkpoint.save(source, checkpoint.as_dict(model))
    sha256 = publish(source, target, "synthetic scans")
    back = checkpoint.load(target)
    assert back.sha256 == sha256 and back.structures == model.structures
    assert back.info["trained_on"] == {"patients": 7, "description": "synthetic scans"}
    assert target.stat().st_size < 0.6 * source.stat().st_size
    for name, value in model.network.state_dict().items():
        found = back.network.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-7)
    assert (tmp_path / "shipped.pth.sha256").read_text() == f"{sha256}  shipped.pth\n"


class Malice:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", pickle.dumps({"a": 1}), pickle.dumps(Malice())]
)
def test_damaged_or_foreign_bytes(tmp_path, content, capsys):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth"):
        checkpoint.load(path)
    assert capsys.readouterr().out == ""


def test_a_truncated_checkpoint(model, tmp_path):
    path = tmp_path / "x.pth"
    checkpoint.save(path, checkpoint.as_dict(model))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"windows": ["scan", "attic"]},
        {"windows": ["pelvis"]},
        {"windows": ["scan", "parts", "pelvis"]},
        {"windows": []},
        {"hu_range": [0.0, 0.0]},
        {"hu_range": [float("nan"), 1.0]},
        {"structures": []},
        {"state_dict": {}},
        {"network": {"classes": 3, "filters": [8, 8, 8, 8]}},
        {"network": {"classes": 6, "filters": [1 << 20] * 4}},  # petabytes, if it were made
    ],
)
def test_parts_that_do_not_fit(model, tmp_path, change):
    path = tmp_path / "x.pth"
    checkpoint.save(path, {**checkpoint.as_dict(model), **change})
    with pytest.raises(ValueError, match=r"x\.pth") as raised:
        checkpoint.load(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("passes", "window", "windows"),
    [
        (1, "pelvis", ("scan",)),
        (2, "pelvis", ("scan", "pelvis")),
        (3, "scan", ("scan", "scan", "scan")),
    ],
)
def test_a_checkpoint_of_format_1_is_read(model, tmp_path, passes, window, windows):
    content = checkpoint.as_dict(model)
    del content["windows"], content["network"]["scales"], content["network"]["extra"]
    content |= {"format": "multipass-checkpoint-1", "passes": passes, "window": window}
    checkpoint.save(tmp_path / "old.pth", content)
    assert checkpoint.load(tmp_path / "old.pth").windows == windows
