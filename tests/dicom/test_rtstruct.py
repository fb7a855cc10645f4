"""RT Structure Sets out and in: masks come back as they were; contours of other programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_files import bones, write_slices
from enhanced import write_enhanced
from orientation import ORDERS, oriented
from pydicom.dataset import Dataset

from multipass.data.prepare import prepare_patient
from multipass.data.scan import read_scan
from multipass.data.scans import find_cases
from multipass.dicom.belonging import fitting
from multipass.dicom.choice import choose
from multipass.dicom.ct import CT, read_ct
from multipass.dicom.rt_reader import read_contours
from multipass.dicom.rt_writer import write_rtstruct
from multipass.dicom.seg_reader import read_reference
from multipass.dicom.series import find
from multipass.evaluation.scoring import reference_labels
from multipass.geometry.volume import Grid, Volume, from_sitk, from_upright, upright_grid
from multipass.site_rules import read_rules
from multipass.structures import PELVIS, by_codes

SIZE = (40, 28, 14)
GRID = Grid(SIZE, (1.5, 2.0, 3.0), (-31.0, 17.5, -250.0))


def write_volume(folder, volume: Volume, **tags) -> CT:
    """A CT series on any grid, read back."""
    grid = volume.grid
    places = [grid.affine[:3, :3] @ [0, 0, k] + grid.origin_mm for k in range(grid.size[2])]
    axes = grid.matrix.T[:2].ravel().tolist()
    spacing = grid.spacing_mm[1], grid.spacing_mm[0]
    write_slices(folder, volume.array, np.array(places), axes, spacing, **tags)
    return read_ct(choose(find(folder))[0])


def turned(degrees: float) -> tuple[float, ...]:
    """An oblique direction."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return tuple((about_x @ [[c, -s, 0], [s, c, 0], [0, 0, 1]]).ravel().tolist())


def labels(size) -> np.ndarray:
    """Boxes of five bones, the first with marrow that a bridge crosses, the second full of holes,
    and specks everywhere."""
    rng = np.random.default_rng(5)
    _, label = bones(SIZE)
    label[29:33, 9:12, 4:9] = 0
    label[31, 10, 6] = 1
    label[(label == 2) & (rng.random(SIZE) < 0.4)] = 0
    label[(label == 0) & (rng.random(SIZE) < 0.01)] = 3
    return label


def written(path, ct: CT, mask: np.ndarray) -> dict[str, np.ndarray]:
    """{name: mask on the CT's slices} of what was written and read back."""
    write_rtstruct(path, mask, ct.volume.grid, ct.slices, PELVIS, ct.is_resampled)
    return contours_of(path, ct)


def contours_of(path, ct: CT, rules=by_codes) -> dict[str, np.ndarray]:
    found = {}
    for mask in read_contours(path, ct, rules)[0]:
        whole = found[mask.attributes["SegmentLabel"]] = np.zeros(
            ct.stack.size[:2] + (len(ct.slices),), bool
        )
        x, y, z = (slice(s, s + n) for s, n in zip(mask.start, mask.array.shape, strict=True))
        whole[x, y, z] = mask.array
    return found


@pytest.mark.parametrize("direction", [ORDERS[k] for k in (0, 11, 26, 45)] + [17.0])
def test_a_mask_comes_back_voxel_by_voxel(tmp_path, direction):
    volume = Volume(bones(SIZE)[0], GRID)
    if isinstance(direction, float):
        volume = Volume(volume.array, replace(GRID, direction=turned(direction)))
    else:
        volume = oriented(volume, *direction)
    ct = write_volume(tmp_path / "ct", volume)
    mask = labels(SIZE)
    if not isinstance(direction, float):
        mask = np.ascontiguousarray(from_upright(mask, ct.volume.grid))
    found = written(tmp_path / "rt.dcm", ct, mask)
    assert list(found) == [structure.name for structure in PELVIS]
    for value, one in enumerate(found.values(), 1):
        assert np.array_equal(one, mask == value)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    hounsfield, label = bones(SIZE)
    return folder, write_volume(folder / "ct", Volume(hounsfield, GRID)), label


def test_it_is_a_reference_of_its_series_alone(scan, tmp_path):
    folder, ct, label = scan
    write_rtstruct(tmp_path / "rt.dcm", label, ct.volume.grid, ct.slices, PELVIS)
    drawn_by_hand(tmp_path / "rt.dcm")
    other = write_volume(tmp_path / "other", Volume(bones(SIZE)[0], GRID))
    assert other.slices[0].sop_uid != ct.slices[0].sop_uid
    found = find([folder / "ct", tmp_path])
    (header,) = found.seg
    series = {s.slices[0].sop_uid: s for s in found.ct}
    assert fitting([header], series[ct.slices[0].sop_uid], found.ct) == ([header], [])
    (why,) = fitting([header], series[other.slices[0].sop_uid], found.ct)[1]
    assert why == "rt.dcm: belongs to another frame of reference"
    reference = read_reference([header], upright_grid(ct.volume.grid), ct=ct)
    assert np.array_equal(reference.labels(), label)
    assert [s.structure for s in reference.segments] == list(PELVIS)


def test_our_own_is_no_reference_until_a_person_corrects_it(scan, tmp_path):
    folder, ct, label = scan
    write_rtstruct(tmp_path / "rt.dcm", label, ct.volume.grid, ct.slices, PELVIS)
    (header,) = find(tmp_path).seg
    assert header.is_own and header.is_contours
    drawn_by_hand(tmp_path / "rt.dcm")
    (header,) = find(tmp_path).seg
    assert not header.is_own


@pytest.mark.parametrize("drift_mm", [0.0, 1.2])
def test_slices_that_were_resampled_get_the_nearest_labels(tmp_path, drift_mm):
    """Uneven ones, and those of a tilted gantry."""
    heights = np.cumsum([0, *(3, 3, 5, 3, 4, 3, 3, 5, 3, 3, 3, 4, 3)]) if not drift_mm else None
    heights = np.arange(SIZE[2]) * 3.0 if heights is None else heights
    places = np.stack([0 * heights, drift_mm / 3 * heights, heights], axis=1)
    hounsfield, label = bones(SIZE)
    write_slices(tmp_path / "ct", hounsfield, places, spacing_mm=(2.0, 1.5))
    ct = read_ct(choose(find(tmp_path / "ct"))[0])
    assert ct.is_resampled
    grid = ct.volume.grid
    mask = (ct.volume.array > 400).astype(np.uint8)
    write_rtstruct(tmp_path / "rt.dcm", mask, grid, ct.slices, PELVIS, is_resampled=True)
    (found,) = contours_of(tmp_path / "rt.dcm", ct).values()
    both = np.count_nonzero(found & (label > 0))
    assert 2 * both / (np.count_nonzero(found) + np.count_nonzero(label)) > 0.95
    place = {piece.sop_uid: piece for piece in ct.slices}
    for contour in pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence:
        piece = place[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        points = np.reshape(contour.ContourData, (-1, 3)).astype(float)
        assert np.abs((points - piece.position_mm) @ piece.normal).max() < 0.01


def test_frames_of_one_file_are_referred_to_by_number(scan, tmp_path):
    folder, _, label = scan
    write_enhanced(sorted((folder / "ct").iterdir()), tmp_path / "ct" / "all.dcm")
    ct = read_ct(choose(find(tmp_path / "ct"))[0])
    for value, one in enumerate(written(tmp_path / "rt.dcm", ct, label).values(), 1):
        assert np.array_equal(one, label == value)
    region = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0]
    numbers = {c.ContourImageSequence[0].ReferencedFrameNumber for c in region.ContourSequence}
    assert numbers == {piece.frame + 1 for k, piece in enumerate(ct.slices) if 1 in label[:, :, k]}


def test_a_source_against_the_rules_is_referred_to_as_it_is(scan, tmp_path, recwarn):
    folder, _, label = scan
    series = "1.2.840.00099.1"
    for k, path in enumerate(sorted((folder / "ct").iterdir())):
        dataset = pydicom.dcmread(path)
        for keyword in ("PatientBirthDate", "StudyID", "AccessionNumber", "PatientSex"):
            delattr(dataset, keyword)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.840.0001", series
        dataset.SOPInstanceUID = f"{series}.{k:03d}"
        dataset.PatientName = "Müller^Åsa"
        dataset.SpecificCharacterSet = "ISO_IR 100"
        (tmp_path / "ct").mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "ct" / path.name)
    ct = read_ct(choose(find(tmp_path / "ct"))[0])
    recwarn.clear()
    write_rtstruct(tmp_path / "rt.dcm", label, ct.volume.grid, ct.slices, PELVIS)
    assert not recwarn.list
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    assert dataset.StudyInstanceUID == "1.2.840.0001" and dataset.PatientName == "Müller^Åsa"
    assert dataset.PatientSex == "" and "StudyID" in dataset
    drawn_by_hand(tmp_path / "rt.dcm")
    found = find(tmp_path)
    assert fitting(found.seg, found.ct[0], found.ct) == (found.seg, [])


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
def test_dciodvfy_finds_no_error(scan, tmp_path):
    _, ct, label = scan
    write_rtstruct(tmp_path / "rt.dcm", label, ct.volume.grid, ct.slices, PELVIS)
    command = ["dciodvfy", str(tmp_path / "rt.dcm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "RTStructureSet" in done.stdout + done.stderr  # the object that it took it for
    assert not [line for line in done.stderr.splitlines() if line.startswith("Error")]


PLASTIMATCH = shutil.which("plastimatch") or shutil.which(
    "plastimatch", path=str(Path(sys.executable).parent)
)


@pytest.mark.skipif(PLASTIMATCH is None, reason="plastimatch is not installed")
def test_plastimatch_reads_the_mask_and_we_read_what_it_writes(tmp_path):
    grid = Grid((110, 100, 30), (1.0, 1.0, 1.0), (-55.0, -40.0, -14.5))
    x, y, z = (axis + o for axis, o in zip(np.ogrid[:110, :100, :30], grid.origin_mm, strict=True))
    label = np.zeros(grid.size, np.uint8)
    radius = np.sqrt((np.abs(x) - 25) ** 2 + y**2 + (1.3 * z) ** 2)
    label[(radius < 24) & (radius > 20)] = 1  # hollow
    label[(radius < 24) & (np.abs(np.sin(x / 3)) > 0.4) & (x < 0)] = 2  # in sheets
    ct = write_volume(tmp_path / "ct", Volume(label.astype(np.int16), grid))
    write_rtstruct(tmp_path / "rt.dcm", label, ct.volume.grid, ct.slices, PELVIS)
    command = [PLASTIMATCH, "convert", "--input", tmp_path / "rt.dcm", "--referenced-ct"]
    command += [tmp_path / "ct", "--prefix-format", "nrrd", "--output-prefix", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    for value in (1, 2):
        found = from_sitk(sitk.ReadImage(tmp_path / "out" / f"{PELVIS[value - 1].name}.nrrd"))
        assert found.grid == ct.volume.grid
        both = np.count_nonzero(found.array[label == value])
        dice = 2 * both / (np.count_nonzero(found.array) + np.count_nonzero(label == value))
        assert dice >= 0.98
    command = [PLASTIMATCH, "convert", "--input-prefix", tmp_path / "out", "--referenced-ct"]
    command += [tmp_path / "ct", "--output-dicom", tmp_path / "again"]
    subprocess.run(command, check=True, capture_output=True)
    (header,) = find(tmp_path / "again").seg
    assert not header.is_own
    again = contours_of(header.path, ct)
    for value, structure in enumerate(PELVIS[:2], 1):
        assert np.array_equal(again[structure.name], label == value)


# ---------------------------------------------------------- as labels, as a reference


@pytest.fixture(scope="module")
def patient(cohort_dir, tmp_path_factory):
    """A patient whose only labels are contours, and the one with a SEG that they were made of."""
    folder = tmp_path_factory.mktemp("cohort") / "Patient_01"
    shutil.copytree(cohort_dir / "Patient_01" / "im_1", folder / "im_1")
    found = find(cohort_dir / "Patient_01")
    ct = read_ct(choose(found)[0])
    label = read_reference(found.seg, upright_grid(ct.volume.grid), ct=ct).labels()
    mask = np.ascontiguousarray(from_upright(label, ct.volume.grid))
    write_rtstruct(folder / "im_3" / "rt.dcm", mask, ct.volume.grid, ct.slices, PELVIS)
    drawn_by_hand(folder / "im_3" / "rt.dcm")
    return folder, cohort_dir / "Patient_01"


def test_contours_are_labels_for_training(patient):
    folder, of_seg = patient
    seen, _ = prepare_patient(folder, folder.parent)
    wanted, _ = prepare_patient(of_seg, of_seg.parent)
    assert seen["structures"] == wanted["structures"]
    assert np.array_equal(seen["fractions"], wanted["fractions"])


def test_beside_a_seg_contours_give_what_it_has_not(patient, tmp_path):
    folder, of_seg = patient
    shutil.copytree(folder, tmp_path / "Patient_01")
    (path,) = (of_seg / "im_3").iterdir()
    shutil.copy(path, tmp_path / "Patient_01" / "im_3" / "seg.dcm")
    seen, facts = prepare_patient(tmp_path / "Patient_01", tmp_path)
    assert "rt.dcm: its sacrum gives way to a SEG's" in facts["notes"]
    assert seen["structures"] == prepare_patient(folder, folder.parent)[0]["structures"]
    dataset = pydicom.dcmread(tmp_path / "Patient_01" / "im_3" / "rt.dcm")
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData[2] += 50
    dataset.save_as(tmp_path / "Patient_01" / "im_3" / "rt.dcm")
    _, facts = prepare_patient(tmp_path / "Patient_01", tmp_path)
    assert "left out rt.dcm: 'left hip bone' is drawn across the slices" in facts["notes"]


def test_contours_are_a_reference_for_scores(patient):
    folder, of_seg = patient
    with ExitStack() as stack:
        labels = [
            reference_labels(case, read_scan(case), PELVIS)
            for one in (folder, of_seg)
            for case in find_cases(one, stack).cases
        ]
    assert np.array_equal(labels[0][0], labels[1][0]) and labels[0][1] == labels[1][1]


def drawn_by_hand(path) -> None:
    dataset = pydicom.dcmread(path)
    for region in dataset.StructureSetROISequence:
        region.ROIGenerationAlgorithm = "MANUAL"
    dataset.save_as(path)


# ------------------------------------------------------- other programs' contours


def structure_set(path, ct: CT, regions: dict[str, list[tuple[str, np.ndarray]]]) -> None:
    """A file without codes. Contours are (type, (N, 3) indices on the CT's slices)."""
    label = np.zeros(SIZE, np.uint8)
    label[2:4, 2:4, 2] = 1
    write_rtstruct(path, label, ct.volume.grid, ct.slices, PELVIS)
    dataset = pydicom.dcmread(path)
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    dataset.StructureSetROISequence = dataset.ROIContourSequence = []
    del dataset.RTROIObservationsSequence
    for number, (name, contours) in enumerate(regions.items(), 7):
        region, outlines = Dataset(), Dataset()
        region.ROINumber = outlines.ReferencedROINumber = number
        region.ROIName, region.ROIGenerationAlgorithm = name, "MANUAL"
        region.ReferencedFrameOfReferenceUID = frame.FrameOfReferenceUID
        outlines.ContourSequence = []
        for kind, points in contours:
            contour = Dataset()
            places = points @ ct.volume.grid.affine[:3, :3].T + ct.volume.grid.origin_mm
            contour.ContourGeometricType = kind
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{v:.5f}" for v in places.ravel()]
            outlines.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(region)
        dataset.ROIContourSequence.append(outlines)
    dataset.save_as(path)


def box(low: float, high: float, slice_index: float, kind: str = "CLOSED_PLANAR"):
    corners = [(low, low), (high, low), (high, high), (low, high)]
    return kind, np.array([(x, y, slice_index) for x, y in corners])


def square(low: float, high: float) -> np.ndarray:
    x, y = np.ogrid[: SIZE[0], : SIZE[1]]
    return (x > low) & (x < high) & (y > low) & (y < high)


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_holes_and_islands_of_other_programs(scan, tmp_path, kind):
    _, ct, _ = scan
    nested = [box(low, 25 - low, 5, kind) for low in (9.5, 2.5, 5.5)]
    structure_set(tmp_path / "rt.dcm", ct, {"Femur_L": nested})
    (found,) = contours_of(tmp_path / "rt.dcm", ct).values()
    wanted = square(2.5, 22.5) & ~square(5.5, 19.5) | square(9.5, 15.5)
    assert np.array_equal(found[:, :, 5], wanted)
    assert not np.delete(found, 5, axis=2).any()


def test_contours_that_overlap_add_up_and_copies_count_once(scan, tmp_path):
    _, ct, _ = scan
    both = [box(2.5, 9.5, 5), box(6.5, 14.5, 5), box(2.5, 9.5, 5)]
    structure_set(tmp_path / "rt.dcm", ct, {"sacrum": both})
    (found,) = contours_of(tmp_path / "rt.dcm", ct).values()
    assert np.array_equal(found[:, :, 5], square(2.5, 9.5) | square(6.5, 14.5))


def test_a_wide_keyhole_is_a_hole(scan, tmp_path):
    _, ct, _ = scan
    outer = [(2.5, 2.5), (20.5, 2.5), (20.5, 11.1), (15.5, 11.1), (15.5, 5.5), (5.5, 5.5)]
    inner = [(5.5, 15.5), (15.5, 15.5), (15.5, 11.3), (20.5, 11.3), (20.5, 20.5), (2.5, 20.5)]
    points = np.array([(x, y, 4) for x, y in outer + inner])
    structure_set(tmp_path / "rt.dcm", ct, {"sacrum": [("CLOSED_PLANAR", points)]})
    (found,) = contours_of(tmp_path / "rt.dcm", ct).values()
    assert np.array_equal(found[:, :, 4], square(2.5, 20.5) & ~square(5.5, 15.5))


def test_what_is_no_area_or_no_structure_is_left_out_with_a_note(scan, tmp_path):
    _, ct, _ = scan
    regions = {
        "sacrum": [
            box(2.5, 9.5, 5),
            ("POINT", np.array([[3.0, 3, 5]])),
            box(1, 9, 6, "OPEN_PLANAR"),
        ],
        "Femur_R": [],
        "BODY": [box(0.5, 25.5, 5)],
        "Hip": [box(2.5, 9.5, 5)],
    }
    structure_set(tmp_path / "rt.dcm", ct, regions)
    masks, notes = read_contours(tmp_path / "rt.dcm", ct, by_codes)
    assert [mask.attributes["SegmentLabel"] for mask in masks] == ["sacrum"]
    assert masks[0].array.shape == (7, 7, 1) and masks[0].start == (3, 3, 5)
    assert notes == [
        "'sacrum' has 2 open contours or points, left out",
        "'Femur_R' has no contours: not drawn",
        "regions left out, of no known name or code: BODY, Hip",
    ]


def test_a_sites_rules_name_regions(scan, tmp_path):
    _, ct, _ = scan
    regions = {"Os_innominatum_sin": [box(2.5, 9.5, 5)], "sacrum": [box(12.5, 19.5, 5)]}
    structure_set(tmp_path / "rt.dcm", ct, regions)
    rules = [{"label": "os_innominatum_sin", "structure": "left hip bone"}]
    rules.append({"label": "sacrum", "ignore": True})
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    headers = find(tmp_path).seg
    grid = upright_grid(ct.volume.grid)
    reference = read_reference(headers, grid, read_rules(tmp_path / "rules.json"), ct)
    assert [s.structure for s in reference.segments] == [PELVIS[0]]
    assert np.array_equal(reference.labels()[:, :, 5] == 1, square(2.5, 9.5))


def test_planes_between_slices_and_in_every_second_slice(scan, tmp_path):
    _, ct, _ = scan
    sparse = [box(2.5, 9.5, k) for k in (2, 4, 6, 11)]
    structure_set(tmp_path / "a.dcm", ct, {"sacrum": sparse})
    (found,) = contours_of(tmp_path / "a.dcm", ct).values()
    assert np.flatnonzero(found.any(axis=(0, 1))).tolist() == [2, 3, 4, 5, 6, 11]
    assert "in one of 2 slices" in read_contours(tmp_path / "a.dcm", ct, by_codes)[1][0]
    finer = [box(2.5 + k, 9.5 + k, k / 2) for k in range(-4, 10)]
    structure_set(tmp_path / "b.dcm", ct, {"sacrum": finer})
    masks, notes = read_contours(tmp_path / "b.dcm", ct, by_codes)
    (found,) = contours_of(tmp_path / "b.dcm", ct).values()
    for k in range(5):
        assert np.array_equal(found[:, :, k], square(2.5 + 2 * k, 9.5 + 2 * k))
    assert notes == ["'sacrum' lies outside the scan with 3 of 14 contours"]


def test_contours_across_the_slices_are_refused(scan, tmp_path):
    _, ct, _ = scan
    across = [("CLOSED_PLANAR", np.array([[5.0, 2, 3], [5, 9, 3], [5, 9, 8], [5, 2, 8]]))]
    structure_set(tmp_path / "rt.dcm", ct, {"sacrum": across})
    with pytest.raises(ValueError, match=r"^rt.dcm: 'sacrum' is drawn across the slices"):
        read_contours(tmp_path / "rt.dcm", ct, by_codes)


def test_values_that_are_no_points_are_refused(scan, tmp_path):
    _, ct, _ = scan
    for values in (b"1\\2\\3\\4", b"1\\2\\nan", b"a\\b\\c"):
        structure_set(tmp_path / "rt.dcm", ct, {"sacrum": [box(2.5, 9.5, 5)]})
        data = (tmp_path / "rt.dcm").read_bytes()
        dataset = pydicom.dcmread(tmp_path / "rt.dcm")
        contour = dataset.ROIContourSequence[0].ContourSequence[0]
        old = contour.get_item("ContourData").value
        assert data.count(old) == 1
        (tmp_path / "rt.dcm").write_bytes(data.replace(old, values.ljust(len(old))))
        with pytest.raises(ValueError, match=r"^rt.dcm: contours whose values are no points"):
            read_contours(tmp_path / "rt.dcm", ct, by_codes)
