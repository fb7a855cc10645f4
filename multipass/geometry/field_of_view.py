"""What a scan has seen of the patient, and which structures go on beyond that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from multipass.geometry.volume import AIR_HU, Grid, Volume, axis_order, ints3


@dataclass(frozen=True)
class FieldOfView:
    """The voxels of a scan as acquired, which an upright grid around them holds with a rim of air.

    Attributes:
        affine: (4, 4) from indices to LPS mm, the third axis nearest to the patient's long one;
            sheared where the gantry was tilted.
        size: voxels along each axis.
        unseen: bool (nx, ny), True where a column along the third axis has no pixel in any slice,
            as outside of a circular field of view.
        rim: voxels at the ends that count as the end: a structure that was resampled may stop
            short of it.
    """

    affine: np.ndarray
    size: tuple[int, int, int]
    unseen: np.ndarray
    rim: float = 0.0

    def cuts(self, mask: np.ndarray, grid: Grid) -> bool:
        """Whether a structure touches an end of the scan or columns outside its field of view, see
        `cut_voxels`."""
        return len(self.cut_voxels(mask, grid)) > 0

    def cut_voxels(self, mask: np.ndarray, grid: Grid) -> np.ndarray:
        """(n, 3) indices of voxels by which a structure touches an end of the scan or columns
        outside its field of view; there are others only between them.

        Args:
            mask: the structure in its bounding box; bool or fractions.
            grid: of the box.
        """
        to_index = np.linalg.inv(self.affine) @ grid.affine
        # What is seen is convex, so the ends of each line of voxels decide.
        present = mask > 0
        x, y = np.nonzero(present.any(axis=2))
        lines = present[x, y]
        ends = lines.argmax(axis=1), lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
        voxels = np.concatenate([np.stack([x, y, z], axis=1) for z in ends])
        at = voxels @ to_index[:3, :3].T + to_index[:3, 3]
        first = 0.5 + self.rim
        outside = ((at < first) | (at > np.subtract(self.size, 1) - first)).any(axis=1)
        i, j = np.clip(np.rint(at[:, :2]).astype(int), 0, np.subtract(self.size[:2], 1)).T
        return voxels[outside | ndimage.binary_dilation(self.unseen)[i, j]]


def field_of_view(volume: Volume) -> FieldOfView:
    """Of a CT on the grid that it was acquired on."""
    rim = 0.0 if axis_order(volume.grid) else 1.0
    return field_of_lattice(volume.array, volume.grid.affine, rim)


def field_of_lattice(array: np.ndarray, affine: np.ndarray, rim: float = 1.0) -> FieldOfView:
    """Of HU on any affine lattice, sheared ones included."""
    steps = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    long = int(np.abs(steps[2]).argmax())
    order = [axis for axis in range(3) if axis != long] + [long]
    unseen = array.max(axis=long) <= AIR_HU
    return FieldOfView(affine[:, [*order, 3]], ints3(np.take(array.shape, order)), unseen, rim)
