"""One deformation of patient space for both windows, and the intensity augmentations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from balls import patient, view, write_cohort
from monai.transforms import RandSimulateLowResolution

from multipass.data.cohort import Cohort, Sample
from multipass.data.patient_files import window_of, write_patient
from multipass.geometry.windows import (
    COARSE_GRID_SIZE,
    GRID_SIZE,
    guarded,
    in_parts,
    unguarded,
    window_over,
)
from multipass.structures import PELVIS
from multipass.training.augment import Placement, RandPlacement, Space, look, undeformed
from multipass.training.batches import Batches, ahead, random_state
from multipass.training.intensity import (
    ContextOdds,
    RandContext,
    RandFieldOfView,
    RandIntensity,
    RandMetal,
)

CPU = torch.device("cpu")
STILL = Space(0, 0, 0, 0, 0, 0, 0, 0, 0, scan_scale=(1, 1), box_scale=(1, 1))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    return Cohort(write_cohort(tmp_path_factory.mktemp("processed"), 3))


@pytest.fixture(scope="module")
def sample(cohort) -> Sample:
    return cohort.sample("Patient_01", CPU)


def placed(sample: Sample, space: Space, seed: int) -> Placement:
    place = RandPlacement(space, mirror_allowed=True)
    place.set_random_state(seed)
    return place(sample)


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


def test_an_undeformed_scan_window_is_the_stored_one(sample):
    seen = look(sample, undeformed(sample)[0], "scan")
    torch.testing.assert_close(seen, sample.scan, atol=1e-4, rtol=0)


def test_the_undeformed_pelvis_window_is_the_crop_without_its_guard(sample):
    np.testing.assert_allclose(sample.pelvis_box, unguarded(sample.crop_box))
    (place,) = undeformed(sample)
    np.testing.assert_allclose(place.close_box, sample.pelvis_box)
    whole = Placement(place.control_mm, place.domain, place.scan_box, sample.crop_box, False)
    inside = look(sample, whole, "pelvis")[:, 16:-16, 16:-16, 9:-9]
    torch.testing.assert_close(inside, sample.crop[:, 16:-16, 16:-16, 9:-9], atol=1e-3, rtol=0)


@pytest.mark.parametrize("turned", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_both_windows_see_the_same_deformed_patient(sample, seed, turned):
    still = replace(Space(), turned=turned, cut=0.0, shift_mm=0.0, box_scale=(1.0, 1.0))
    place = placed(sample, still, seed)
    scan = volumes_ml(look(sample, place, "scan"), place.scan_box)
    pelvis = volumes_ml(look(sample, place, "pelvis"), place.close_box)
    np.testing.assert_allclose(pelvis, scan, rtol=0.03)
    box = place.close_box
    assert (box >= place.scan_box[0]).all() and (box <= place.scan_box[1]).all()


def test_other_stretches_of_a_tall_scan_are_drawn_and_have_no_closer_look(tmp_path):
    stored = patient(1)
    above = view(window_of(stored["scan"]), np.random.default_rng(5), np.zeros(3))
    above["fractions"][:], above["label"][:] = 0, 0
    above["window"]["origin_mm"][2] += 500.0
    write_patient(tmp_path / "Patient_01.pkl", stored | {"elsewhere": [above]})
    cohort, state = Cohort(tmp_path), np.random.RandomState(0)
    drawn = [cohort.sample("Patient_01", CPU, state) for _ in range(12)]
    other = [one for one in drawn if not one.scan[1:].any()]
    assert 2 < len(other) < 10
    for one in other:
        place = placed(one, Space(), 3)
        np.testing.assert_array_equal(place.close_box, place.scan_box)
        assert not look(one, place, "pelvis")[1:].any()
    assert cohort.sample("Patient_01", CPU).scan[1:].any()


def test_windows_over_a_tall_pelvis_are_drawn_and_see_its_finer_parts(tmp_path):
    """Of a pelvis 380 mm tall, parts bring the fractions in a close window nearer to the truth."""
    tall = np.diag([1.0, 1, 2.5])

    def stretched(box: np.ndarray) -> dict:
        seen = view(window_over(box @ np.linalg.inv(tall)), np.random.default_rng(5), np.zeros(3))
        seen["window"] = {k: (tall @ v).tolist() for k, v in seen["window"].items()}
        return seen

    pelvis = np.array([[-110.0, -70.0, -190.0], [110.0, 100.0, 190.0]])
    body = np.array([[-180.0, -120.0, -300.0], [180.0, 120.0, 300.0]])
    stored = patient(1) | stretched(guarded(pelvis)) | {"scan": stretched(body)}
    samples, errors = [], []
    for parts in ([], in_parts(guarded(pelvis), 2)):
        stored["parts"] = [stretched(part.box_mm()) for part in parts]
        write_patient(tmp_path / "Patient_01.pkl", stored)
        samples.append(Cohort(tmp_path).sample("Patient_01", CPU))
        places = undeformed(samples[-1])
        np.testing.assert_allclose([p.close_box[:, 2] for p in places], [[-190, 40], [-40, 190]])
        seen = [look(samples[-1], p, "pelvis")[1:].numpy() for p in places]
        truth = [stretched(p.close_box)["fractions"] / 255 for p in places]
        errors.append(np.abs(np.array(seen) - truth).mean())
    assert samples[1].crop.shape[-1] == 2 * GRID_SIZE[2]
    assert errors[1] < 0.8 * errors[0]
    drawn = {bool(placed(samples[1], STILL, seed).close_box[0, 2] > -120) for seed in range(8)}
    assert drawn == {True, False}


@pytest.mark.parametrize("window", ["scan", "pelvis"])
def test_a_coarse_window_sees_the_same_in_the_same_box(sample, window):
    place = placed(sample, Space(), 1)
    fine = look(sample, place, window)
    coarse = look(sample, place, window, COARSE_GRID_SIZE)
    assert coarse.shape == (len(fine), *COARSE_GRID_SIZE)
    box = place.box(window)
    np.testing.assert_allclose(volumes_ml(coarse, box), volumes_ml(fine, box), rtol=0.03)
    averaged = torch.nn.functional.interpolate(fine[None], COARSE_GRID_SIZE, mode="area")[0]
    assert (coarse - averaged)[1:].abs().mean() < 0.1 * averaged[1:].mean()


def test_a_patient_on_the_side_is_seen_whole(sample):
    """Turned by an angle about z, so are the bones' centres about that of the pelvis box."""
    turns = []
    for seed in range(6):
        place = placed(sample, replace(STILL, turned=1.0, turn_deg=90.0), seed)
        seen = look(sample, place, "scan")
        stored = volumes_ml(sample.scan, sample.scan_box)
        np.testing.assert_allclose(volumes_ml(seen, place.scan_box), stored, rtol=0.03)
        here, there = (
            centres_mm(maps, box) - sample.pelvis_box.mean(0)
            for maps, box in ((seen, place.scan_box), (sample.scan, sample.scan_box))
        )
        np.testing.assert_allclose(here[:, 2], there[:, 2], atol=1)
        far = np.hypot(there[:, 0], there[:, 1]) > 30
        before, after = (np.arctan2(c[far, 1], c[far, 0]) for c in (there, here))
        angles = np.unwrap(after - before)
        assert far.sum() >= 2 and np.ptp(angles) < 0.1
        turns.append(np.cos(angles[0]))
    assert min(turns) < np.cos(np.deg2rad(30))


def test_what_lies_beyond_the_crop_comes_from_the_scan(sample):
    (place,) = undeformed(sample)
    wide = Placement(place.control_mm, place.domain, place.scan_box, place.scan_box, False)
    torch.testing.assert_close(
        look(sample, wide, "pelvis"), look(sample, wide, "scan"), atol=0.5, rtol=0
    )
    difference = (look(sample, wide, "pelvis") - look(sample, wide, "scan")).abs()
    assert difference[1:].mean() < 0.002


def test_mirroring_swaps_left_and_right(cohort, sample):
    batches = Batches(cohort, cohort.ids, ("scan", "pelvis"), 1, 0, CPU)
    batches.place = RandPlacement(replace(STILL, mirror=1.0), mirror_allowed=True)
    _, fractions, boxes, _, _ = batches._draw(0, 0, "Patient_01", GRID_SIZE)
    x = np.linspace(0, 1, 128)
    for window in (0, 1):
        means = [(f.sum((1, 2)).numpy() * x).sum() / f.sum().item() for f in fractions[window]]
        left_hip, right_hip, _, left_femur, right_femur = means
        assert left_hip > right_hip and left_femur > right_femur
    mirrored = torch.flip(sample.scan[1:], (1,))[[1, 0, 2, 4, 3]]
    assert (fractions[0].sum((1, 2, 3)) / mirrored.sum((1, 2, 3)) - 1).abs().max() < 0.01
    assert (boxes[0][1] > boxes[0][0]).all()


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


def test_a_cut_never_reaches_beyond_the_scan_window(sample):
    for seed in range(8):
        place = placed(sample, replace(Space(), cut=1.0), seed)
        assert (place.scan_box[1] > place.scan_box[0]).all()
        assert (place.close_box[0] >= place.scan_box[0]).all()
        assert (place.close_box[1] <= place.scan_box[1]).all()


def test_the_same_seed_draws_the_same_batch(cohort):
    batches = [Batches(cohort, cohort.ids, ("scan", "pelvis"), 1, 3, CPU) for _ in range(2)]
    one, two = (next(iter(b.epoch(5))) for b in batches)
    assert torch.equal(one.views[1].image, two.views[1].image)
    assert torch.equal(one.targets[0], two.targets[0])
    other = next(iter(batches[0].epoch(6)))
    assert not torch.equal(one.views[1].image, other.views[1].image)


def test_batches_made_ahead_are_the_same(cohort):
    here, there = (Batches(cohort, cohort.ids, ("scan",), 1, 3, CPU, steps=2) for _ in range(2))
    for one, two in zip(here.epoch(0), ahead(there.epoch(0)), strict=True):
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
        images, _ = intensity(seen.repeat(2, 1, 1, 1, 1), [box, box], box)
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


def test_beyond_a_cut_field_of_view_there_is_no_bone():
    """Neither in the image nor in the reference, at the same places of both windows."""
    scan, pelvis = (
        np.array([[0.0, 0, 0], [200, 200, 100]]),
        np.array([[0.0, 0, 0], [100, 200, 100]]),
    )
    field = RandFieldOfView(prob=1.0)
    for seed in range(4):
        field.set_random_state(seed)
        seen = field(torch.ones(2, 3, 40, 40, 8), [scan, pelvis], scan)
        assert 0.5 < seen[0].mean() < 1
        assert torch.equal(seen, seen[:, :1].expand_as(seen))
        left = torch.nn.functional.avg_pool3d(seen[1], (2, 1, 1))
        assert (seen[0][:, :20] - left).abs().mean() < 0.03


def test_every_disturbed_context_stays_a_distribution_or_blank():
    context = torch.softmax(torch.randn(4, 16, 16, 8) * 4, 0)
    disturb = RandContext(ContextOdds(0.3, 0.5, 0.5, 0.5))
    seen = []
    for seed in range(20):
        disturb.set_random_state(state=random_state(seed))
        out = disturb(context)
        seen.append(bool(out.any()))
        assert not out.any() or out[:, 4:-4, 4:-4, 4:-4].sum(0).allclose(torch.ones(()), atol=1e-4)
    assert any(seen) and not all(seen)


@pytest.mark.parametrize("kind", ["blank", "blur", "shift", "remove"])
def test_each_disturbance_of_the_context_does_what_its_name_says(kind):
    context = torch.softmax(torch.randn(4, 16, 16, 8) * 4, 0)
    never = dict.fromkeys(("blank", "blur", "shift", "remove"), 0.0)
    disturb = RandContext(ContextOdds(**never | {kind: 1.0}))
    disturb.set_random_state(state=random_state(1))
    out = disturb(context)
    assert not torch.equal(out, context)
    if kind == "blank":
        assert not out.any()
    elif kind == "blur":
        assert out.std() < 0.7 * context.std()
    elif kind == "shift":
        torch.testing.assert_close(out.flatten(1).sort().values, context.flatten(1).sort().values)
    else:
        gone = [c for c in (1, 2, 3) if not out[c].any()]
        assert len(gone) == 1
        torch.testing.assert_close(out[0], context[0] + context[gone[0]])
