"""Volumes on grids in patient space: windows, label maps, meshes. No DICOM, no torch."""
