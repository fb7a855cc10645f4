"""Passes through windows, and the way back to the scan's grid."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import oracle
import pytest
import torch
from balls import BODY, patient, view
from scipy import ndimage

from multipass.data.patient_files import window_of
from multipass.geometry.volume import Grid, Volume, floats3
from multipass.geometry.windows import scan_windows, window_over
from multipass.model.checkpoint import Model
from multipass.model.evidence import NOTHING, found_in
from multipass.model.maps import (
    ClassMaps,
    PassResult,
    confidence,
    likeliest,
    native_labels,
)
from multipass.model.network import MultiPassUNet, Network
from multipass.model.passes import OUTSIDE_ML, View, run, segment
from multipass.model.resampling import apply_rows, between, blend
from multipass.structures import PELVIS

SMALL = np.array([[-100.0, -80.0, -90.0], [110.0, 90.0, 70.0]])


def places(grid: Grid) -> list[np.ndarray]:
    axes = [grid.origin_mm[a] + np.arange(grid.size[a]) * grid.spacing_mm[a] for a in range(3)]
    return np.meshgrid(*axes, indexing="ij")


def ramp(grid: Grid) -> np.ndarray:
    x, y, z = places(grid)
    return x + 2 * y - 3 * z


def boxes(*pairs: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.stack(pairs))


def one_hot(label: np.ndarray) -> np.ndarray:
    return (label == np.arange(1 + len(PELVIS))[:, None, None, None]).astype(np.float32)


class Seer(MultiPassUNet):
    """Finds bone by its brightness, and remembers the contexts that it was given."""

    look = Network.look

    def __init__(self, threshold: float = 0.35, blind_from: int = 9) -> None:
        super().__init__(classes=1 + len(PELVIS), filters=(8, 8, 8, 8))
        self.threshold, self.contexts, self.blind_from = threshold, [], blind_from

    def forward(
        self, image: torch.Tensor, context: torch.Tensor, pass_index: int = 0
    ) -> torch.Tensor:
        self.contexts.append(context)
        is_bone = (image > self.threshold) & (pass_index < self.blind_from)
        bone = is_bone.float() * 20 - 10
        return torch.cat([-bone, bone, bone.expand(-1, len(PELVIS) - 1, -1, -1, -1) - 5], dim=1)


def see_by(network: Network, *closer: str) -> Model:
    return Model(network, list(PELVIS), (-200.0, 1000.0), ("scan", *(closer or ["pelvis"])))


def scan_of(number: int = 1) -> Volume:
    grid = Grid((110, 90, 100), (3.5, 3.0, 4.0), (-190.0, -133.0, -198.0))
    values = view(grid, np.random.default_rng(number), np.zeros(3))
    return Volume((values["image"].astype(np.float32) * 1200 - 200).astype(np.int16), grid)


def test_a_linear_function_stays_itself_between_windows():
    source, target = window_over(BODY), window_over(SMALL)
    maps = torch.as_tensor(ramp(source))[None, None]
    seen = between(maps, boxes(BODY), boxes(SMALL))[0, 0]
    np.testing.assert_allclose(seen, ramp(target), atol=1e-6)


def test_context_outside_the_window_before_is_blank():
    shifted = SMALL + [[0, 0, 1000.0]]
    assert not between(torch.ones(1, 2, 8, 8, 4), boxes(SMALL), boxes(shifted)).any()


def test_each_sample_has_its_own_boxes():
    maps = torch.rand(2, 3, 16, 16, 8, dtype=torch.float64)
    both = between(maps, boxes(BODY, SMALL), boxes(SMALL, BODY))
    alone = between(maps[1:], boxes(SMALL), boxes(BODY))
    torch.testing.assert_close(both[1:], alone)


def test_run_gives_blank_context_first_and_probabilities_then():
    seer = Seer()
    image = torch.rand(1, 1, 16, 16, 8)
    views = [View(image, boxes(BODY)), View(image, boxes(SMALL))]
    amp = torch.autocast("cpu", enabled=False)
    outputs = list(run(seer, views, passes=3, amp=amp, hand_on=lambda index, c: c))
    assert len(outputs) == 3
    assert not seer.contexts[0].any()
    inner = seer.contexts[2]
    torch.testing.assert_close(inner, torch.softmax(outputs[1], 1))
    assert not inner.requires_grad


def test_float16_keeps_the_labels():
    one = patient(1)
    soft = ndimage.gaussian_filter(one["fractions"] / np.float32(255), (0, 1, 1, 1))
    maps = np.concatenate([1 - soft.sum(0, keepdims=True), soft])
    grid = Grid((120, 100, 90), (2.5, 2.4, 3.3), (-150.0, -120.0, -150.0))
    kept, exact = (
        native_labels(PassResult([window_of(one)], [ClassMaps(m)], []), grid)
        for m in (maps.astype(np.float16), maps)
    )
    for k in range(6):
        sizes = np.count_nonzero(kept == k) + np.count_nonzero(exact == k)
        assert 2 * np.count_nonzero((kept == k) & (exact == k)) / sizes > 0.9999


def test_of_many_passes_only_the_first_and_the_last_two_keep_their_maps():
    volume, _ = oracle.scene(oracle.scene_grid())
    results = segment(oracle.model(), volume, 5)
    assert [len(result.probabilities) for result in results] == [1, 0, 0, 1, 1]
    assert results[-1].probabilities[0].dtype == np.float16


def test_class_maps_keep_what_exceeds_a_thousandth():
    rng = np.random.default_rng(0)
    whole = np.zeros((4, 12, 10, 8), np.float32)
    whole[1, 2:5, 3:9, 1:2] = rng.uniform(0.01, 1, (3, 6, 1))
    whole[2, 5:, :2, 4:] = rng.uniform(0.01, 0.9, (7, 2, 4))
    whole[3, 0, 0, 0] = 5e-4
    whole[0] = 1 - whole.sum(0)
    maps = ClassMaps(whole)
    for c in range(3):
        np.testing.assert_array_equal(maps[c], whole[c])
    assert not maps[3].any() and maps.inside(3)[1].size == 0
    assert maps.inside(1)[1].shape == (3, 6, 1)
    winner, best = likeliest(maps)
    np.testing.assert_array_equal(winner, whole.argmax(0))
    np.testing.assert_array_equal(best, whole.max(0))


@pytest.mark.parametrize("height", [300, 1000])
def test_native_labels_equal_the_argmax_of_all_interpolated_probabilities(height):
    box = np.array([[-120.0, -90.0, -height / 2], [120.0, 90.0, height / 2]])
    windows = scan_windows(box)
    rng = np.random.default_rng(0)
    maps = []
    for window in windows:
        blobs = rng.random((4, 8, 8, 9)).repeat(16, 1).repeat(16, 2).repeat(8, 3)
        blobs[0] += 0.3
        blobs[:, :20] = np.array([1, 0, 0, 0])[:, None, None, None]
        maps.append((blobs / blobs.sum(0)).astype(np.float32))
        assert maps[-1].shape[1:] == window.size
    grid = Grid((50, 40, 61), (6.0, 5.0, 17.3), (-140.0, -95.0, -530.0))
    blended = blend(windows, grid.box_mm(), grid.size)
    full = sum(
        apply_rows(torch.as_tensor(m)[None], [rows[None] for rows in blended.of_window(k)])[0]
        for k, m in enumerate(maps)
    )
    expected = np.where(full.sum(0) > 0, full.argmax(0), 0)
    assert (
        native_labels(PassResult(windows, [ClassMaps(m) for m in maps], []), grid) == expected
    ).mean() > 0.9999


def test_weights_of_overlapping_windows_sum_to_one():
    windows = scan_windows(np.array([[-100.0, -100, -700], [100, 100, 700]]))
    box = np.array([[-100.0, -100, -900], [100, 100, 900]])
    total = sum(z.sum(1) for z in blend(windows, box, (4, 4, 180)).rows[2]).numpy()
    np.testing.assert_allclose(total[20:160], 1, atol=1e-5)
    assert not total[:19].any() and not total[-19:].any()


def test_labels_come_back_to_a_native_grid():
    one = patient(1)
    grid = Grid((120, 100, 90), (2.5, 2.4, 3.3), (-150.0, -120.0, -150.0))
    offset = np.random.default_rng(1).normal(0, 6, 3)
    reference = view(grid, np.random.default_rng(1), offset)["label"]
    soft = one["fractions"] / np.float32(255)
    probabilities = np.concatenate([1 - soft.sum(0, keepdims=True), soft])
    found = native_labels(PassResult([window_of(one)], [ClassMaps(probabilities)], []), grid)
    for k in range(1, 6):
        both = ((found == k) & (reference == k)).sum()
        assert 2 * both / ((found == k).sum() + (reference == k).sum()) > 0.98


def test_segment_looks_closer_in_the_second_pass():
    seer = Seer()
    model = Model(seer, list(PELVIS), (-200.0, 1000.0), ("scan", "pelvis"))
    first, second, third = segment(model, scan_of(), passes=3)
    scan, pelvis = first.windows[0].box_mm(), second.windows[0].box_mm()
    assert np.prod(pelvis[1] - pelvis[0]) < 0.6 * np.prod(scan[1] - scan[0])
    assert third.windows == second.windows
    assert not first.flags and not second.flags
    assert len(first.probabilities[0]) == 6
    assert first.probabilities[0].size == (128, 128, 72)
    assert confidence(second)[0] > 0.95
    # The context of pass 2 is pass 1's bone, where pass 2 sees bone.
    bone = second.probabilities[0][1] > 0.5
    assert seer.contexts[1][0, 1].float().numpy()[bone].mean() > 0.8


@pytest.mark.parametrize(("reach_mm", "flagged"), [(-10, False), (70, True)])
def test_what_lies_outside_of_the_box_is_told(reach_mm, flagged):
    window = window_over(BODY)
    found = np.zeros((2, *window.size), np.float32)
    x, y, z = places(window)
    found[1] = (np.abs(x) < 60) & (np.abs(y) < 40) & (np.abs(z) < 40)
    found[1, (np.abs(x) < 20) & (np.abs(y) < 20) & (z > 130) & (z < 130 + reach_mm)] = 1
    found[0] = 1 - found[1]
    first = PassResult([window], [ClassMaps(found)], [])
    seen = found_in(first, scan_of().grid.box_mm())
    assert seen is not None and (seen.lost_ml >= OUTSIDE_ML) == flagged


def test_bone_where_the_next_pass_does_not_look_is_flagged():
    scan = scan_of()
    scan.array[50:60, 40:50, 86:94] = 600  # 33 mL, 100 mm above all others
    _, second = segment(see_by(Seer()), scan)
    assert len(second.flags) == 1
    assert re.fullmatch(r"pass 1 saw (3\d) mL where pass 2 did not look", second.flags[0])


def test_a_body_of_a_metre_is_looked_at_in_parts_and_gets_the_same_mask():
    volume, label = oracle.scene(oracle.scene_grid())
    below = np.full((*volume.array.shape[:2], 250), -1000, np.int16)
    below[20:-20, 20:-20] = 40
    tall = np.concatenate([volume.array, below], axis=2)
    scan = Volume(tall, replace(volume.grid, size=tall.shape))
    first, last = segment(oracle.model(), scan)
    assert len(first.windows) == 3 and len(last.windows) == 1
    labels = native_labels(last, scan.grid)
    assert not labels[:, :, volume.array.shape[2] :].any()
    for k in range(1, 6):
        found, wanted = labels[:, :, : volume.array.shape[2]] == k, label == k
        assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.9


def test_a_tall_pelvis_is_looked_at_in_parts_and_gets_the_same_mask():
    volume, label = oracle.scene(oracle.scene_grid())
    twice = [np.multiply(v, [1, 1, 2]) for v in (volume.grid.spacing_mm, volume.grid.origin_mm)]
    spacing, origin = (floats3(v) for v in twice)
    scan = Volume(volume.array, replace(volume.grid, spacing_mm=spacing, origin_mm=origin))
    _, second, third = segment(oracle.model(), scan, 3)
    assert len(second.windows) == 2 and third.windows == second.windows
    for result in (second, third):
        labels = native_labels(result, scan.grid)
        for k in range(1, 6):
            found, wanted = labels == k, label == k
            assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.9


def test_segment_with_the_scan_window_keeps_it():
    model = Model(Seer(), list(PELVIS), (-200.0, 1000.0), ("scan", "scan"))
    first, second = segment(model, scan_of())
    assert first.windows == second.windows


@pytest.mark.parametrize("blind_from", [0, 1, 2])
@pytest.mark.parametrize("closer", ["pelvis", "scan"])
def test_the_first_pass_that_finds_nothing_is_the_last_that_looks(blind_from, closer):
    seer = Seer(blind_from=blind_from)
    results = segment(see_by(seer, closer), scan_of(), 3)
    assert len(results) == 3 and len(seer.contexts) == blind_from + 1
    assert [result.flags for result in results[blind_from:]] == [[NOTHING]] * (3 - blind_from)
    assert not any(result.flags for result in results[:blind_from])
    for number, result in enumerate(results):
        assert native_labels(result, scan_of().grid).any() == (number < blind_from)


@pytest.mark.parametrize(("side_mm", "is_bone"), [(8.0, False), (14.0, True)])
def test_a_speck_is_no_pelvis(side_mm, is_bone):
    grid = Grid((150, 150, 100), (2.0, 2.0, 2.0), (-149.0, -149.0, -99.0))
    array = np.full(grid.size, 40, np.int16)
    array[np.all(np.abs(places(grid)) < side_mm / 2 + 1, axis=0)] = 900
    results = segment(see_by(Seer(0.6)), Volume(array, grid))
    assert (results[-1].flags == [NOTHING]) != is_bone
    assert native_labels(results[-1], grid).any() == is_bone
