"""3D MultiPass U-Net: pelvic bone segmentation in CT, from DICOM to masks."""

__version__ = "0.1.0"
