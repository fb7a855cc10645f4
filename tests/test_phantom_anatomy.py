"""Phantoms around real bone surfaces: the laws that hold for any folder laid out as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from multipass.phantom import make_subject
from multipass.phantom.atlas import TEST_FEMURS, TEST_PELVES, load_atlas

FOLDER = Path(__file__).parents[2] / "shared" / "anatomy"
QUICK = {"matrix": 64, "size": "small"}
needs_folder = pytest.mark.skipif(not FOLDER.is_dir(), reason="no ../shared/anatomy")


def test_a_missing_folder_gets_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="holds no subject"):
        load_atlas(tmp_path)


@needs_folder
def test_no_test_subject_in_the_training_part():
    pytest.importorskip("igl")
    train, test = load_atlas(FOLDER, "train"), load_atlas(FOLDER, "test")
    assert not set(train.ids) & set(TEST_PELVES) and set(test.ids) == set(TEST_PELVES)
    assert not {f.name.split("_")[0] for f in train.femurs} & set(TEST_FEMURS)
    np.testing.assert_array_equal(train.mean, test.mean)


@needs_folder
def test_left_lies_left_and_the_same_seed_gives_the_same_scan():
    pytest.importorskip("igl")
    atlas = load_atlas(FOLDER, "train")
    fixed = {**QUICK, "bottom_mm": -160.0, "top_mm": 110.0, "pixel_mm": 7.0, "slice_step_mm": 6.0}
    subject = make_subject(3, 1, atlas=atlas, roll_deg=0.0, **fixed)
    again = make_subject(3, 1, atlas=atlas, roll_deg=0.0, **fixed)
    np.testing.assert_array_equal(subject.volume.array, again.volume.array)
    np.testing.assert_array_equal(subject.label, again.label)
    x = [np.argwhere(subject.label == v)[:, 0].mean() for v in range(1, 6)]
    assert x[4] < x[1] < x[2] < x[0] < x[3]
