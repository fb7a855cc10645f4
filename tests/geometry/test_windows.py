"""Windows over boxes: body, scan windows, pelvis box."""

from __future__ import annotations

import numpy as np
import pytest

from multipass.geometry.volume import Grid, Volume
from multipass.geometry.windows import (
    CLOSE_WINDOW_OVERLAP_MM,
    FINEST_PART_VOXEL_MM,
    GRID_SIZE,
    MAX_CLOSE_WINDOW_MM,
    MAX_PART_MM,
    MAX_SCAN_WINDOW_MM,
    MOST_PARTS,
    PART_OVERLAP_MM,
    SCAN_WINDOW_OVERLAP_MM,
    body_box,
    close_windows,
    joined,
    part_windows,
    pelvis_box,
    scan_windows,
    stacked_grid,
    window_image,
    window_over,
)

BOX = np.array([[-150.0, -100.0, -400.0], [180.0, 120.0, 50.0]])


def test_window_fills_its_box():
    window = window_over(BOX)
    assert window.size == GRID_SIZE
    np.testing.assert_allclose(window.box_mm(), BOX)


@pytest.mark.parametrize("height", [200.0, 599.0, 601.0, 1000.0, 1900.0])
def test_scan_windows_cover_the_box_and_overlap(height):
    box = np.array([[0.0, 0.0, -height], [400.0, 300.0, 0.0]])
    boxes = [w.box_mm() for w in scan_windows(box)]
    assert boxes[0][0, 2] == pytest.approx(-height)
    assert boxes[-1][1, 2] == pytest.approx(0.0)
    for one in boxes:
        assert one[1, 2] - one[0, 2] <= MAX_SCAN_WINDOW_MM + 1e-6
    for lower, upper in zip(boxes, boxes[1:], strict=False):
        assert lower[1, 2] - upper[0, 2] >= SCAN_WINDOW_OVERLAP_MM - 1e-6


@pytest.mark.parametrize("height", [90.0, 240.0, 240.5, 345.0, 400.0, 400.5, 700.0])
def test_close_windows_cover_the_box_in_one_height(height):
    box = np.array([[0.0, 0.0, -height], [400.0, 300.0, 0.0]])
    windows = close_windows(box)
    boxes = [w.box_mm() for w in windows]
    assert len(boxes) == 1 or height > MAX_CLOSE_WINDOW_MM
    assert all(w.spacing_mm == pytest.approx(windows[0].spacing_mm) for w in windows)
    assert boxes[0][1, 2] - boxes[0][0, 2] <= MAX_CLOSE_WINDOW_MM + 1e-6
    np.testing.assert_allclose([boxes[0][0], boxes[-1][1]], box, atol=1e-9)
    for lower, upper in zip(boxes, boxes[1:], strict=False):
        assert lower[1, 2] - upper[0, 2] == pytest.approx(CLOSE_WINDOW_OVERLAP_MM)
    spacing = windows[0].spacing_mm[2]
    np.testing.assert_allclose(stacked_grid(windows).box_mm(), box, atol=spacing / 2)


PART_BOXES_MM = [
    (60.0, 80.0, 30.0), (240.0, 300.0, 140.0), (240.1, 180.0, 140.1), (260.0, 240.0, 255.0),
    (392.0, 236.0, 300.0), (410.0, 520.0, 420.0), (400.0, 250.0, 900.0),
]  # fmt: skip


@pytest.mark.parametrize("extent", PART_BOXES_MM)
@pytest.mark.parametrize("most", [1, 5, MOST_PARTS])
def test_parts_cover_the_box_in_one_size_and_overlap(extent, most):
    box = np.array([-np.asarray(extent) / 3, np.asarray(extent) * 2 / 3])
    boxes = np.array([w.box_mm() for w in part_windows(box, most=most)])
    sizes = boxes[:, 1] - boxes[:, 0]
    assert len(boxes) <= most
    np.testing.assert_allclose(sizes, np.broadcast_to(sizes[0], sizes.shape))
    np.testing.assert_allclose([boxes.min(0)[0], boxes.max(0)[1]], box)
    starts = [np.unique(boxes[:, 0, axis].round(6)) for axis in range(3)]
    assert len(boxes) == np.prod([len(s) for s in starts])  # every row with every column and level
    for start, size in zip(starts, sizes[0], strict=True):
        assert np.all(start[:-1] + size - start[1:] >= PART_OVERLAP_MM - 1e-5)


@pytest.mark.parametrize("extent", PART_BOXES_MM)
def test_parts_are_as_few_as_their_largest_size_allows_and_no_finer_than_needed(extent):
    box = np.array([np.zeros(3), extent])
    windows = part_windows(box)
    fits = np.asarray(extent) <= MAX_PART_MM
    assert (len(windows) == 1) == bool(fits.all())
    for several, voxel, finest in zip(
        ~fits, windows[0].spacing_mm, FINEST_PART_VOXEL_MM, strict=True
    ):
        assert not several or voxel >= finest - 1e-9
    if len(windows) < MOST_PARTS:
        assert np.all(windows[0].box_mm()[1] - windows[0].box_mm()[0] <= np.add(MAX_PART_MM, 1e-6))


def test_finer_parts_are_more_and_smaller():
    box = np.array([np.zeros(3), (392.0, 236.0, 300.0)])
    plain, finer = part_windows(box), part_windows(box, 1.2)
    assert len(finer) > len(plain)
    assert np.all(np.less_equal(finer[0].spacing_mm, plain[0].spacing_mm))


def test_body_box_leaves_out_table_and_cable():
    array = np.full((200, 160, 60), -1000, np.int16)
    array[50:150, 40:110, :] = 40
    array[20:180, 122:124, :] = 200
    array[8:11, 20:22, :] = 300
    grid = Grid(array.shape, (2.0, 2.0, 3.0), (-199.0, -159.0, 0.0))
    low, high = body_box(Volume(array, grid))
    np.testing.assert_allclose(low[:2], (-100, -80), atol=8)
    np.testing.assert_allclose(high[:2], (100, 60), atol=8)
    np.testing.assert_allclose((low[2], high[2]), grid.box_mm()[:, 2])


def test_body_box_holds_both_thighs():
    grid = Grid((120, 80, 40), (3.0, 3.0, 5.0), (-178.5, -118.5, 0.0))
    x, y, _ = np.ogrid[:120, :80, :40]
    array = np.full(grid.size, -1000, np.int16)
    for middle, radius in ((30, 26), (90, 24)):
        array[np.broadcast_to(np.hypot(x - middle, y - 40) < radius, grid.size)] = 40
    low, high = body_box(Volume(array, grid))
    np.testing.assert_allclose((low[0], high[0]), (-166, 162), atol=8)


def test_a_speck_is_no_pelvis():
    window = window_over(BOX)
    speck = foreground(window, [((0, 0, 0), (8, 8, 12))])
    assert speck.any() and pelvis_box(Volume(speck, window), BOX) is None


def test_body_box_of_air_is_the_scan():
    grid = Grid((40, 40, 40), (2.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    air = Volume(np.full(grid.size, -1000, np.int16), grid)
    np.testing.assert_allclose(body_box(air), grid.box_mm())


def foreground(window, boxes) -> np.ndarray:
    places = [
        o + np.arange(n) * s
        for o, n, s in zip(window.origin_mm, window.size, window.spacing_mm, strict=True)
    ]
    result = np.zeros(window.size, np.float32)
    for low, high in boxes:
        inside = [(p > a) & (p < b) for p, a, b in zip(places, low, high, strict=True)]
        result[np.ix_(*inside)] = 1
    return result


def test_pelvis_box_keeps_near_parts_and_drops_far_and_tiny_ones():
    window = window_over(BOX)
    main = ((-60, -40, -200), (60, 40, -100))
    near = ((80, 0, -150), (100, 20, -120))
    far = ((-40, -40, 20), (40, 40, 45))
    tiny = ((-70, 60, -150), (-65, 66, -143))
    volume = Volume(foreground(window, [main, near, far, tiny]), window)
    box = pelvis_box(volume, BOX)
    step = np.max(window.spacing_mm)
    np.testing.assert_allclose(box[0], (-80, -60, -220), atol=step)
    np.testing.assert_allclose(box[1], (120, 60, -80), atol=step)
    assert pelvis_box(Volume(np.zeros(window.size), window), BOX) is None


@pytest.mark.parametrize(("across", "kept"), [(30, True), (8, False)])
def test_pelvis_box_holds_both_thighs(across, kept):
    """Below the crotch femurs are farther apart than parts of a pelvis are."""
    window = window_over(BOX)
    left = ((80, -20, -300), (110, 20, -100))
    right = ((-110, -20, -250), (-110 + across, 20 if kept else -8, -150))
    box = pelvis_box(Volume(foreground(window, [left, right]), window), BOX)
    np.testing.assert_allclose(box[0, 0], -130 if kept else 60, atol=window.spacing_mm[0])
    np.testing.assert_allclose(box[1, 0], 130, atol=window.spacing_mm[0])


def test_pelvis_box_is_clipped_to_the_scan():
    window = window_over(BOX)
    volume = Volume(foreground(window, [((-149, -99, -399), (0, 0, -300))]), window)
    assert np.all(pelvis_box(volume, BOX)[0] >= BOX[0])


def test_joined_windows_hold_both_maps():
    box = np.array([[0.0, 0.0, -1000.0], [400.0, 300.0, 0.0]])
    windows = scan_windows(box)
    target = ((100, 100, -480), (300, 200, -420))
    maps = [foreground(window, [target]) for window in windows]
    volume = joined(windows, maps)
    np.testing.assert_allclose(volume.grid.box_mm(), box, atol=volume.grid.spacing_mm[2])
    found = pelvis_box(volume, box)
    np.testing.assert_allclose(found[:, 2], (-500, -400), atol=volume.grid.spacing_mm[2] * 1.5)


def test_window_image_is_air_outside_and_in_unit_range():
    grid = Grid((50, 50, 30), (2.0, 2.0, 3.0), (0.0, 0.0, 0.0))
    ct = Volume(np.full(grid.size, 400, np.int16), grid)
    image = window_image(ct, window_over(grid.box_mm() + np.array([[-10.0], [10.0]])))
    assert image[0, 0, 0] == 0
    assert image[64, 64, 36] == pytest.approx(0.5)
