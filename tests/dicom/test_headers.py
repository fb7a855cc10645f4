"""DICOM files of unusual structure: read right, or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import write_slices
from pydicom.uid import DeflatedExplicitVRLittleEndian

from multipass.dicom import headers
from multipass.dicom.headers import read_dicom


@pytest.fixture
def path(tmp_path) -> Path:
    """A slice in the deflated transfer syntax."""
    array = np.arange(64, dtype=np.int16).reshape(8, 8, 1)
    write_slices(tmp_path, array, np.zeros((1, 3)))
    (path,) = tmp_path.iterdir()
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00091001, "OB", bytes(1 << 20))
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_deflated_files_are_read(path, padding):
    assert path.stat().st_size < 1 << 16
    path.write_bytes(path.read_bytes() + bytes(padding))
    assert read_dicom(path, pixels=True).pixel_array.shape == (8, 8)


def test_deflated_files_beyond_a_bound_are_refused(path, monkeypatch):
    monkeypatch.setattr(headers, "MAX_INFLATED_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=r"^deflated from more than 0\.0 GiB"):
        read_dicom(path)


def test_a_deflated_file_that_was_cut_off_is_damaged(path):
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="^damaged DICOM header"):
        read_dicom(path)
