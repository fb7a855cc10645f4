"""An enhanced (multi-frame) CT made of single-frame files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage


def write_enhanced(files: list[Path], path: Path) -> None:
    """Writes the slices as one file, its frames in a shuffled order."""
    enhanced = pydicom.dcmread(files[0])
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = enhanced.ImageOrientationPatient
    measures.PixelSpacing = enhanced.PixelSpacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    for keyword in ("ImagePositionPatient", "RescaleSlope", "RescaleIntercept", "PixelSpacing"):
        del enhanced[keyword]
    frames, pixels = [], b""
    for source in np.random.default_rng(0).permutation(files):
        single = pydicom.dcmread(source)
        frame, place, rescale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = single.ImagePositionPatient
        rescale.RescaleSlope, rescale.RescaleIntercept = (
            single.RescaleSlope,
            single.RescaleIntercept,
        )
        frame.PlanePositionSequence = [place]
        frame.PixelValueTransformationSequence = [rescale]
        frames.append(frame)
        pixels += single.PixelData
    enhanced.NumberOfFrames = len(files)
    enhanced.SharedFunctionalGroupsSequence = [shared]
    enhanced.PerFrameFunctionalGroupsSequence, enhanced.PixelData = frames, pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    enhanced.save_as(path)
