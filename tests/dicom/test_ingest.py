"""DICOM in: a phantom in every orientation, gantry tilt, and series that must be refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from enhanced import write_enhanced
from orientation import ORDERS, oriented
from pydicom.uid import MPEG2MPML, JPEGLSLossless, RLELossless
from scipy.ndimage import map_coordinates

from multipass.data.prepare import prepare_patient
from multipass.dicom.choice import choose
from multipass.dicom.ct import read_ct
from multipass.dicom.seg_reader import read_reference
from multipass.dicom.series import find
from multipass.geometry.volume import Grid, Volume, resample_oblique, upright
from multipass.phantom import make_subject
from multipass.phantom.reference import write_segmentation
from multipass.phantom.writer import write_ct, write_subject
from multipass.structures import PELVIS

ZOO = Path(__file__).resolve().parents[3] / "shared" / "dicom_zoo"
zoo = pytest.mark.skipif(not ZOO.exists(), reason="the DICOM collection is not beside the clone")
# A label that was resampled twice, at 6 mm voxels.
OBLIQUE_DICE = 0.90


@pytest.fixture(scope="module")
def subject():
    return make_subject(3, 0, matrix=64, size="small", implant="", padding=None)


def written(folder: Path, subject, volume: Volume, label: Volume) -> Path:
    slices = write_ct(folder / "im_1", volume, subject.recipe)
    write_segmentation(folder / "im_3", label, folder / "im_1", slices, subject.recipe)
    return folder


def read(folder: Path):
    found = find(folder)
    series, _ = choose(found)
    ct = read_ct(series)
    volume = upright(ct.volume)
    return ct, volume, read_reference(found.seg, volume.grid)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory, subject) -> dict:
    """The patient file of the subject as it lies."""
    folder = tmp_path_factory.mktemp("plain") / "Patient_01"
    label = Volume(subject.label, subject.volume.grid)
    return prepare_patient(written(folder, subject, subject.volume, label), folder.parent)[0]


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_any_acquisition_gives_the_same_patient_file(tmp_path, subject, plain_file, order, signs):
    volume = oriented(subject.volume, order, signs)
    label = oriented(Volume(subject.label, subject.volume.grid), order, signs)
    _, result, reference = read(written(tmp_path, subject, volume, label))
    np.testing.assert_allclose(result.grid.affine, subject.volume.grid.affine, atol=1e-4)
    wanted = np.maximum(subject.volume.array, -1024)
    assert np.abs(result.array - wanted).max() <= max(1, subject.recipe.slope)
    assert [s.structure for s in reference.segments] == list(PELVIS)
    assert np.array_equal(reference.labels(), subject.label)
    file, _ = prepare_patient(tmp_path, tmp_path.parent)
    for view, wanted in ((file, plain_file), (file["scan"], plain_file["scan"])):
        np.testing.assert_allclose(
            [*view["window"]["origin_mm"], *view["window"]["spacing_mm"]],
            [*wanted["window"]["origin_mm"], *wanted["window"]["spacing_mm"]],
            atol=1e-3,
        )
        assert np.abs(view["image"] - wanted["image"]).max() < 0.005
        assert np.abs(view["fractions"].astype(int) - wanted["fractions"]).max() <= 1
        assert (view["label"] != wanted["label"]).mean() < 1e-4


def test_oblique_acquisition_comes_upright(tmp_path, subject):
    angles = np.radians([12, -8, 15])
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        one = np.eye(3)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        one[i, i], one[i, j], one[j, i], one[j, j] = c, -s, s, c
        turn = one @ turn
    grid = subject.volume.grid
    size = tuple(int(n * 1.2) for n in grid.size)
    centre = grid.box_mm().mean(axis=0)
    origin = centre - turn @ ((np.asarray(size) - 1) / 2 * grid.spacing_mm)
    target = Grid(size, grid.spacing_mm, tuple(origin), tuple(turn.ravel()))
    volume = resample_oblique(subject.volume, target)
    parts = [
        resample_oblique(Volume((subject.label == k).astype(np.float32), grid), target, 0.0).array
        for k in range(6)
    ]
    label = np.argmax(parts, axis=0).astype(np.uint8)
    _, result, reference = read(written(tmp_path, subject, volume, Volume(label, target)))
    back = reference.labels()
    for k, structure in enumerate(PELVIS, 1):
        mask = Volume((back == k).astype(np.float32), result.grid)
        again = resample_oblique(mask, grid, 0.0).array >= 0.5
        assert dice(again, subject.label == k) > OBLIQUE_DICE, structure.name


def test_gantry_tilt_is_found_and_undone_for_image_and_labels(tmp_path, subject):
    grid = subject.volume.grid
    tilt = np.radians(15)
    c, s = np.cos(tilt), np.sin(tilt)
    tilted = replace(grid, direction=(1, 0, 0, 0, c, s, 0, -s, c))
    lattice = tilted.affine
    lattice[:3, 2] = (0, 0, grid.spacing_mm[2])
    index = np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij"))
    places = np.einsum("ij,j...->i...", lattice[:3, :3], index)
    at = places / np.reshape(grid.spacing_mm, (3, 1, 1, 1))
    sheared = map_coordinates(subject.volume.array, at, order=1, cval=-1000)
    parts = [map_coordinates((subject.label == k) * 1.0, at, order=1) for k in range(1, 6)]
    label = np.argmax([1 - np.sum(parts, axis=0), *parts], axis=0).astype(np.uint8)
    written(tmp_path, subject, Volume(sheared, tilted), Volume(label, tilted))
    moved = {}
    for k, path in enumerate(by_place(tmp_path / "im_1", tilted)):
        dataset = pydicom.dcmread(path)
        place = [f"{v:.4f}" for v in (lattice @ (0, 0, k, 1))[:3]]
        moved[tuple(dataset.ImagePositionPatient)] = place
        dataset.ImagePositionPatient = place
        dataset.save_as(path)
    seg = next((tmp_path / "im_3").iterdir())
    dataset = pydicom.dcmread(seg)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        plane = frame.PlanePositionSequence[0]
        plane.ImagePositionPatient = nearest(moved, plane.ImagePositionPatient)
    dataset.save_as(seg)

    found = find(tmp_path)
    ct = read_ct(choose(found)[0])
    assert ct.tilt_degrees == pytest.approx(15, abs=0.1)
    assert any("tilt" in note for note in ct.notes)
    reference = read_reference(found.seg, ct.volume.grid, ct=ct)
    for segment in reference.segments:
        k = 1 + PELVIS.index(segment.structure)
        mask = np.zeros(ct.volume.grid.size, np.float32)
        mask[segment.span] = segment.mask
        back = resample_oblique(Volume(mask, ct.volume.grid), grid, 0.0).array >= 0.5
        seen = inside_of(lattice, grid)
        truth = (subject.label == k) & seen
        assert dice(back & seen, truth) > OBLIQUE_DICE, segment.structure.name
    on_grid = resample_oblique(ct.volume, grid).array.astype(float)
    seen = inside_of(lattice, grid)
    difference = on_grid[seen] - subject.volume.array[seen]
    elsewhere = on_grid[seen] - np.roll(subject.volume.array, 2, axis=1)[seen]
    assert np.abs(difference).mean() < 0.35 * np.abs(elsewhere).mean()


def by_place(folder: Path, grid: Grid) -> list[Path]:
    def height(path):
        return float(
            np.dot(
                pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient,
                grid.matrix[:, 2],
            )
        )

    return sorted(folder.iterdir(), key=height)


def nearest(moved: dict, place) -> list:
    old = np.asarray(place, float)
    return moved[min(moved, key=lambda p: np.linalg.norm(np.asarray(p, float) - old))]


def inside_of(lattice: np.ndarray, grid: Grid) -> np.ndarray:
    """Voxels of the grid that the sheared lattice covers, two voxels from its border."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij"), -1)
    places = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    at = (places - lattice[:3, 3]) @ np.linalg.inv(lattice[:3, :3]).T
    return ((at > 2) & (at < np.subtract(grid.size, 3))).all(axis=-1)


@pytest.fixture
def patient(tmp_path, subject) -> Path:
    write_subject(tmp_path / "Patient_01", subject)
    return tmp_path / "Patient_01"


def edit(path: Path, **values) -> None:
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def by_position(folder: Path) -> list[Path]:
    def height(path):
        return float(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])

    return sorted((folder / "im_1").iterdir(), key=height)


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        prepare_patient(folder, folder.parent)
    return str(caught.value)


def test_missing_slice_is_refused_with_the_gaps(patient):
    by_position(patient)[5].unlink()
    assert "apart, a file missing?" in refusal(patient)


def test_exact_duplicates_are_dropped(patient, subject):
    files = by_position(patient)
    shutil.copy(files[3], patient / "im_1" / "copy.dcm")
    result, facts = prepare_patient(patient, patient.parent)
    assert "1 exact duplicates" in facts["notes"]
    assert result["source"]["size"] == list(subject.volume.grid.size)


def test_two_slices_at_one_place_are_refused(patient):
    files = by_position(patient)
    place = pydicom.dcmread(files[4]).ImagePositionPatient
    edit(files[3], ImagePositionPatient=place)
    assert "different slices at one place" in refusal(patient)


def test_mixed_sizes_spacings_and_orientations_are_refused(patient):
    files = by_position(patient)
    edit(files[0], PixelSpacing=[1.0, 1.0])
    assert "pixel spacings" in refusal(patient)
    edit(files[1], ImageOrientationPatient=[0, 1, 0, 0, 0, 1])
    assert "orientations" in refusal(patient) or "pixel spacings" in refusal(patient)


def test_truncated_pixels_are_refused_by_file_name(patient):
    path = by_position(patient)[2]
    edit(path, PixelData=pydicom.dcmread(path).PixelData[:-500])
    assert path.name in refusal(patient)


def test_slope_and_intercept_are_taken_a_slice(patient):
    before, _ = prepare_patient(patient, patient.parent)
    path = by_position(patient)[6]
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array.astype(np.int32)
    hounsfield = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-2000"
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.clip(np.rint((hounsfield + 2000) / 2), 0, 65535).astype("<u2").tobytes()
    dataset.save_as(path)
    after, facts = prepare_patient(patient, patient.parent)
    assert "differ between slices" in facts["notes"]
    assert np.abs(after["image"] - before["image"]).max() < 3 / 1200


def test_compressed_series_read_like_plain_ones(patient):
    before, _ = prepare_patient(patient, patient.parent)
    for number, path in enumerate(by_position(patient)):
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless if number % 2 else JPEGLSLossless, generate_instance_uid=False)
        dataset.save_as(path)
    after, _ = prepare_patient(patient, patient.parent)
    assert np.array_equal(after["image"], before["image"])
    assert np.array_equal(after["fractions"], before["fractions"])


def test_presentation_does_not_change_hounsfield_units(patient):
    before, _ = prepare_patient(patient, patient.parent)
    for path in by_position(patient):
        edit(path, PhotometricInterpretation="MONOCHROME1", WindowCenter="-500")
    after, _ = prepare_patient(patient, patient.parent)
    assert np.array_equal(after["image"], before["image"])


def test_an_unknown_transfer_syntax_is_refused_by_name(patient):
    path = by_position(patient)[4]
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    dataset.PixelData = pydicom.encaps.encapsulate([b"\x00\x00\x01\xb3" * 8])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    assert "MPEG2" in refusal(patient)


def test_enhanced_multi_frame_ct_reads_like_single_frames(tmp_path, patient):
    write_enhanced(by_position(patient), tmp_path / "enhanced" / "all.dcm")
    ours = read_ct(choose(find(tmp_path / "enhanced"))[0]).volume
    single = read_ct(choose(find(patient / "im_1"))[0]).volume
    assert np.array_equal(ours.array, single.array)
    np.testing.assert_allclose(ours.grid.affine, single.grid.affine, atol=1e-6)


def test_padding_becomes_air(tmp_path, subject):
    for name, recipe in {
        "with": replace(subject.recipe, padding=-2000, signed=True, slope=1.0, intercept=0.0),
        "without": replace(subject.recipe, padding=None, signed=True, slope=1.0, intercept=0.0),
    }.items():
        write_ct(tmp_path / name, subject.volume, recipe)
    padded = read_ct(choose(find(tmp_path / "with"))[0]).volume.array
    plain = read_ct(choose(find(tmp_path / "without"))[0]).volume.array
    assert padded.min() >= -1024
    assert (padded[0, 0] == -1024).all()
    middle = slice(20, 44), slice(20, 44)
    assert np.array_equal(padded[middle], plain[middle])


def test_slices_that_cannot_be_read_are_noted(patient):
    by_position(patient)[0].write_bytes(b"")
    _, facts = prepare_patient(patient, patient.parent)
    assert "1 file beside the slices could not be read" in facts["notes"]


@pytest.mark.parametrize(
    ("shift_mm", "words"),
    [
        ((1.5, 0, 0), "do not lie along one line"),
        ((0, 12, 0), "do not lie along one line"),
        ((0, 0, 0.75), "do not lie on evenly spaced slices"),
        ((0, 0, 2), "do not lie on evenly spaced slices"),
        ((0, 0, 6), "two frames at one place"),
    ],
)
def test_a_segmentation_with_a_moved_frame_is_refused(patient, shift_mm, words):
    path = next((patient / "im_3").iterdir())
    dataset = pydicom.dcmread(path)
    frame = dataset.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0]
    place = [float(v) for v in frame.ImagePositionPatient]
    frame.ImagePositionPatient = np.add(place, shift_mm).round(4).tolist()
    dataset.save_as(path)
    assert words in refusal(patient)


def test_segmentation_of_another_frame_of_reference_is_refused(patient):
    seg = next((patient / "im_3").iterdir())
    edit(seg, FrameOfReferenceUID="1.2.3")
    assert "another frame of reference" in refusal(patient)


def test_swapped_sides_are_refused(tmp_path, subject):
    swapped = np.array([0, 2, 1, 3, 5, 4], np.uint8)[subject.label]
    write_subject(tmp_path / "P", replace(subject, label=swapped))
    assert "swapped" in refusal(tmp_path / "P")


@pytest.mark.parametrize("sides", [(0, 0, 1, 3, 0, 0), (0, 2, 0, 3, 0, 0)])
def test_one_side_alone_is_judged_by_the_sacrum(tmp_path, subject, sides):
    write_subject(tmp_path / "P", replace(subject, label=np.array(sides, np.uint8)[subject.label]))
    assert "swapped" in refusal(tmp_path / "P")


def test_on_the_side_the_sacrum_may_lie_beside_both_hip_bones(tmp_path):
    on_the_side = make_subject(
        3, 0, matrix=64, size="small", implant="", padding=None, roll_deg=70.0, centre_mm=(0.0, 0.0)
    )
    x = [np.argwhere(on_the_side.label == k)[:, 0].mean() for k in (1, 2, 3)]
    assert x[1] < x[0] < x[2] or x[2] < x[1] < x[0]
    write_subject(tmp_path / "P", on_the_side)
    assert prepare_patient(tmp_path / "P", tmp_path)


def test_other_series_in_the_folder_are_left_out_with_reasons(patient, subject):
    first = by_position(patient)[0]
    localizer = pydicom.dcmread(first)
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    localizer.SeriesInstanceUID = "1.2.3.4"
    localizer.save_as(patient / "im_1" / "scout.dcm")
    derived = replace(subject.recipe, index=7)
    shared = {k: localizer.get(k) for k in ("PatientID", "FrameOfReferenceUID")}
    reformat = oriented(subject.volume, (0, 2, 1), (1, 1, -1))
    for path in write_ct(patient / "im_1" / "reformat", reformat, derived):
        edit(path, ImageType=["DERIVED", "SECONDARY", "REFORMATTED"], **shared)
    (patient / "im_1" / "notes.txt").write_text("not DICOM")
    result, facts = prepare_patient(patient, patient.parent)
    assert "a localizer" in facts["notes"]
    assert "another series" in facts["notes"]
    assert result["source"]["size"] == list(subject.volume.grid.size)
    uid = next(s.uid for s in find(patient).ct if not s.is_original)
    forced, facts = prepare_patient(patient, patient.parent, series_uid=uid)
    assert forced["source"]["series_uid"] == facts["series_uid"] == uid
    moved = np.abs(forced["scan"]["label"] != result["scan"]["label"]).mean()
    assert moved < 0.01
    for seg in (patient / "im_3").iterdir():
        dataset = pydicom.dcmread(seg)
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            del frame.DerivationImageSequence
        del dataset.ReferencedSeriesSequence
        dataset.save_as(seg)
    _, facts = prepare_patient(patient, patient.parent)
    assert "derived" in facts["notes"]


def test_window_and_labels_of_a_patient_file_lie_in_the_patient(patient, subject):
    result, _ = prepare_patient(patient, patient.parent)
    grid = subject.volume.grid
    for view in (result, result["scan"]):
        origin, spacing = (
            np.array(view["window"]["origin_mm"]),
            np.array(view["window"]["spacing_mm"]),
        )
        for k in range(5):
            fractions = view["fractions"][k] / 255
            index = np.indices(fractions.shape).reshape(3, -1)
            centre = origin + spacing * (index @ fractions.ravel()) / fractions.sum()
            true = np.argwhere(subject.label == k + 1).mean(axis=0) * grid.spacing_mm
            np.testing.assert_allclose(centre, true + grid.origin_mm, atol=1.0)
            volume = fractions.sum() * spacing.prod()
            truth = np.count_nonzero(subject.label == k + 1) * np.prod(grid.spacing_mm)
            assert volume == pytest.approx(truth, rel=0.02)


@zoo
@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("series/notavolume", "slices at one place"),
        ("series/slicecount", "MR, not a CT image"),
        ("series/sliceorientation", "MR, not a CT image"),
        ("enhanced", "2 slices"),
    ],
)
def test_zoo_series_are_refused_with_the_reason(folder, words):
    with pytest.raises(ValueError, match=words):
        read_ct(choose(find(ZOO / folder))[0])


@zoo
@pytest.mark.parametrize(
    ("number", "gaps"), [("001", "5, 5, 10"), ("002", "0.7497, 0.7497, 1.499")]
)
def test_zoo_series_with_a_hole_are_interpolated_with_a_note(number, gaps):
    ct = read_ct(choose(find(ZOO / "series" / "sliceincrement" / number))[0])
    assert any(f"slices {gaps} mm apart, files missing?" in note for note in ct.notes)


@zoo
def test_zoo_gantry_tilt():
    ct = read_ct(choose(find(ZOO / "series" / "gantrytilting"))[0])
    assert ct.tilt_degrees == pytest.approx(14, abs=0.5)


@zoo
def test_zoo_transfer_syntaxes_decode_alike(tmp_path):
    names = sorted((ZOO / "syntaxes").glob("CTImage*"))
    plain = next(p for p in names if "LittleEndianExplicit" in p.name)
    arrays = {}
    for path in names:
        series = find_one(tmp_path, path)
        arrays[path.name] = series
    for name, array in arrays.items():
        lossy = any(word in name for word in ("Process1T", "Process2", "Process6", "Process10"))
        limit = 70 if lossy else 6
        assert np.abs(array.astype(int) - arrays[plain.name]).max() <= limit, name


def find_one(tmp_path: Path, path: Path) -> np.ndarray:
    """HU of one file, read as the product reads slices."""
    from multipass.dicom.hounsfield import hounsfield_frames

    folder = tmp_path / path.name
    folder.mkdir()
    shutil.copy(path, folder / path.name)
    (series,) = find(folder).ct
    return next(hounsfield_frames(list(series.slices)))
