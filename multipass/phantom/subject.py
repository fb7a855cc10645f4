"""One synthetic patient: recipe, scene and scan put together."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from multipass.geometry.volume import AIR_HU, Grid, Volume, floats3
from multipass.phantom.anatomy.atlas import Atlas
from multipass.phantom.anatomy.individual import PARAMETRIC, draw_individual
from multipass.phantom.anatomy.pose import Pose
from multipass.phantom.anatomy.scene import OTHER_BONE_VALUE, Skeleton
from multipass.phantom.recipe import Recipe, draw_recipe, patient_size
from multipass.phantom.scanner.acquisition import outside_circle, render, scan_grid
from multipass.phantom.scanner.tissue import paint_body
from multipass.phantom.views import draw_view


@dataclass(frozen=True)
class Subject:
    """A synthetic scan and its reference.

    Attributes:
        volume: HU, int16 (X, Y, Z), on an upright LPS grid.
        label: uint8 (X, Y, Z), 1 to 5 in the order of `structures.PELVIS`, 0 elsewhere. The metal
            of an implant and the coccyx belong to no structure, nor does what lies outside of the
            circular field of view of a scan with padding.
        other_bone: bool (X, Y, Z), all bone that is none of the five, without implants.
        position: DICOM PatientPosition, HFS, HFP, FFS or FFP.
        recipe: all that was drawn; the writer takes the file format from it.
    """

    volume: Volume
    label: np.ndarray
    other_bone: np.ndarray
    position: str
    recipe: Recipe


def make_subject(
    seed: int,
    index: int,
    *,
    matrix: int = 512,
    size: str | None = None,
    recipe: Recipe | None = None,
    atlas: Atlas | None = None,
    **overrides,
) -> Subject:
    """Make patient `index` of the cohort `seed`.

    Args:
        matrix: pixels a side of a slice.
        size: 'pelvis', 'abdomen', 'body', 'ctpel' (512 pixels a side), 'views' (matrix is the
            largest), 'small' (for tests, about a second with matrix=64) or None.
        recipe: use this one and ignore seed, index, matrix and size.
        atlas: bones from real surfaces rather than parametric ones.
        overrides: fields of `Recipe` to replace, such as position="HFP", slice_step_mm=1.0 or the
            view="one hip" of size 'views'.
    """
    drawn = recipe or draw_recipe(seed, index, matrix, size)
    individual = PARAMETRIC
    if atlas:
        individual, drawn = draw_individual(atlas, drawn, size)
    if size == "views" and not recipe:
        drawn = draw_view(drawn, individual, overrides.get("view"))
    drawn = replace(drawn, **overrides)
    pose = Pose(drawn, individual)
    skeleton = Skeleton(pose)
    bones = list(skeleton.bones.values())
    body, painted = paint_body(pose, bones)
    grid = scan_grid(drawn)
    hu, label = render(drawn, bones + painted, body, grid)
    if drawn.padding is not None:
        hidden = outside_circle(*label.shape[:2])
        hu[hidden], label[hidden] = AIR_HU, 0
    other = label == OTHER_BONE_VALUE
    label[other] = 0
    origin = floats3(np.add(grid.origin_mm, drawn.table_offset_mm).round(3))
    box, grid = _cropped(drawn, replace(grid, origin_mm=origin))
    return Subject(Volume(hu[box], grid), label[box], other[box], drawn.position, drawn)


def _cropped(recipe: Recipe, grid: Grid) -> tuple[tuple[slice, ...], Grid]:
    """The part of a scan that its recipe keeps, and that part's grid."""
    if not recipe.crop:
        return (slice(None),) * 3, grid
    left, right, front, back = (int(share * recipe.matrix) for share in recipe.crop)
    start = (right, front, 0)
    size = (grid.size[0] - left - right, grid.size[1] - front - back, grid.size[2])
    box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
    return box, grid.cropped(start, size)


def draw_labelled(
    seed: int,
    index: int,
    *,
    matrix: int = 512,
    size: str | None = None,
    atlas: Atlas | None = None,
    **overrides,
) -> tuple[Volume, np.ndarray]:
    """Draw patient `index` of the cohort `seed` as arrays, for training without files.

    The same patient as `make_subject` and the cohort's command make. Results depend on the
    arguments alone, in any process; an `Atlas` can be handed to worker processes.

    Args:
        size: as for `make_subject`, or 'mixed' or 'any' as for the cohort's command.

    Returns:
        HU, int16 (X, Y, Z) on an upright LPS grid, and uint8 labels: 1 to 5 in the order of
        `structures.PELVIS`, 6 all other bone.
    """
    size = patient_size(seed, index, size)
    subject = make_subject(seed, index, matrix=matrix, size=size, atlas=atlas, **overrides)
    subject.label[subject.other_bone] = OTHER_BONE_VALUE
    return subject.volume, subject.label
