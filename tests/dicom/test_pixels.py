"""Pixels that are not plain 16-bit Hounsfield units: bits, padding, units, files, copies."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import POSITIONS, bones, write_slices
from enhanced import write_enhanced
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, SecondaryCaptureImageStorage, generate_uid

from multipass.dicom import hounsfield
from multipass.dicom.choice import choose
from multipass.dicom.ct import read_ct
from multipass.dicom.series import find

SIZE = (40, 36, 5)
PLACES = np.arange(SIZE[2])[:, None] * np.array([0, 0, 3.0])


@pytest.fixture
def scan(tmp_path) -> tuple[Path, np.ndarray]:
    """A folder of slices, and their HU."""
    values, _ = bones(SIZE)
    write_slices(tmp_path / "ct", values, PLACES, POSITIONS["HFS"])
    return tmp_path / "ct", values


def each(folder: Path, edit) -> None:
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        edit(dataset)
        dataset.save_as(path)


def read(folder: Path):
    return read_ct(choose(find(folder))[0])


def twelve_bits(dataset: Dataset) -> np.ndarray:
    """The slice's values as unsigned 12-bit ones, with the tags for them."""
    values = (dataset.pixel_array.astype(int) + 1024).astype(np.uint16)
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
    dataset.RescaleIntercept = "-1024"
    return values


def jpeg_2000(dataset: Dataset, values: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless


@pytest.mark.parametrize("compressed", [False, True])
def test_an_overlay_in_unused_bits_is_no_hounsfield_unit(scan, compressed):
    folder, wanted = scan

    def edit(dataset: Dataset) -> None:
        values = twelve_bits(dataset)
        values[3:9, 4:20] |= 0x1000
        values[20:25, 4:20] |= 0x8000
        dataset.PixelData = values.tobytes()
        if compressed:
            jpeg_2000(dataset, values)

    each(folder, edit)
    assert np.array_equal(read(folder).volume.array, wanted)


@pytest.mark.parametrize("signed", [False, True])
def test_values_in_the_upper_bits(scan, signed):
    folder, wanted = scan

    def edit(dataset: Dataset) -> None:
        values = twelve_bits(dataset)
        if signed:
            values = (values.astype(int) - 1024).astype(np.int16)
            dataset.PixelRepresentation, dataset.RescaleIntercept = 1, "0"
        dataset.HighBit = 15
        dataset.PixelData = (values << 4).tobytes()

    each(folder, edit)
    assert np.array_equal(read(folder).volume.array, wanted)


def test_a_high_bit_that_cannot_be_is_refused(scan):
    folder, _ = scan
    each(folder, lambda dataset: setattr(dataset, "HighBit", 1))
    with pytest.raises(ValueError, match="HighBit 1 of 16 bits stored in 16"):
        read(folder)


@pytest.mark.parametrize("padding", [[-2000, -2000], [-2000, -1500], None])
def test_padding_of_several_values_or_none(scan, padding):
    folder, wanted = scan

    def edit(dataset: Dataset) -> None:
        values = dataset.pixel_array.copy()
        values[:2] = -2000
        dataset.PixelData = values.tobytes()
        dataset.add_new("PixelPaddingValue", "SS", padding)

    each(folder, edit)
    array = read(folder).volume.array
    assert (array[:, :2] == -1024).all()
    assert np.array_equal(array[:, 2:], wanted[:, 2:])


@pytest.mark.parametrize(("kind", "is_read"), [("HU", True), ("US", True), ("MGML", False)])
def test_other_units_than_hounsfields_are_refused_by_name(scan, kind, is_read):
    folder, _ = scan
    each(folder, lambda dataset: setattr(dataset, "RescaleType", kind))
    if is_read:
        assert read(folder)
    else:
        with pytest.raises(ValueError, match="RescaleType MGML, not Hounsfield"):
            read(folder)


@pytest.mark.parametrize("implicit", [False, True])
def test_slices_without_preamble(scan, implicit):
    folder, wanted = scan
    for path in sorted(folder.iterdir()):
        bare = Dataset()
        bare.update({element.tag: element for element in pydicom.dcmread(path)})
        bare.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    (folder / "noise").write_bytes(b"\x08\x00" + bytes(range(256)) * 8)
    found = find(folder)
    assert np.array_equal(read_ct(choose(found)[0]).volume.array, wanted)
    assert [path.name for path, _ in found.unread] == ["noise"]


@pytest.mark.parametrize("compressed", [False, True])
def test_secondary_captures_with_a_place_are_slices(scan, compressed):
    folder, wanted = scan

    def edit(dataset: Dataset) -> None:
        if compressed:
            jpeg_2000(dataset, twelve_bits(dataset))
        kind = SecondaryCaptureImageStorage
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind

    each(folder, edit)
    assert np.array_equal(read(folder).volume.array, wanted)
    each(folder, lambda dataset: dataset.pop("ImagePositionPatient"))
    with pytest.raises(ValueError, match="a Secondary Capture without ImagePositionPatient"):
        read(folder)


def test_a_file_is_decoded_once_however_many_frames_lie_twice(scan, tmp_path, monkeypatch):
    folder, wanted = scan
    both = tmp_path / "both"
    write_enhanced(sorted(folder.iterdir()), both / "one.dcm")
    shutil.copy(both / "one.dcm", both / "two.dcm")
    each(both, lambda dataset: setattr(dataset, "SOPInstanceUID", generate_uid()))
    decoded = []
    read_dicom = hounsfield.read_dicom

    def counted(path, *arguments, **options):
        decoded.append(path.name)
        return read_dicom(path, *arguments, **options)

    monkeypatch.setattr(hounsfield, "read_dicom", counted)
    ct = read(both)
    assert "5 exact duplicates of slices dropped" in ct.notes
    assert np.array_equal(ct.volume.array, wanted)
    assert sorted(decoded) == ["one.dcm", "one.dcm", "two.dcm"]
