"""What the segments of a SEG stand for: labels in any character set, sides, regions, site rules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import POSITIONS, bones, write_seg, write_slices
from pydicom.dataset import Dataset

from multipass.dicom.seg_header import SegHeader
from multipass.dicom.seg_reader import read_reference
from multipass.geometry.volume import Grid
from multipass.site_rules import read_rules
from multipass.structures import PELVIS

SIZE = (40, 24, 8)
GRID = Grid(SIZE, (1.5, 2.0, 3.0), (0.0, 0.0, 0.0))
NAMES = [structure.name for structure in PELVIS]
SWEDISH = ["Höftben vänster", "Höftben höger", "Korsben é", "Lårben vänster", "Lårben höger"]


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A SEG of five bones, and its label map."""
    folder = tmp_path_factory.mktemp("identity")
    hounsfield, label = bones(SIZE)
    places = np.arange(SIZE[2])[:, None] * np.array([0, 0, 3.0])
    slices = write_slices(folder / "ct", hounsfield, places, POSITIONS["HFS"])
    write_seg(folder / "seg.dcm", label, slices)
    return folder / "seg.dcm", label


def kind_of(segment: Dataset) -> Dataset:
    return segment.SegmentedPropertyTypeCodeSequence[0]


def recoded(segment: Dataset, scheme: str, value: str, meaning: str) -> None:
    kind = kind_of(segment)
    kind.CodingSchemeDesignator, kind.CodeValue, kind.CodeMeaning = scheme, value, meaning
    kind.pop("SegmentedPropertyTypeModifierCodeSequence", None)


def read(path: Path, dataset: Dataset, rules: list | None = None):
    dataset.save_as(path)
    if rules is not None:
        path.with_suffix(".json").write_text(json.dumps(rules), encoding="utf-8")
    naming = read_rules(None if rules is None else path.with_suffix(".json"))
    return read_reference([SegHeader(path)], GRID, naming)


def test_labels_are_read_in_the_files_character_set(tmp_path, example):
    path, label = example
    dataset = pydicom.dcmread(path)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    for segment, name in zip(dataset.SegmentSequence, SWEDISH, strict=True):
        segment.SegmentLabel = name
        recoded(segment, "99SITE", "1", "Ben")
    rules = [{"label": a, "structure": b} for a, b in zip(SWEDISH, NAMES, strict=True)]
    # An accent may be written as a letter of its own.
    rules[2]["label"] = "Korsben e\u0301"
    assert np.array_equal(read(tmp_path / "seg.dcm", dataset, rules).labels(), label)


def test_a_bone_is_known_by_its_region(tmp_path, example):
    path, label = example
    dataset = pydicom.dcmread(path)
    for segment in dataset.SegmentSequence:
        region = Dataset()
        region.update(kind_of(segment))
        if "SegmentedPropertyTypeModifierCodeSequence" in region:
            region.AnatomicRegionModifierSequence = region.SegmentedPropertyTypeModifierCodeSequence
            del region.SegmentedPropertyTypeModifierCodeSequence
        segment.AnatomicRegionSequence = [region]
        segment.SegmentLabel = "Bone"
        recoded(segment, "SCT", "272673000", "Bone")
    assert np.array_equal(read(tmp_path / "seg.dcm", dataset).labels(), label)
    for segment in dataset.SegmentSequence:
        recoded(segment, "SCT", "108369006", "Neoplasm")
    with pytest.raises(ValueError, match="in region Femur.*have the same code"):
        read(tmp_path / "seg.dcm", dataset)


def test_left_and_right_are_not_merged_by_a_wrong_modifier(tmp_path, example):
    path, label = example
    dataset = pydicom.dcmread(path)
    for segment in dataset.SegmentSequence:
        for modifier in kind_of(segment).get("SegmentedPropertyTypeModifierCodeSequence") or []:
            modifier.CodeValue, modifier.CodeMeaning = "24028007", "Right"
    with pytest.raises(ValueError, match="'left hip bone' is coded as Hip, Right"):
        read(tmp_path / "seg.dcm", dataset)
    rules = [{"label": name, "structure": name} for name in NAMES]
    assert np.array_equal(read(tmp_path / "seg.dcm", dataset, rules).labels(), label)


def test_rules_that_fit_nothing_change_nothing(tmp_path, example):
    path, _ = example
    dataset = pydicom.dcmread(path)
    for segment in dataset.SegmentSequence:
        recoded(segment, "99SITE", "1", "Bone")
    rules = [{"label": "sacrun", "structure": "sacrum"}]
    with pytest.raises(ValueError, match="have the same code"):
        read(tmp_path / "seg.dcm", dataset, rules)


def test_a_pair_is_split_between_its_bones_and_a_single_bone_is_not(tmp_path, example):
    path, label = example
    folder = path.parent / "ct"
    slices = [pydicom.dcmread(p) for p in sorted(folder.iterdir())]
    rules = [{"label": "left hip bone", "split": ["left hip bone", "right hip bone"]}]
    pair = np.where(np.isin(label, (1, 2)), 1, label).astype(np.uint8)
    dataset = write_seg(tmp_path / "pair.dcm", pair, slices)
    assert np.array_equal(read(tmp_path / "pair.dcm", dataset, rules).labels(), label)
    dataset = pydicom.dcmread(path)
    with pytest.raises(ValueError, match="'split' would cut one in two"):
        read(tmp_path / "single.dcm", dataset, rules)
