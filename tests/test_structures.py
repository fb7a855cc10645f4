"""Identity of structures: codes, sides, partners."""

from __future__ import annotations

import json

import pytest
from pydicom.sr.codedict import codes

from multipass.site_rules import read_rules
from multipass.structures import (
    CATEGORY,
    OTHER_BONE,
    PELVIS,
    SIDES,
    Structure,
    by_codes,
    identify,
    mirror_partners,
    named_as,
    ordered,
    to_attributes,
)

HIP = ("SCT", "29836001", "Hip")


def test_a_label_that_contradicts_its_code_is_refused():
    with pytest.raises(ValueError, match=r"'left hip' is coded as Hip, Right: left or right"):
        identify("SCT", "29836001", "Hip", ["24028007", "Right"], "left hip")


@pytest.mark.parametrize(
    ("modifiers", "meaning", "label", "side"),
    [
        (["7771000", "Left"], "Hip", "whatever", "left"),
        (["24028007", "Right"], "Hip", "höftben", "right"),
        ([], "Right hip", "", "right"),
        ([], "Hip", "Hip L", "left"),
        ([], "Hip", "hip_r", "right"),
        ([], "Hip", "höger höftben", "right"),
        ([], "Hip", "vänster höftben", "left"),
    ],
)
def test_side_comes_from_modifier_then_code_then_label(modifiers, meaning, label, side):
    structure = identify("SCT", "29836001", meaning, modifiers, label)
    assert structure == PELVIS[0 if side == "left" else 1]


def test_codes_are_those_of_the_standard():
    """PS3.16, as pydicom holds it; the category is what dcmqi and TotalSegmentator write."""
    assert {"left": codes.cid244.Left, "right": codes.cid244.Right} == SIDES
    kinds = [codes.SCT.Hip, codes.SCT.Hip, codes.SCT.Sacrum, codes.SCT.Femur, codes.SCT.Femur]
    assert [(s.scheme, s.value) for s in PELVIS] == [(k.scheme_designator, k.value) for k in kinds]
    assert (CATEGORY.scheme_designator, CATEGORY.value) == ("SCT", "123037004")
    for structure in PELVIS:
        written = to_attributes(structure, 1)
        category = written["SegmentedPropertyCategoryCodeSequence"]
        assert category["CodeValue"] == CATEGORY.value
        side = written.get("SegmentedPropertyTypeModifierCodeSequence", {}).get("CodeValue")
        assert side == (SIDES[structure.side].value if structure.side else None)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_side_s_code_needs_no_words(side):
    value = {"left": "7771000", "right": "24028007"}[side]
    assert identify(*HIP, [value, ""], "").side == side


def test_a_hip_without_side_is_refused():
    with pytest.raises(ValueError, match="left or right"):
        identify(*HIP, [], "hip bone")
    with pytest.raises(ValueError, match="left or right"):
        identify(*HIP, [], "left and right hip")


def test_retired_codes_are_known():
    assert identify("SRT", "T-12710", "Femur", ["Left"], "") == PELVIS[3]


def test_a_further_structure_keeps_its_code():
    lumbar = identify("SCT", "49668003", "L5 vertebra", [], "L5")
    assert lumbar.key == ("SCT", "49668003", "")
    assert lumbar.name == "l5 vertebra"
    muscle = identify("SCT", "78333006", "Gluteus medius muscle", ["7771000"], "gm")
    assert muscle.name == "left gluteus medius muscle"
    assert ordered([muscle, *reversed(PELVIS), lumbar]) == [*PELVIS, lumbar, muscle]


def test_no_two_structures_have_one_name():
    first = Structure("coccyx", "SCT", "64688005", "Coccyx", "", (1, 2, 3))
    second = Structure("coccyx", "SRT", "T-11BF7", "Coccyx", "", (1, 2, 3))
    assert [s.name for s in ordered([second, first])] == ["coccyx", "coccyx (SRT T-11BF7)"]


def test_partners_are_each_others():
    partners = mirror_partners(PELVIS)
    assert partners == [1, 0, 2, 4, 3]
    assert mirror_partners(PELVIS[1:]) == [0, 1, 3, 2]


def test_dict_round_trip():
    for structure in PELVIS:
        assert Structure.from_dict(structure.to_dict()) == structure


def test_segment_attributes_round_trip():
    for structure in (*PELVIS, Structure("implant", "99SITE", "I1", "Implant", "", (1, 2, 3))):
        drawn, found = to_attributes(structure, 3), to_attributes(structure, 3, "network 1.0")
        (read,) = by_codes(found)
        assert read.key == structure.key and by_codes(drawn)[0].key == structure.key
        assert drawn["SegmentAlgorithmType"] == "MANUAL" and "SegmentAlgorithmName" not in drawn
        assert found["SegmentAlgorithmType"] == "AUTOMATIC" and found["labelID"] == 3


def test_other_bone_is_known_by_its_own_code_alone():
    assert by_codes(to_attributes(OTHER_BONE, 6)) == [OTHER_BONE]
    assert identify("SCT", "272673000", "Bone", [], "other bone").key != OTHER_BONE.key
    assert ordered([OTHER_BONE, *PELVIS]) == [*PELVIS, OTHER_BONE]


@pytest.mark.parametrize(
    ("name", "place"),
    [("Femur_L", 3), ("hip_right", 1), ("Left Hip Bone", 0), ("SACRUM", 2), ("rt femur", 4)]
    + [("Femur", None), ("hip left right", None), ("Femoral_Head_L", None), ("", None)],
)
def test_names_as_people_write_them(name, place):
    assert named_as(name, PELVIS) == (None if place is None else PELVIS[place])


def test_what_is_no_anatomy_stays_so(tmp_path):
    """From a site's rule to a patient file or a checkpoint, to a SEG, and back."""
    category = ["SCT", "260787004", "Physical object"]
    new = {"name": "nail", "code": ["99SITE", "1", "left"], "category": category}
    known = {"name": "implant", "code": ["SCT", "40388003", ""]}
    rules = [{"label": "nail", "new": new}, {"label": "implant", "new": known}]
    (tmp_path / "rules.json").write_text(json.dumps(rules))
    named = read_rules(tmp_path / "rules.json")
    for label in ("nail", "implant"):
        (structure,) = named({"SegmentLabel": label})
        assert structure.category.meaning == "Physical object"
        assert Structure.from_dict(json.loads(json.dumps(structure.to_dict()))) == structure
        (again,) = by_codes(to_attributes(structure, 1))
        assert again.key == structure.key and again.category == structure.category
    assert "category" not in PELVIS[0].to_dict()
    assert Structure.from_dict(PELVIS[0].to_dict()) == PELVIS[0]
