"""One deformation of patient space for all windows, and the intensity augmentations."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from balls import patient, scan, write_cohort
from monai.transforms import RandSimulateLowResolution

from multipass.data.cohort import Cohort, Sample
from multipass.data.patient_files import write_patient
from multipass.data.prepare import as_patient
from multipass.geometry.volume import Grid
from multipass.geometry.windows import COARSE_GRID_SIZE, GRID_SIZE, window_image, window_over
from multipass.structures import OTHER_BONE, PELVIS
from multipass.training.augment import Placement, RandPlacement, Space, look
from multipass.training.batches import Batches, ahead
from multipass.training.field_of_view import RandFieldOfView
from multipass.training.intensity import RandIntensity, RandMetal
from multipass.training.shelf import Shelf
from multipass.training.validation import Validation

CPU = torch.device("cpu")
SHELF = Shelf(CPU)
STILL = Space(0, 0, 0, 0, 0, 0, 0, 0, scan_scale=(1, 1), box_scale=(1, 1))
WINDOWS = ("scan", "pelvis", "parts")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    return Cohort(write_cohort(tmp_path_factory.mktemp("processed"), 3))


@pytest.fixture(scope="module")
def sample(cohort) -> Sample:
    return cohort.sample("Patient_01")


def placed(sample: Sample, space: Space, seed: int, crops: float = 0.0) -> Placement:
    place = RandPlacement(space, mirror_allowed=True, crops=crops)
    place.set_random_state(seed)
    return place(sample)


def seen_in(sample: Sample, place: Placement, window: str, size=GRID_SIZE) -> torch.Tensor:
    return look(sample, place, window, size, SHELF)


def volumes_ml(seen: torch.Tensor, box: np.ndarray) -> np.ndarray:
    voxel_mm3 = np.prod(box[1] - box[0]) / seen[0].numel()
    return seen[1:].sum((1, 2, 3)).numpy() * voxel_mm3 / 1000


def centres_mm(seen: torch.Tensor, box: np.ndarray) -> np.ndarray:
    """(K, 3) of the structures."""
    axes = [
        lo + (np.arange(n) + 0.5) * (hi - lo) / n
        for n, lo, hi in zip(seen.shape[1:], *box, strict=True)
    ]
    weights = seen[1:].numpy()
    sums = [np.moveaxis(weights, 1 + a, 1).sum((2, 3)) @ axes[a] for a in range(3)]
    return np.stack(sums, 1) / weights.sum((1, 2, 3))[:, None]


def centres_by_points(sample: Sample) -> np.ndarray:
    return sample.points_mm.mean(0)


@pytest.mark.parametrize("window", WINDOWS)
def test_an_undeformed_window_is_what_inference_sees(sample, window):
    """Whatever level it is drawn from; where it has finer voxels than the scan, too."""
    volume, reference = scan(1)
    place = placed(sample, STILL, 1)
    seen = seen_in(sample, place, window)
    grid = window_over(place.boxes[window])
    inside = (slice(6, -6), slice(6, -6), slice(4, -4))
    image = torch.as_tensor(window_image(volume, grid))
    assert (seen[0] - image)[inside].abs().mean() < 0.012
    fractions = torch.as_tensor(reference.fractions(grid).astype(np.float32) / 255)
    assert (seen[1:] - fractions)[(slice(None), *inside)].abs().mean() < 0.1 * fractions.mean()
    sums = fractions.sum((1, 2, 3)), seen[1:].sum((1, 2, 3))
    large = sums[0] > 100
    torch.testing.assert_close(sums[1][large], sums[0][large], rtol=0.02, atol=0)


@pytest.mark.parametrize("turned", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_all_windows_see_the_same_deformed_patient(sample, seed, turned):
    still = replace(Space(), turned=turned, shift_mm=0.0, box_scale=(1.0, 1.0))
    place = placed(sample, still, seed)
    whole = volumes_ml(seen_in(sample, place, "scan"), place.boxes["scan"])
    pelvis = volumes_ml(seen_in(sample, place, "pelvis"), place.boxes["pelvis"])
    np.testing.assert_allclose(pelvis, whole, rtol=0.03)
    part = place.boxes["parts"]
    inside = replace(place, boxes={"scan": part})
    np.testing.assert_allclose(
        volumes_ml(seen_in(sample, place, "parts"), part),
        volumes_ml(seen_in(sample, inside, "scan"), part),
    )
    for box in place.boxes.values():
        assert (box[1] > box[0]).all()


def test_stretches_of_a_tall_scan_are_drawn_with_and_without_bones(tmp_path):
    grid = Grid((36, 24, 180), (10.0, 10.0, 10.0), (-175.0, -115.0, -300.0))
    write_patient(tmp_path / "Patient_01.pkl", as_patient("Patient_01", *scan(1, grid), {}))
    tall = Cohort(tmp_path).sample("Patient_01")
    shown = []
    for seed in range(16):
        place = placed(tall, STILL, seed)
        assert np.ptp(place.boxes["scan"][:, 2]) == pytest.approx(600)
        shown.append(bool(seen_in(tall, place, "scan")[1:].any()))
    assert 6 < sum(shown) < 16


def test_the_window_over_a_tall_pelvis_holds_most_of_the_part(tmp_path):
    """Its map is the part's context."""
    grid = Grid((60, 40, 180), (6.0, 6.0, 6.0), (-177.0, -117.0, -540.0))
    volume, reference = scan(1, grid)
    shaft = np.zeros(grid.size, np.float32)
    shaft[42:46, 18:22, 20:150] = 1
    segments = list(reference.segments)
    segments[3] = replace(segments[3], mask=shaft)
    tall = as_patient("Patient_01", volume, replace(reference, segments=tuple(segments)), {})
    write_patient(tmp_path / "Patient_01.pkl", tall)
    sample = Cohort(tmp_path).sample("Patient_01")
    middles = set()
    for seed in range(12):
        boxes = placed(sample, STILL, seed).boxes
        (low, high), part = boxes["pelvis"][:, 2], boxes["parts"][:, 2]
        assert high - low <= 240 + 1e-6
        assert min(high, part[1]) - max(low, part[0]) > 0.75 * (part[1] - part[0])
        middles.add(round((low + high) / 2))
    assert len(middles) > 1


def without_bones(folder: Path) -> Cohort:
    """A cohort of one scan that shows no structure."""
    volume, reference = scan(1)
    nothing = [replace(s, mask=s.mask * 0, status="empty") for s in reference.segments]
    bare = as_patient("Patient_01", volume, replace(reference, segments=tuple(nothing)), {})
    write_patient(folder / "Patient_01.pkl", bare)
    return Cohort(folder)


def test_windows_of_a_scan_without_bones_show_none(tmp_path):
    sample = without_bones(tmp_path).sample("Patient_01")
    for seed in range(6):
        place = placed(sample, Space(), seed, crops=1.0)
        for window in WINDOWS:
            assert not seen_in(sample, place, window)[1:].any()


def test_most_batches_without_structures_stop_after_the_first_pass(tmp_path, cohort):
    bare = without_bones(tmp_path)
    shows = Batches(cohort, cohort.ids, ("scan",), 1, 0, CPU, steps=4, strength=0)
    shows.place.field_of_view = RandFieldOfView(0)
    assert not any(batch.stops for batch in shows.epoch(0, lambda _: COARSE_GRID_SIZE))
    empty = Batches(bare, bare.ids, ("scan",), 1, 0, CPU, steps=12, strength=0)
    stops = [batch.stops for batch in empty.epoch(0, lambda _: COARSE_GRID_SIZE)]
    assert 6 < sum(stops) < 12


def test_a_field_of_view_is_the_same_in_all_windows(sample):
    """Nothing outside of it in image and reference; inside all is as without it."""
    cropped = 0
    for seed in range(12):
        place = placed(sample, Space(), seed, crops=1.5)
        for window in WINDOWS:
            box = place.boxes[window]
            seen = seen_in(sample, place, window)
            outside = place.seen.outside(box, GRID_SIZE, CPU)
            assert not seen[:, outside].any()
            cropped += bool(outside.float().mean() > 0.05)
    assert cropped > 3


def test_a_channel_known_in_training_alone_comes_last(tmp_path):
    volume, reference = scan(1)
    extra = replace(reference.segments[2], structure=OTHER_BONE)
    segments = (*(s for k, s in enumerate(reference.segments) if k != 2), extra)
    patients = [("Patient_01", replace(reference, segments=segments)), ("Patient_02", reference)]
    for name, of_patient in patients:
        write_patient(tmp_path / f"{name}.pkl", as_patient(name, volume, of_patient, {}))
    cohort = Cohort(tmp_path)
    assert cohort.structures == list(PELVIS) and cohort.extra == [OTHER_BONE]
    one, two = (cohort.sample(name) for name, _ in patients)
    assert one.known.tolist() == [True, True, False, True, True, True]
    assert two.known.tolist() == [True, True, True, True, True, False]
    place = placed(two, STILL, 0)
    seen, other = seen_in(one, place, "scan"), seen_in(two, place, "scan")
    torch.testing.assert_close(seen[6], other[3])
    assert not seen[3].any() and not other[6].any()


def test_validation_windows_are_always_the_same_and_undeformed(cohort):
    first, again = (Validation(cohort, WINDOWS, CPU).batches("Patient_02") for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.views[2].image, two.views[2].image)
        assert torch.equal(one.targets[1], two.targets[1])
    assert not torch.equal(first[0].views[1].box, first[1].views[1].box)
    volume, reference = scan(2)
    grid = window_over(first[0].views[1].box[0].numpy())
    image = torch.as_tensor(window_image(volume, grid))
    assert (first[0].views[1].image[0, 0] - image)[8:-8, 8:-8, 6:-6].abs().mean() < 0.012


@pytest.mark.parametrize("window", WINDOWS)
def test_a_coarse_window_sees_the_same_in_the_same_box(sample, window):
    place = placed(sample, Space(), 1)
    fine = seen_in(sample, place, window)
    coarse = seen_in(sample, place, window, COARSE_GRID_SIZE)
    assert coarse.shape == (len(fine), *COARSE_GRID_SIZE)
    box = place.boxes[window]
    np.testing.assert_allclose(volumes_ml(coarse, box), volumes_ml(fine, box), rtol=0.03)
    averaged = torch.nn.functional.interpolate(fine[None], COARSE_GRID_SIZE, mode="area")[0]
    assert (coarse - averaged)[1:].abs().mean() < 0.1 * averaged[1:].mean()


def test_a_patient_on_the_side_is_seen_whole(sample):
    """Turned by an angle about z, so are the bones' centres."""
    straight = placed(sample, STILL, 0)
    stored, box = seen_in(sample, straight, "scan"), straight.boxes["scan"]
    turns = []
    for seed in range(6):
        place = placed(sample, replace(STILL, turned=1.0, turn_deg=90.0), seed)
        seen = seen_in(sample, place, "scan")
        here = volumes_ml(seen, place.boxes["scan"])
        np.testing.assert_allclose(here, volumes_ml(stored, box), rtol=0.03)
        here, there = (
            centres_mm(maps, of) - sample.points_mm.mean(0)
            for maps, of in ((seen, place.boxes["scan"]), (stored, box))
        )
        np.testing.assert_allclose(here[:, 2], there[:, 2], atol=1)
        far = np.hypot(there[:, 0], there[:, 1]) > 30
        before, after = (np.arctan2(c[far, 1], c[far, 0]) for c in (there, here))
        angles = np.unwrap(after - before)
        assert far.sum() >= 2 and np.ptp(angles) < 0.1
        turns.append(np.cos(angles[0]))
    assert min(turns) < np.cos(np.deg2rad(30))


def test_mirroring_swaps_left_and_right(cohort, sample):
    batches = Batches(cohort, cohort.ids, WINDOWS, 1, 0, CPU)
    batches.place = RandPlacement(replace(STILL, mirror=1.0), mirror_allowed=True, crops=0.0)
    _, fractions, boxes, _, _ = batches._draw(0, 0, "Patient_01", GRID_SIZE)
    x = np.linspace(0, 1, 128)
    for window in (0, 1):
        means = [(f.sum((1, 2)).numpy() * x).sum() / f.sum().item() for f in fractions[window]]
        left_hip, right_hip, _, left_femur, right_femur = means
        assert left_hip > right_hip and left_femur > right_femur
    straight = placed(sample, STILL, 0)
    stored = volumes_ml(seen_in(sample, straight, "scan"), straight.boxes["scan"])
    voxel_ml = np.prod(boxes[0][1] - boxes[0][0]) / np.prod(GRID_SIZE) / 1000
    found = fractions[0].sum((1, 2, 3)).numpy() * voxel_ml
    np.testing.assert_allclose(found, stored[[1, 0, 2, 4, 3]], rtol=0.01)


def test_without_strength_a_patient_is_mirrored_at_most():
    place = RandPlacement(Space().scaled(0), mirror_allowed=True)
    seen = set()
    for seed in range(12):
        place.set_random_state(seed)
        place.randomize()
        seen.add(place.mirrored)
        np.testing.assert_allclose(np.abs(place.linear), np.eye(3), atol=1e-12)
        assert not place.elastic_mm.any()
    assert seen == {False, True}


def test_no_mirroring_without_the_other_side(tmp_path):
    lone = patient(1, {"right femur": "absent"})
    write_patient(tmp_path / "Patient_01.pkl", lone)
    cohort = Cohort(tmp_path)
    assert [s.name for s in cohort.structures] == [s.name for s in PELVIS[:4]]
    assert not cohort.mirror_allowed


def test_the_same_seed_draws_the_same_batch(cohort):
    batches = [Batches(cohort, cohort.ids, ("scan", "pelvis"), 1, 3, CPU) for _ in range(2)]
    one, two = (next(iter(b.epoch(5))) for b in batches)
    assert torch.equal(one.views[1].image, two.views[1].image)
    assert torch.equal(one.targets[0], two.targets[0])
    other = next(iter(batches[0].epoch(6)))
    assert not torch.equal(one.views[1].image, other.views[1].image)


def test_batches_made_ahead_are_the_same(cohort):
    here, there = (Batches(cohort, cohort.ids, ("scan",), 1, 3, CPU, steps=2) for _ in range(2))
    order = [0, 1]
    makers = (partial(there._batch, 0, order, step, GRID_SIZE) for step in range(2))
    here._batch(0, order, 0, GRID_SIZE)
    alone = (here._batch(0, order, step, GRID_SIZE) for step in range(2))
    for one, two in zip(alone, ahead(makers), strict=True):
        assert torch.equal(one.views[0].image, two.views[0].image)


def test_targets_are_distributions_and_images_lie_in_0_1(cohort):
    batches = Batches(cohort, cohort.ids, ("scan", "pelvis"), 3, 0, CPU, steps=1)
    for batch in batches.epoch(0):
        for target, seen in zip(batch.targets, batch.views, strict=True):
            assert target.shape == (3, 6, 128, 128, 72)
            assert target.min() >= 0
            assert (target.sum(1) - 1).abs().max() < 1e-2
            assert seen.image.min() >= 0 and seen.image.max() <= 1


def test_intensity_is_the_same_for_all_windows_of_a_scan():
    seen = torch.rand(1, 2, 16, 16, 8)
    box = np.array([[0.0, 0, 0], [100, 100, 60]])
    intensity = RandIntensity()
    intensity.plain.transforms = intensity.plain.transforms[:4]
    for seed in range(5):
        intensity.set_random_state(seed)
        images, _ = intensity(seen.repeat(2, 1, 1, 1, 1), [box, box])
        torch.testing.assert_close(images[0], images[1])


def test_low_resolution_does_not_move_the_image():
    intensity = RandIntensity()
    (low,) = (t for t in intensity.plain.transforms if isinstance(t, RandSimulateLowResolution))
    low.prob = 1.0
    axes = [torch.arange(n) - (n - 1) / 2 for n in (40, 40, 24)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    ball = torch.exp(-(x**2 + y**2 + z**2) / 30)
    for seed in range(6):
        low.set_random_state(seed)
        seen = low(ball[None])[0]
        for axis in (x, y, z):
            assert abs(float((seen * axis).sum() / seen.sum())) < 0.1


def test_metal_is_no_bone():
    box = np.array([[0.0, 0, 0], [200, 200, 100]])
    metal = RandMetal(prob=1.0)
    for seed in range(4):
        metal.set_random_state(seed)
        seen = metal(torch.full((1, 3, 40, 40, 20), 0.3), [box])[0]
        rods = seen[1] == 0
        assert rods.any() and not seen[1:, seen[0] == 1].any()
        assert bool((seen[1:, ~rods] == 0.3).all())
