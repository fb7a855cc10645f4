"""Pictures: the right planes, sides and proportions, and files that are there."""

from __future__ import annotations

import numpy as np
from matplotlib.image import imread

from multipass.geometry.volume import Grid, Volume
from multipass.results.pictures import SheetEntry, cohort_sheet, overlay, sheet_entry
from multipass.results.planes import planes_through
from multipass.structures import PELVIS

SPACING_MM = (1.0, 1.5, 4.0)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """CT with one bright voxel at the patient's left, back and head of each structure's box."""
    image = np.full((60, 50, 30), -1000, np.int16)
    image[5:55, 5:45] = 40
    label = np.zeros(image.shape, np.uint8)
    label[35:45, 20:30, 10:20] = 1
    label[15:25, 20:30, 10:20] = 2
    label[27:33, 30:36, 14:22] = 3
    image[label > 0] = 700
    return image, label


def test_planes_show_every_structure_and_keep_sides():
    image, label = scene()
    axial, coronal, sagittal = planes_through(image, label, SPACING_MM)
    assert set(np.unique(axial.label)) == {0, 1, 2, 3}
    assert {1, 2} <= set(np.unique(coronal.label))
    left = np.argwhere(axial.label == 1)[:, 1].mean()
    assert left > np.argwhere(axial.label == 2)[:, 1].mean()
    assert np.argwhere(axial.label == 3)[:, 0].mean() > np.argwhere(axial.label == 1)[:, 0].mean()
    assert np.argwhere(sagittal.label > 0)[:, 0].size
    assert (axial.letters, coronal.letters, sagittal.letters) == ("RLAP", "RLHF", "APHF")


def test_head_is_up():
    image = np.zeros((10, 10, 10))
    image[:, :, -1] = 1
    _, coronal, sagittal = planes_through(image, np.zeros(image.shape, np.uint8), (1, 1, 1))
    assert coronal.image[0].all() and not coronal.image[-1].any()
    assert sagittal.image[0].all()


def test_proportions_are_those_in_mm():
    image, label = scene()
    for plane in planes_through(image, np.zeros_like(label), SPACING_MM):
        rows, columns = plane.image.shape
        across, down = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[plane.view]
        assert plane.size_mm == (columns * SPACING_MM[across], rows * SPACING_MM[down])
        assert (columns, rows) == (image.shape[across], image.shape[down])


def test_overlay_is_written_for_any_mask(tmp_path):
    image, label = scene()
    volume = Volume(image, Grid(image.shape, SPACING_MM, (0.0, 0.0, 0.0)))
    overlay(
        tmp_path / "a.png",
        volume,
        label,
        PELVIS,
        "case a",
        ["femurs missing", "IM$_{1$.dcm"],
        label,
    )
    overlay(tmp_path / "b.png", volume, np.zeros_like(label), PELVIS, "case b")
    for name in ("a.png", "b.png"):
        picture = imread(tmp_path / name)
        assert picture.shape[1] == 1400 and picture[..., :3].std() > 0.05


def test_sheets_have_pages_and_name_the_failed(tmp_path):
    image, label = scene()
    patient = {
        "patient_id": "Patient_01",
        "image": ((image + 1000) / 2000).astype(np.float16),
        "label": label,
        "window": {"origin_mm": (0, 0, 0), "spacing_mm": SPACING_MM},
        "structures": [s.to_dict() for s in PELVIS],
    }
    entries = [sheet_entry(patient, "512 x 512 x 300")] * 9 + [
        SheetEntry("Patient_11", "no $_{SEG$")
    ]
    pages = cohort_sheet(tmp_path / "processing_report.png", iter(entries))
    assert [page.name for page in pages] == ["processing_report.png", "processing_report_2.png"]
    assert all(imread(page).std() > 0.05 for page in pages)
    assert cohort_sheet(tmp_path / "none.png", []) == []
