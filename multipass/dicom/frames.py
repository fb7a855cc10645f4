"""References to the frames of a multi-frame CT, which dcmqi cannot make: it is given a single-frame
stand-in for each frame, and its references to these are then led to the frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from multipass.dicom.headers import read_dicom
from multipass.dicom.slices import Slice

_DROPPED = (
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "NumberOfFrames"),
    *("DimensionOrganizationSequence", "DimensionIndexSequence"),
)


def is_multiframe(slices: Sequence[Slice]) -> bool:
    return len({piece.path for piece in slices}) < len(slices)


def write_stand_ins(slices: Sequence[Slice], folder: Path) -> dict[str, tuple[str, str, int]]:
    """Writes a CT image with next to no pixels for each frame.

    Returns:
        From a stand-in's instance UID to its frame's SOP class UID, instance UID and number.
    """
    frames = {}
    headers: dict[Path, Dataset] = {}
    for number, piece in enumerate(slices):
        if piece.path not in headers:
            headers[piece.path] = read_dicom(piece.path)
            for keyword in _DROPPED:
                headers[piece.path].pop(keyword, None)
            owner = str(headers[piece.path].SOPClassUID)
        header = headers[piece.path]
        uid = generate_uid(entropy_srcs=[piece.sop_uid, str(piece.frame)])
        frames[str(uid)] = (owner, piece.sop_uid, piece.frame + 1)
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = uid
        header.ImagePositionPatient = [f"{v:.6f}" for v in piece.position_mm]
        header.ImageOrientationPatient = [f"{v:.6f}" for v in piece.orientation]
        header.PixelSpacing = [f"{piece.row_step_mm:.6f}", f"{piece.column_step_mm:.6f}"]
        header.InstanceNumber = number + 1
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.add_new("PixelData", "OW", b"\0\0")  # dcmqi asks whether it is there, no more
        header.save_as(folder / f"{number:05d}.dcm")
    return frames


def refer_to_frames(dataset: Dataset, frames: dict[str, tuple[str, str, int]]) -> None:
    """Leads the references of a SEG from stand-ins to the frames that they stand for."""
    for series in dataset.get("ReferencedSeriesSequence") or []:
        series.ReferencedInstanceSequence = _instances(series.ReferencedInstanceSequence, frames)
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in frame.get("DerivationImageSequence") or []:
            for image in derivation.get("SourceImageSequence") or []:
                owner, uid, number = frames[str(image.ReferencedSOPInstanceUID)]
                image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = owner, uid
                image.ReferencedFrameNumber = number


def _instances(items, frames: dict[str, tuple[str, str, int]]) -> list[Dataset]:
    """One reference for each multi-frame image."""
    kept: dict[str, Dataset] = {}
    for item in items:
        owner, uid, _ = frames[str(item.ReferencedSOPInstanceUID)]
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = owner, uid
        kept.setdefault(uid, item)
    return list(kept.values())
