"""Figures of masks on scans without a reference, and the benchmark that prints them."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest
import SimpleITK as sitk

from multipass.data.scan import Scan
from multipass.evaluation import edges
from multipass.geometry.volume import Grid, Volume, to_sitk

ROOT = Path(__file__).resolve().parents[2]
SPACING_MM = (2.0, 2.5, 3.0)


@pytest.fixture(scope="module")
def real():
    """benchmarks/real.py as a module."""
    before, known = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("real", ROOT / "benchmarks" / "real.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["real"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before
    for name in {"real", "native_scores"} - known:
        sys.modules.pop(name, None)


def scene() -> tuple[Scan, np.ndarray]:
    grid = Grid((140, 90, 90), SPACING_MM, (-140.0, -110.0, -130.0))
    volume, labels = oracle.scene(grid)
    return Scan(grid, volume), labels


def ball(radius_mm: float, shape=(60, 60, 50), spacing_mm=(1.0, 1.0, 1.2)) -> np.ndarray:
    away = [(np.arange(n) - n / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    x, y, z = np.meshgrid(*away, indexing="ij")
    return radius_mm - np.sqrt(x**2 + y**2 + z**2)


@pytest.mark.parametrize("grown_mm", [-2.0, 0.0, 1.5])
def test_the_edge_lies_as_far_outwards_as_a_mask_is_too_small(grown_mm):
    hu = 40 + 800 * np.clip(ball(15.0) + 0.5, 0, 1)
    mask = (ball(15.0 + grown_mm) > 0).astype(np.uint8)
    distances = edges.edge_distances(hu, mask, (1.0, 1.0, 1.2))
    assert len(distances) > 1000
    assert np.median(distances) == pytest.approx(-grown_mm, abs=0.3)
    assert not len(edges.edge_distances(np.full_like(hu, 40.0), mask, (1.0, 1.0, 1.2)))


def test_points_next_to_another_structure_are_left_alone():
    hu = 40 + 800 * np.clip(ball(15.0) + 0.5, 0, 1)
    mask = (ball(15.0) > 0).astype(np.uint8)
    alone = len(edges.edge_distances(hu, mask, (1.0, 1.0, 1.2)))
    mask[ball(15.0) <= -1] = 2
    assert alone and not len(edges.edge_distances(hu, mask, (1.0, 1.0, 1.2)))


def test_a_hole_is_bright_and_at_most_two_millimetres_from_the_mask():
    bright = np.where(ball(15.0) > 0, 500.0, 0.0)
    mask = ball(15.0) > 0
    assert edges.left_out(bright, mask, (1.0, 1.0, 1.2)) == 0
    mask[30, 30, 25] = False
    assert edges.left_out(bright, mask, (1.0, 1.0, 1.2)) == pytest.approx(
        1 / np.count_nonzero(ball(15.0) > 0)
    )
    bright[:10] = 500.0  # 5 mm away: another bone
    assert edges.left_out(bright, ball(15.0) > 0, (1.0, 1.0, 1.2)) == 0
    assert np.isnan(edges.left_out(bright, np.zeros(mask.shape, bool), (1.0, 1.0, 1.2)))


def test_what_is_wrong_with_a_mask_shows_in_its_own_figure(real):
    scan, labels = scene()
    everything = real.Expected("scan", (1, 2, 3, 4, 5), dict.fromkeys(range(1, 6), 1.0))
    right = real.measure(scan, labels, everything)
    assert right["false_ml"] == right["parts"] == 0
    assert right["missed"] == right["contradiction"] == ""
    assert abs(right["edge_mm"]) <= 1.5 and right["hole_percent"] < 5

    without = replace(everything, inside=(1, 3), least_ml={})
    false_ml = np.isin(labels, (2, 4, 5)).sum() * np.prod(SPACING_MM) / 1000
    assert real.measure(scan, labels, without)["false_ml"] == pytest.approx(false_ml)
    less = np.where(labels == 3, 0, labels)
    assert real.measure(scan, less, everything)["missed"] == "3"
    stray = labels.copy()
    stray[:8, :8, :8] = 4  # 7.7 mL in a corner
    assert real.measure(scan, stray, everything)["parts"] == 1
    mirrored = np.array([0, 2, 1, 3, 5, 4], labels.dtype)[labels]
    assert real.measure(scan, mirrored, everything)["contradiction"].startswith("its left hip bone")
    one_side = replace(everything, inside=(1, 3, 4))
    assert real.measure(scan, mirrored, one_side)["contradiction"] == ""


def write_folder(folder: Path) -> None:
    scan, labels = scene()
    noise = np.random.default_rng(0).normal(40, 40, (40, 40, 40)).round().astype(np.int16)
    empty = Volume(noise, Grid((40,) * 3, (3.0,) * 3, (0.0,) * 3))
    for name, volume in {
        "one/one": scan.upright, "one/one_seg": Volume(labels.astype(np.uint8), scan.grid),
        "none/none": empty,
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        sitk.WriteImage(to_sitk(volume), str(folder / f"{name}.nii.gz"))
    contents = {
        "one": {"inside": [1, 2, 3, 4, 5], "least_ml": {"1": 20}},
        "lost": {"inside": []}, "none": {"inside": []},
    }  # fmt: skip
    (folder / "contents.json").write_text(json.dumps(contents))


def test_a_folder_is_measured_and_a_scan_that_is_missing_stops_no_other(
    real, tmp_path, monkeypatch, capsys
):
    scans = tmp_path / "scans"
    scans.mkdir()
    write_folder(scans)
    monkeypatch.setattr(real.checkpoint, "load", lambda path: oracle.model())
    options = real.Options(scans, tmp_path / "out", pictures=("o*",))
    assert real.main(options) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "Dice 0.9" in lines[0] and "false    0.0 mL" in lines[0]
    assert lines[1].startswith("lost") and "lost.nii.gz" in lines[1]
    assert lines[2].split() == ["none", "false", "0.0", "mL"]
    with (tmp_path / "out" / "real.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["scan"] for row in rows] == ["one", "none"]
    assert float(rows[0]["dice left hip bone"]) > 0.9
    assert (tmp_path / "out" / "one" / "mask.nii.gz").is_file()
    assert (tmp_path / "out" / "one" / "overlay.png").is_file()
    assert not (tmp_path / "out" / "none" / "overlay.png").exists()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "[1]",
        "{}",
        '{"a": {}}',
        '{"a": {"inside": [7]}}',
        '{"a": {"inside": 3}}',
        "{",
        '{"../a": {"inside": []}}',
        '{"..": {"inside": []}}',
    ],
)
def test_contents_that_say_nothing_are_refused_in_one_sentence(real, tmp_path, text):
    if text is not None:
        (tmp_path / "contents.json").write_text(text)
    with pytest.raises(ValueError, match=r"contents\.json: [^\n]+"):
        real.read_contents(tmp_path)
