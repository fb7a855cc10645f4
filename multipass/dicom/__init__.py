"""DICOM in and out: series, CT in Hounsfield units, segmentations. No torch, no network."""
