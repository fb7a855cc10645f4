"""The sample scans in inference_pipeline/test_data/.

    python -m multipass.phantom.samples --anatomy DIR

One DICOM series with its DICOM SEG, and NIfTI files of a pelvis and a hip with their label maps and
of a chest, all of anatomies of the test part, which no checkpoint that ships has been trained on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import tyro

from multipass.geometry.volume import Volume, to_sitk
from multipass.phantom.anatomy.atlas import load_atlas
from multipass.phantom.subject import Subject, make_subject
from multipass.phantom.writer import write_subject

ROOT = Path(__file__).resolve().parents[2]
# Coarse enough for a few megabytes, and like what a ward's archive keeps.
SIZE: dict[str, Any] = {
    "matrix": 224,
    "slice_step_mm": 4.0,
    "slice_thickness_mm": 4.0,
    "implant": "",
}
SIZE |= {"noise_hu": 15.0, "streak_noise_hu": 0.0, "blur_mm": 0.5, "sharpness": 0.0}
SIZE |= {"bottom_mm": -160.0, "top_mm": 120.0, "pixel_mm": 1.8, "centre_mm": (0.0, 0.0)}
SIZE |= {"roll_deg": 0.0}

# Scans of a part, in which the other side or all of the pelvis is missing.
PART: dict[str, Any] = {"size": "views", "implant": "", "noise_hu": 10.0, "streak_noise_hu": 0.0}
PART |= {"crop": (), "padding": None, "position": "HFS"}
HIP = PART | {"view": "one hip", "matrix": 160, "slice_step_mm": 2.5, "slice_thickness_mm": 2.5}
CHEST = PART | {"view": "chest", "matrix": 128, "slice_step_mm": 5.0, "slice_thickness_mm": 5.0}


@dataclass(frozen=True)
class Options:
    anatomy: Path
    """Folder of real bone surfaces, as for `python -m multipass.phantom`."""
    output: Path = ROOT / "inference_pipeline" / "test_data"
    seed: int = 7


def sample(options: Options, index: int, **given) -> Subject:
    return make_subject(options.seed, index, atlas=load_atlas(options.anatomy, "test"), **given)


def write_nifti(path: Path, subject: Subject, with_label: bool = True) -> None:
    """PATH.nii.gz and PATH_seg.nii.gz."""
    images = {"": subject.volume.array.astype(np.int16)}
    images |= {"_seg": subject.label} if with_label else {}
    for suffix, array in images.items():
        file = path.with_name(f"{path.name}{suffix}.nii.gz")
        sitk.WriteImage(to_sitk(Volume(array, subject.volume.grid)), str(file), True)


def main(options: Options) -> None:
    write_subject(options.output / "sample_dicom", sample(options, 0, **SIZE, position="HFS"))
    write_nifti(options.output / "sample_nifti", sample(options, 1, **SIZE, position="HFP"))
    write_nifti(options.output / "sample_hip", sample(options, 2, **HIP))
    write_nifti(options.output / "sample_chest", sample(options, 3, **CHEST), with_label=False)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"samples: {error}")
