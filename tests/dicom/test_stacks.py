"""Where slices lie: drift within their plane, tilt, uneven gaps; image and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import POSITIONS, bones, write_seg, write_slices

from multipass.dicom.choice import choose
from multipass.dicom.ct import read_ct
from multipass.dicom.seg_reader import read_reference
from multipass.dicom.series import find
from multipass.geometry.volume import upright

SIZE = (24, 20, 12)
SPACING_MM = (2.0, 1.5)  # between rows, between columns
STEP_MM = 3.0


def patient(orientation) -> tuple[np.ndarray, np.ndarray]:
    """(HU, label), the left ones where LPS x is large, whatever way the slices lie."""
    hounsfield, label = bones(SIZE)
    row, column = np.split(np.asarray(orientation, float), 2)
    axis = 0 if abs(row[0]) > 0 else 1
    if axis == 1:
        hounsfield, label = (
            np.ascontiguousarray(a.transpose(1, 0, 2)) for a in (hounsfield, label)
        )
    if (row if axis == 0 else column)[0] < 0:
        hounsfield, label = np.flip(hounsfield, axis), np.flip(label, axis)
    return np.ascontiguousarray(hounsfield), np.ascontiguousarray(label)


def stacked(orientation, heights_mm: np.ndarray, drift: tuple[float, float]) -> np.ndarray:
    """(slices, 3) places; `drift`: mm along rows and columns for each mm of height."""
    row, column = np.split(np.asarray(orientation, float), 2)
    step = np.cross(row, column) + drift[0] * row + drift[1] * column
    return np.array([-20.0, 30.0, -400.0]) + heights_mm[:, None] * step


def read(folder: Path):
    found = find(folder)
    ct = read_ct(choose(found)[0])
    volume = upright(ct.volume)
    return ct, volume, read_reference(found.seg, volume.grid, ct=ct)


def centres(volume, reference) -> list[np.ndarray]:
    """LPS mm of the middle of each structure."""
    result = []
    for segment in reference.segments:
        index = np.argwhere(segment.mask >= 0.5).mean(axis=0) + segment.start
        result.append(volume.grid.affine[:3, :3] @ index + volume.grid.affine[:3, 3])
    return result


def wanted_centres(label: np.ndarray, places: np.ndarray, orientation) -> list[np.ndarray]:
    row, column = np.split(np.asarray(orientation, float), 2)
    result = []
    for value in range(1, 6):
        i, j, k = np.nonzero(label == value)
        at = places[k] + np.outer(i * SPACING_MM[1], row) + np.outer(j * SPACING_MM[0], column)
        result.append(at.mean(axis=0))
    return result


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("drift", [(0.0, 0.0), (0.02, 0.0), (0.0, 0.3), (-0.2, 0.25)])
def test_labels_lie_on_their_bones_in_every_position(tmp_path, position, drift):
    orientation = POSITIONS[position]
    hounsfield, label = patient(orientation)
    places = stacked(orientation, np.arange(SIZE[2]) * STEP_MM, drift)
    slices = write_slices(
        tmp_path / "ct", hounsfield, places, orientation, SPACING_MM, PatientPosition=position
    )
    write_seg(tmp_path / "seg.dcm", label, slices)
    ct, volume, reference = read(tmp_path)
    assert len(reference.segments) == 5
    assert ct.is_resampled == (max(map(abs, drift)) > 0.1)
    assert any("tilt" in note for note in ct.notes) == ct.is_resampled
    wanted = wanted_centres(label, places, orientation)
    for found, truth in zip(centres(volume, reference), wanted, strict=True):
        assert np.abs(found - truth).max() < 1.0
    union = reference.labels() > 0
    assert volume.array[union].mean() > 500
    assert np.count_nonzero(union & (volume.array > 350)) > 0.85 * np.count_nonzero(union)


@pytest.mark.parametrize("position", ["HFS", "FFP"])
@pytest.mark.parametrize("drift", [(0.0, 0.0), (0.2, 0.0)])
def test_uneven_slices_are_interpolated_with_their_labels(tmp_path, position, drift):
    orientation = POSITIONS[position]
    hounsfield, label = patient(orientation)
    gaps = np.full(SIZE[2] - 1, STEP_MM)
    gaps[4], gaps[8] = 5.0, 10.0
    heights = np.concatenate([[0], np.cumsum(gaps)])
    places = stacked(orientation, heights, drift)
    # A ramp along the slices shows where each of them went.
    ramp = (hounsfield * 0 + heights * 10).astype(np.int16)
    slices = write_slices(tmp_path / "ct", ramp, places, orientation, SPACING_MM)
    write_seg(tmp_path / "seg.dcm", label, slices)
    ct, volume, reference = read(tmp_path)
    note = "slices 3 and, elsewhere, 5, 10 mm apart, interpolated to 3 mm"
    assert any(note in text for text in ct.notes)
    assert ct.is_resampled
    assert volume.grid.spacing_mm[2] == pytest.approx(STEP_MM)
    if drift == (0.0, 0.0):
        row, column = np.split(np.asarray(orientation, float), 2)
        normal_z = np.cross(row, column)[2]
        z = volume.grid.origin_mm[2] + np.arange(volume.grid.size[2]) * volume.grid.spacing_mm[2]
        height = np.clip((z + 400) * normal_z, 0, heights[-1])
        assert np.abs(volume.array[10, 10] - height * 10).max() <= 1
    wanted = wanted_centres(label, places, orientation)
    for found, truth in zip(centres(volume, reference), wanted, strict=True):
        assert np.abs((found - truth)[:2]).max() < 1.5
        assert abs(found[2] - truth[2]) < 3.0
    inside = np.flatnonzero((label == 3).any(axis=(0, 1)))
    edges = heights[[inside[0] - 1, inside[0], inside[-1], inside[-1] + 1]]
    length = (edges[2] + edges[3] - edges[0] - edges[1]) / 2
    sacrum = reference.segments[2]
    assert abs(sacrum.mask.shape[2] * volume.grid.spacing_mm[2] - length) <= 1.5 * STEP_MM


def test_gaps_of_more_than_10_mm_are_refused(tmp_path):
    hounsfield, _ = bones(SIZE)
    heights = np.arange(SIZE[2]) * STEP_MM
    heights[6:] += 7.5
    write_slices(tmp_path, hounsfield, stacked(POSITIONS["HFS"], heights, (0, 0)))
    with pytest.raises(ValueError, match="slices 3 and, elsewhere, 10.5 mm apart"):
        read(tmp_path)


def test_slices_aside_of_the_line_of_the_others_are_refused_by_name(tmp_path):
    hounsfield, _ = bones(SIZE)
    places = stacked(POSITIONS["HFS"], np.arange(SIZE[2]) * STEP_MM, (0, 0))
    places[5, 0] += 4
    write_slices(tmp_path, hounsfield, places)
    with pytest.raises(ValueError, match="005.dcm is 4 mm aside"):
        read(tmp_path)


def test_a_segmentation_of_its_own_grid_is_placed_by_its_frames(tmp_path):
    """Frames between the CT's slices, every one of 1.5 mm, of no declared spacing."""
    hounsfield, label = bones(SIZE)
    places = stacked(POSITIONS["HFS"], np.arange(SIZE[2]) * STEP_MM, (0, 0))
    slices = write_slices(tmp_path / "ct", hounsfield, places)
    finer = stacked(POSITIONS["HFS"], np.arange(2 * SIZE[2]) * STEP_MM / 2, (0, 0))
    others = write_slices(tmp_path / "other", np.repeat(hounsfield, 2, axis=2), finer)
    dataset = write_seg(tmp_path / "seg.dcm", np.repeat(label, 2, axis=2), others)
    dataset.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        measures.pop(keyword, None)
    dataset.save_as(tmp_path / "seg.dcm")
    found = find(tmp_path / "ct")
    ct = read_ct(choose(found)[0])
    volume = upright(ct.volume)
    reference = read_reference(find(tmp_path / "seg.dcm").seg, volume.grid, ct=ct)
    back = reference.labels()
    agree = np.count_nonzero((back == label) & (label > 0)) / np.count_nonzero(label)
    assert agree > 0.8


def test_a_frame_far_from_the_scan_is_said(tmp_path):
    hounsfield, label = bones(SIZE)
    places = stacked(POSITIONS["HFS"], np.arange(SIZE[2]) * STEP_MM, (0, 0))
    dataset = write_seg(
        tmp_path / "seg.dcm", label, write_slices(tmp_path / "ct", hounsfield, places)
    )
    frame = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    frame.ImagePositionPatient[2] += 401
    dataset.save_as(tmp_path / "seg.dcm")
    _, _, reference = read(tmp_path)
    assert any("lies outside the scan with 16.7%" in note for note in reference.notes)


@pytest.mark.parametrize("far_mm", [3e6, 3e30])
def test_a_frame_in_another_country_is_refused(tmp_path, far_mm):
    hounsfield, label = bones(SIZE)
    places = stacked(POSITIONS["HFS"], np.arange(SIZE[2]) * STEP_MM, (0, 0))
    dataset = write_seg(
        tmp_path / "seg.dcm", label, write_slices(tmp_path / "ct", hounsfield, places)
    )
    frame = dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    frame.ImagePositionPatient = [*frame.ImagePositionPatient[:2], f"{far_mm:g}"]
    dataset.save_as(tmp_path / "seg.dcm")
    with pytest.raises(ValueError, match="mm apart"):
        read(tmp_path)


def test_narrow_gaps_do_not_multiply_the_slices(tmp_path):
    hounsfield, _ = bones(SIZE)
    heights = np.cumsum([0, 8, 8, 8, 8, 8, 8, 0.2, 0.2, 0.2, 0.2, 8])
    write_slices(tmp_path, hounsfield, stacked(POSITIONS["HFS"], heights, (0, 0)))
    ct = read_ct(choose(find(tmp_path))[0])
    assert ct.volume.grid.size[2] <= 3 * SIZE[2] + 1
    assert ct.volume.grid.box_mm()[1, 2] - ct.volume.grid.box_mm()[0, 2] >= heights[-1]


@pytest.mark.parametrize("number", [0, 3])
def test_one_slice_a_little_off_in_direction_turns_no_scan(tmp_path, number):
    hounsfield, _ = bones(SIZE)
    heights = np.arange(SIZE[2]) * 3.0
    slices = write_slices(tmp_path, hounsfield, stacked(POSITIONS["HFS"], heights, (0, 0)))
    right = read_ct(choose(find(tmp_path))[0]).stack.lattice
    odd = slices[number]
    odd.ImageOrientationPatient = [1, 0.0008, 0, 0, 1, 0]
    (path,) = (
        p for p in tmp_path.iterdir() if pydicom.dcmread(p).SOPInstanceUID == odd.SOPInstanceUID
    )
    odd.save_as(path)
    np.testing.assert_array_equal(read_ct(choose(find(tmp_path))[0]).stack.lattice, right)
