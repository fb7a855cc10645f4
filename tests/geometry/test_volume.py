"""Laws of grids and resampling: all 48 axis orders, oblique grids, averages, interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from orientation import ORDERS, oriented
from scipy.ndimage import map_coordinates

from multipass.geometry.volume import (
    Grid,
    Volume,
    axis_order,
    from_sitk,
    from_upright,
    resample,
    resample_oblique,
    to_sitk,
    upright,
    upright_grid,
)

# float32 sums of a few hundred weights.
ROUNDING = 1e-5


def random_volume(size=(9, 11, 7), spacing=(0.8, 1.3, 2.5), origin=(-12.0, 33.0, 5.5)) -> Volume:
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    return Volume(values, Grid(size, spacing, origin))


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_any_axis_order_comes_upright_and_goes_back_exactly(order, signs):
    original = random_volume()
    turned = oriented(original, order, signs)
    result = upright(turned)
    assert np.array_equal(result.array, original.array)
    assert result.grid.size == original.grid.size
    np.testing.assert_allclose(result.grid.affine, original.grid.affine, atol=1e-9)
    assert np.array_equal(from_upright(result.array, turned.grid), turned.array)


def test_a_mark_stays_at_its_place_in_the_patient():
    original = random_volume()
    original.array[2, 3, 4] = 100
    place = original.grid.affine @ [2, 3, 4, 1]
    for order, signs in ORDERS:
        turned = oriented(original, order, signs)
        index = np.argwhere(turned.array == 100)[0]
        np.testing.assert_allclose(turned.grid.affine @ [*index, 1], place, atol=1e-9)


def test_oblique_grid_is_recognised_and_resampled_in_place():
    angle = np.radians(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    grid = Grid((60, 50, 40), (1.0, 1.0, 1.5), (-10.0, 20.0, 3.0), tuple(turn.ravel()))
    assert axis_order(grid) is None
    index = np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij"), -1)
    places = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    linear = Volume((places @ [1.0, 2.0, -3.0]).astype(np.float32), grid)
    target = upright_grid(grid)
    result = upright(linear, outside=np.nan)
    assert np.all(target.box_mm()[0] <= grid.box_mm()[0] + 1e-6)
    assert np.all(target.box_mm()[1] >= grid.box_mm()[1] - 1e-6)
    index = np.stack(np.meshgrid(*map(np.arange, target.size), indexing="ij"), -1)
    places = index @ target.affine[:3, :3].T + target.affine[:3, 3]
    at = (places - grid.origin_mm) @ grid.matrix / grid.spacing_mm
    inside = ((at >= 0) & (at <= np.subtract(grid.size, 1))).all(axis=-1)
    wanted = places @ [1.0, 2.0, -3.0]
    np.testing.assert_allclose(result.array[inside], wanted[inside], atol=1e-3)
    assert np.isnan(result.array[((at < -1) | (at > grid.size)).any(axis=-1)]).all()
    with pytest.raises(ValueError, match="oblique"):
        from_upright(result.array, grid)


def test_simpleitk_round_trip():
    turned = oriented(random_volume(), (2, 0, 1), (1, -1, 1))
    back = from_sitk(to_sitk(turned))
    assert np.array_equal(back.array, turned.array)
    np.testing.assert_allclose(back.grid.affine, turned.grid.affine)
    point = to_sitk(turned).TransformIndexToPhysicalPoint((1, 2, 3))
    np.testing.assert_allclose(turned.grid.affine[:3] @ [1, 2, 3, 1], point)


def test_coarser_target_is_the_mean_of_its_cells():
    volume = random_volume(size=(20, 18, 16))
    spacing = tuple(2 * s for s in volume.grid.spacing_mm)
    origin = tuple(np.add(volume.grid.origin_mm, np.divide(volume.grid.spacing_mm, 2)))
    result = resample(volume, Grid((10, 9, 8), spacing, origin), outside=0.0)
    means = volume.array.reshape(10, 2, 9, 2, 8, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(result, means, atol=ROUNDING)


def test_finer_target_is_linear_interpolation():
    volume = random_volume(size=(20, 18, 16))
    target = Grid((30, 25, 20), (0.3, 0.5, 0.7), (-10.0, 35.0, 7.0))
    index = np.stack(np.meshgrid(*map(np.arange, target.size), indexing="ij"))
    index = index * np.reshape(target.spacing_mm, (3, 1, 1, 1))
    places = index + np.reshape(np.subtract(target.origin_mm, volume.grid.origin_mm), (3, 1, 1, 1))
    at = places / np.reshape(volume.grid.spacing_mm, (3, 1, 1, 1))
    wanted = map_coordinates(volume.array, at, order=1, mode="nearest")
    np.testing.assert_allclose(resample(volume, target, outside=0.0), wanted, atol=ROUNDING)


def test_same_grid_changes_nothing_and_outside_gets_its_value():
    volume = random_volume()
    np.testing.assert_allclose(resample(volume, volume.grid, 0.0), volume.array, atol=ROUNDING)
    shifted = volume.grid.cropped((-3, 0, 0), volume.grid.size)
    result = resample(volume, shifted, outside=-1024.0)
    assert np.all(result[:3] == -1024)
    np.testing.assert_allclose(result[3:], volume.array[:-3], atol=ROUNDING)


def test_mask_volume_survives_resampling():
    mask = np.zeros((40, 40, 40), bool)
    mask[10:25, 12:30, 8:31] = True
    grid = Grid(mask.shape, (1.0, 1.2, 2.0), (0.0, 0.0, 0.0))
    crop = Volume(mask[10:25, 12:30, 8:31], grid.cropped((10, 12, 8), (15, 18, 23)))
    target = Grid((17, 19, 23), (2.7, 2.9, 3.9), (-1.0, -2.0, -3.0))
    result = resample(crop, target)
    wanted = mask.sum() * grid.voxel_ml
    assert result.sum() * target.voxel_ml == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(result, resample(Volume(mask, grid), target), atol=ROUNDING)


def test_reads_what_simpleitk_resamples():
    volume = random_volume(size=(30, 30, 30), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    target = Grid((20, 20, 20), (0.9, 0.9, 0.9), (4.2, 5.1, 6.3))
    ours = resample(volume, target, outside=0.0)
    np.testing.assert_allclose(ours, resample_oblique(volume, target, 0.0).array, atol=ROUNDING)
    assert isinstance(to_sitk(volume), sitk.Image)
