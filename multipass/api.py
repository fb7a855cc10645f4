"""The Python interface: one verb, `segment`, and one noun, `Result`.

    model = multipass.load_model()
    result = multipass.segment("scan.nii.gz", model)
    print(result.volumes_ml, result.flags)
    result.save("results/scan")

run_inference.py looks at each of its scans by `look`, as `segment` does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from multipass.data.scan import Scan
from multipass.data.source import Source, opened
from multipass.files import ROOT, code_sha256
from multipass.geometry.field_of_view import field_of_view
from multipass.geometry.labelmaps import LEAST_PART_MM3
from multipass.geometry.volume import Volume, to_sitk
from multipass.geometry.windows import PART_VOXEL_MM
from multipass.model import checkpoint, passes
from multipass.model.checkpoint import Model
from multipass.model.maps import PassResult, bone_labels
from multipass.model.mirrored import with_mirroring
from multipass.model.way_back import own_grid_labels
from multipass.results import findings
from multipass.results.case_folder import renewed
from multipass.results.places import Looked, places_of
from multipass.results.products import (
    FORMATS,
    Segmented,
    Wanted,
    probability_maps,
    products_of,
    write_case,
)
from multipass.results.timing import Stages
from multipass.terminal import printable

# In an installed package, and in the repository.
SHIPPED = (
    ROOT / "multipass" / "model" / "shipped" / "best_model.pth",
    ROOT / "inference_pipeline" / "best_model.pth",
)


@dataclass(frozen=True)
class Settings:
    """How a network looks at a scan; see `segment`.

    Raises:
        ValueError: a value that is not possible.
    """

    passes: int | None = None
    part_voxel_mm: float = PART_VOXEL_MM
    least_part_mm3: float = LEAST_PART_MM3
    probabilities: bool = False
    tta: bool = False

    def __post_init__(self) -> None:
        if self.passes is not None and self.passes < 1:
            raise ValueError(f"passes {self.passes}: at least one pass is needed")
        if not 1.0 <= self.part_voxel_mm <= 10.0:
            raise ValueError(f"part_voxel_mm {self.part_voxel_mm}: 1 to 10 mm are possible")
        if not 0 <= self.least_part_mm3 < math.inf:
            raise ValueError(f"least_part_mm3 {self.least_part_mm3}: 0 or more is needed")

    def identity(self, model: Model, input_sha256: str | None) -> dict[str, Any]:
        """What a result depends on."""
        return {
            "input_sha256": input_sha256,
            "model_sha256": model.sha256,
            "passes": self.passes or len(model.windows),
            "part_voxel_mm": self.part_voxel_mm,
            "tta": self.tta,
            "probabilities": self.probabilities,
            "least_part_mm3": self.least_part_mm3,
            "code_sha256": code_sha256(),
        }


@dataclass(frozen=True)
class Result:
    """A segmented scan.

    Attributes:
        structures: a row per structure, in the order of their values in the mask: 'name', 'value',
            'code', 'status' ('complete', 'cut' by the field of view, 'missing'), 'volume_ml' (None
            unless complete), 'visible_ml', 'mean_hu', 'centre_mm' (LPS), 'confidence' and more, see
            `multipass.results.findings.describe`.
        facts: what report.json says of scan, network and settings.
        segmented: the arrays that its files are made of.
        stages: seconds and memory.
    """

    structures: list[dict[str, Any]]
    facts: Mapping[str, Any]
    segmented: Segmented = field(repr=False)
    stages: Stages = field(repr=False)

    @property
    def array(self) -> np.ndarray:
        """uint8 (X, Y, Z) on the scan's own grid: 0 is background, else a structure's 'value'."""
        return self.segmented.mask

    @property
    def mask(self) -> sitk.Image:
        """`array` as an image with the scan's own spacing, origin and direction.

        A DICOM series with a tilted gantry and a sheared image are resampled; a flag says so.
        """
        return to_sitk(Volume(self.segmented.mask, self.segmented.grid))

    @property
    def volumes_ml(self) -> dict[str, float]:
        """mL of each structure in the mask, by name: of one that is cut, its visible part."""
        return {row["name"]: row["visible_ml"] or 0.0 for row in self.structures}

    @property
    def flags(self) -> list[str]:
        """Sentences on what may be wrong, the gravest first; [] where nothing is known to be."""
        return list(self.segmented.flags)

    @property
    def probabilities(self) -> sitk.Image | None:
        """float32 vectors in 0 to 1, background first, on the upright grid of the last pass's
        windows; None if they were not asked for."""
        result = self.segmented.result
        return None if result is None else probability_maps(result)

    def save(
        self, folder: str | os.PathLike[str], formats: Sequence[str] = FORMATS, meshes: str = ""
    ) -> dict[str, Any]:
        """Writes the folder that run_inference.py writes for a case, but for its page.

        That is mask.nii.gz, seg.dcm for a DICOM series, overlay.png, report.json, and
        probabilities.nii.gz if they were asked for. A result that lies there is replaced; what
        this program did not write stays.

        Args:
            formats: of 'nifti', and of 'seg', 'labelmap' and 'rtstruct', for a DICOM series.
            meshes: 'stl' or 'ply' for a surface of each structure, in mm, LPS.

        Returns:
            report.json's content.

        Raises:
            ValueError: no such format, or none for this scan; the folder holds something else, or
                a file could not be written; the others stand then.
        """
        folder = Path(folder)
        wanted = Wanted(formats, True, meshes)
        if impossible := wanted.not_for(self.segmented.slices):
            raise ValueError("; ".join(impossible))
        products = products_of(self.segmented, wanted)
        with renewed(folder, list(products)) as (temporary, kept):
            facts = {**self.facts, "flags": [*self.flags, *kept], "problems": [], "scores": []}
            facts |= {"case": folder.resolve().name, "structures": self.structures}
            report = write_case(temporary, products, facts, Stages(taken={**self.stages.taken}))
        if report["problems"]:
            raise ValueError(f"{folder}: {'; '.join(report['problems'])}")
        return report


def load_model(path: str | os.PathLike[str] | None = None, device: str = "auto") -> Model:
    """A trained network, to be passed to `segment` as often as one likes.

    Args:
        path: a checkpoint of training.py; the network that ships if None.
        device: 'cpu', 'cuda' or 'cuda:N'; 'auto' takes CUDA where there is one.

    Raises:
        ValueError: there is no such checkpoint or device, or the file is something else.
    """
    if path is None:
        path = next((shipped for shipped in SHIPPED if shipped.is_file()), SHIPPED[0])
    return checkpoint.load(Path(path), passes.chosen_device(device))


def segment(
    scan: Source,
    model: Model | str | os.PathLike[str] | None = None,
    device: str = "auto",
    passes: int | None = None,
    *,
    probabilities: bool = False,
    part_voxel_mm: float = PART_VOXEL_MM,
    least_part_mm3: float = LEAST_PART_MM3,
    tta: bool = False,
) -> Result:
    """The pelvic bones in a CT scan.

    Args:
        scan: where one scan lies: the folder of a DICOM series, a NIfTI, NRRD or MetaImage file, a
            patient file of processing.py, or a zip of one of them; or a SimpleITK image; or
            (array, affine) as nibabel gives them, array (X, Y, Z) and affine (4, 4) from voxel
            indices to RAS mm. Values are Hounsfield units.
        model: of `load_model`, or a checkpoint's path; the network that ships if None.
        device: of a model that is still to be read, see `load_model`.
        passes: how often the network looks; as often as in its training if None.
        probabilities: keep the last pass's, see `Result.probabilities`.
        part_voxel_mm: voxels of a third pass at most, 1 to 10; 1.2 looks closer than 1.9 and takes
            up to four times as long.
        least_part_mm3: parts of a bone smaller than this are removed; its largest part stays.
        tta: also look at the mirrored scan; passes take twice as long.

    Raises:
        ValueError: there is no scan or more than one, it cannot be read or segmented, or an
            argument is not possible.
    """
    settings = Settings(passes, part_voxel_mm, least_part_mm3, probabilities, tta)
    if not isinstance(model, Model):
        model = load_model(model, device)
    if tta:
        model = with_mirroring(model)
    stages = Stages()
    with stages.stage("read"):
        source = opened(scan)
    result, _ = look(source.name, source.scan, model, settings, stages)
    identity = settings.identity(model, source.sha256)
    return replace(result, facts={**result.facts, **source.origin, "identity": identity})


def look(
    name: str, scan: Scan, model: Model, settings: Settings, stages: Stages
) -> tuple[Result, list[PassResult]]:
    """A scan's result, and what its passes found: 2.4 MB a structure, pass and window, which are
    better let go when they are no longer needed."""
    with stages.stage("passes"):
        found = passes.segment(
            model, scan.upright, settings.passes, part_voxel_mm=settings.part_voxel_mm
        )
    with stages.stage("way back"):
        least_mm3 = settings.least_part_mm3
        labels = bone_labels(found[-1], scan.upright.grid, least_mm3)
        mask = own_grid_labels(found[-1], scan.grid, labels, least_mm3)
    with stages.stage("findings"):
        view = scan.view or field_of_view(scan.upright)
        rows = findings.describe(labels, scan.upright, found, model.structures, view)
        flags = [printable(note) for note in scan.notes]
        if scan.is_resampled:
            flags.append("mask and SEG lie on the grid of ct.nii.gz beside them")
        flags += findings.flags_of(rows, model.structures, found)
        looked = Looked(Volume(labels, scan.upright.grid), view, found)
        places = places_of(rows, model.structures, looked)
    segmented = Segmented(
        name, scan.upright, labels, scan.grid, mask, scan.slices, model.structures,
        found[-1] if settings.probabilities else None, None, flags, scan.is_resampled,
    )  # fmt: skip
    facts = {"model": model.info, "grid": vars(scan.grid), "is_oblique": scan.is_oblique}
    facts["flag_places"] = places
    return Result(rows, facts, segmented, stages), found
