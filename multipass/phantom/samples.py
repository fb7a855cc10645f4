"""The sample scans in inference_pipeline/test_data/.

    python -m multipass.phantom.samples --anatomy DIR

One DICOM series with its DICOM SEG, and one NIfTI file with its label map, of two anatomies of the
test part, which no checkpoint that ships has been trained on.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Options:
    anatomy: Path
    """Folder of real bone surfaces, as for `python -m multipass.phantom`."""
    output: Path = ROOT / "inference_pipeline" / "test_data"
    seed: int = 7


def sample(options: Options, index: int, **overrides) -> Subject:
    given = SIZE | overrides
    return make_subject(options.seed, index, atlas=load_atlas(options.anatomy, "test"), **given)


def main(options: Options) -> None:
    write_subject(options.output / "sample_dicom", sample(options, 0, position="HFS"))
    subject = sample(options, 1, position="HFP")
    label = Volume(subject.label, subject.volume.grid)
    hounsfield = replace(subject.volume, array=subject.volume.array.astype(np.int16))
    for name, volume in (("sample_nifti", hounsfield), ("sample_nifti_seg", label)):
        sitk.WriteImage(to_sitk(volume), str(options.output / f"{name}.nii.gz"), True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"samples: {error}")
