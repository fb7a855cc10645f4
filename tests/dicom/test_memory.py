"""Memory that runs out is not a file's fault."""

from __future__ import annotations

import tracemalloc

import pydicom
import pytest

from multipass.dicom import hounsfield
from multipass.dicom.headers import read_dicom
from multipass.dicom.series import find
from multipass.terminal import is_out_of_memory


def fails(*_, **__):
    raise MemoryError


def test_headers_are_not_called_damaged(cohort_dir, monkeypatch):
    folder = cohort_dir / "Patient_01" / "im_1"
    monkeypatch.setattr(pydicom, "dcmread", fails)
    with pytest.raises(MemoryError):
        read_dicom(next(folder.iterdir()))
    with pytest.raises(MemoryError):
        find(folder)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("itk: std::bad_alloc")])
def test_pixels_are_not_called_undecodable(cohort_dir, monkeypatch, error):
    def out_of_memory(*_):
        raise error

    (series,) = find(cohort_dir / "Patient_01" / "im_1").ct
    monkeypatch.setattr(hounsfield, "_stored", out_of_memory)
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        hounsfield.pixels(series.slices)
    assert is_out_of_memory(raised.value)


def test_a_length_beyond_the_file_asks_for_no_memory(cohort_dir, tmp_path):
    data = next((cohort_dir / "Patient_01" / "im_1").iterdir()).read_bytes()
    modality = data.index(b"\x08\x00\x60\x00CS")
    damage = b"\x08\x00\x5f\x00OB\0\0\xf0\xff\xff\xff"
    (tmp_path / "x.dcm").write_bytes(data[:modality] + damage + data[modality:])
    tracemalloc.start()
    assert "Modality" not in read_dicom(tmp_path / "x.dcm")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 28
