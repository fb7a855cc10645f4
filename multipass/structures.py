"""The structures that the product knows: names, DICOM codes, colours, left and right partners.

A structure's identity is (type scheme, type value, laterality), never its segment number, which
differs between patients. Codes are SNOMED CT's, as in DICOM PS3.16 and in TotalSegmentator's table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

Key = tuple[str, str, str]
# From a segment's attributes (see `by_codes`) to structures.
Identify = Callable[[dict], Sequence["Structure"]]

CATEGORY = Code("123037004", "SCT", "Anatomical Structure")
SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}
BACKGROUND = ("DCM", "125040")
IMPLANT = Code("40388003", "SCT", "Implant")
HIP = ("SCT", "29836001")
FEMUR = ("SCT", "71341001")
# Types that leave it to the anatomic region which bone it is: Bone, Anatomical Structure.
ANY_BONE = (Code("272673000", "SCT", "Bone"), CATEGORY)
MODIFIERS = ("SegmentedPropertyTypeModifierCodeSequence", "AnatomicRegionModifierSequence")
OTHER_SIDE = {"left": "right", "right": "left", "": ""}
SIDE_WORDS = {
    "left": {"left", "l", "lt", "vänster", "vanster", "sin", "sinister"},
    "right": {"right", "r", "rt", "höger", "hoger", "dx", "dexter"},
}


@dataclass(frozen=True)
class Structure:
    """One anatomical structure.

    Attributes:
        name: what people read, 'left hip bone'.
        scheme, value, meaning: the code of the segmented property type.
        side: 'left', 'right' or ''.
        colour: sRGB, 0 to 255.
        category: what kind of thing it is, of DICOM's CID 7150.
    """

    name: str
    scheme: str
    value: str
    meaning: str
    side: str
    colour: tuple[int, int, int]
    category: Code = CATEGORY

    @property
    def key(self) -> Key:
        """What identifies the structure: (scheme, value, side)."""
        return self.scheme, self.value, self.side

    def to_dict(self) -> dict:
        """As plain types, for patient files, checkpoints and reports."""
        row = {
            "name": self.name,
            "code": list(self.key),
            "meaning": self.meaning,
            "colour": list(self.colour),
        }
        return row if self.category == CATEGORY else {**row, "category": _listed(self.category)}

    @classmethod
    def from_dict(cls, row: dict) -> Structure:
        """Inverse of `to_dict`; raises KeyError, TypeError or ValueError for anything else."""
        scheme, value, side = row["code"]
        red, green, blue = row["colour"]
        category = category_of(row.get("category") or _listed(CATEGORY))
        return cls(row["name"], scheme, value, row["meaning"], side, (red, green, blue), category)


def _listed(code: Code) -> list[str]:
    return [code.scheme_designator, code.value, code.meaning]


def category_of(listed: Sequence[str]) -> Code:
    """Of [scheme, value, meaning]."""
    scheme, value, meaning = map(str, listed)
    return Code(value, scheme, meaning)


def usual_category(scheme: str, value: str) -> Code:
    """That of a type's code: devices and lesions are no anatomical structures."""
    code = Code(value, scheme, "")
    if code == IMPLANT or code in codes.cid7157.concepts.values():
        return codes.cid7150.PhysicalObject
    if code in codes.cid7159.concepts.values():
        return codes.cid7150.MorphologicallyAbnormalStructure
    return CATEGORY


# Mask values 1 to 5, in this order.
PELVIS = (
    Structure("left hip bone", *HIP, "Hip", "left", (230, 159, 0)),
    Structure("right hip bone", *HIP, "Hip", "right", (86, 180, 233)),
    Structure("sacrum", "SCT", "54735007", "Sacrum", "", (0, 158, 115)),
    Structure("left femur", *FEMUR, "Femur", "left", (204, 121, 167)),
    Structure("right femur", *FEMUR, "Femur", "right", (240, 228, 66)),
)
# Spine, ribs, skull, arms, lower legs: what a phantom knows of a scan's other bone. Networks learn
# it in training, and write it as background. Its code is this product's own, so that no other
# segmentation of "Bone" is taken for it.
OTHER_BONE = Structure("other bone", "99MULTIPASS", "OTHERBONE", "Other bone", "", (150, 150, 150))
_TABLE_ORDER = {structure.key: i for i, structure in enumerate(PELVIS)}


def ordered(structures: Sequence[Structure]) -> list[Structure]:
    """The shipped table's order first, then by key; one entry a key, and no name twice: where two
    coding schemes know a bone, the second gets its code behind its name."""
    unique = {structure.key: structure for structure in structures}
    rows = sorted(unique.values(), key=lambda s: (_TABLE_ORDER.get(s.key, len(PELVIS)), s.key))
    taken: set[str] = set()
    for i, row in enumerate(rows):
        if row.name in taken:
            rows[i] = replace(row, name=f"{row.name} ({row.scheme} {row.value})")
        taken.add(rows[i].name)
    return rows


def mirror_partners(structures: Sequence[Structure]) -> list[int]:
    """For each structure, the index of its partner on the other side, or its own index."""
    index = {structure.key: i for i, structure in enumerate(structures)}
    return [index.get((s.scheme, s.value, OTHER_SIDE[s.side]), i) for i, s in enumerate(structures)]


def has_both_sides(structures: Sequence[Structure]) -> bool:
    """False if a left structure has no right one to become in a mirror, or the reverse."""
    partners = mirror_partners(structures)
    return all(not s.side or partners[i] != i for i, s in enumerate(structures))


def side_from_words(label: str) -> str:
    """'left' or 'right' where exactly one of the two stands in the label as a word, else ''."""
    words = set(re.split(r"[\W_]+", label.lower()))
    found = [side for side, spellings in SIDE_WORDS.items() if words & spellings]
    return found[0] if len(found) == 1 else ""


def named_as(name: str, structures: Sequence[Structure]) -> Structure | None:
    """The structure whose name has the same words in any order, the side's spelled as people do:
    'hip_left', 'Femur L'; None where there is none."""
    said = _words(name), side_from_words(name)
    return next((s for s in structures if (_words(s.name), s.side) == said), None)


def _words(name: str) -> frozenset[str]:
    """The words of a structure's name but 'bone' and those of its side."""
    sides = set().union(*SIDE_WORDS.values())
    return frozenset(re.split(r"[\W_]+", name.lower())) - sides - {"", "bone"}


def identify(
    scheme: str, value: str, meaning: str, modifiers: Sequence[str], label: str
) -> Structure:
    """The structure that a segment's codes and label stand for.

    Args:
        scheme, value, meaning: the segmented property type's code; retired SRT codes of the table's
            structures are known as their SCT equivalents.
        modifiers: meanings or SCT values of the type modifiers.
        label: the segment's label.

    Raises:
        ValueError: the table expects a side for this code and none is given, or codes and label
            contradict each other.
    """
    side = _side(meaning, modifiers, label)
    for structure in (*PELVIS, OTHER_BONE):
        if Code(structure.value, structure.scheme, "") == Code(value, scheme, ""):
            if structure.side and not side:
                raise ValueError(
                    f"segment '{label}' ({meaning or structure.meaning}) has no left or right in "
                    "its modifier, code or label; --structures can say which side it is"
                )
            if structure.side in ("", side):
                return structure
    name = meaning.lower() or label
    if side and not side_from_words(name):
        name = f"{side} {name}"
    return Structure(name, scheme, value, meaning, side, colour_of(scheme + value + side))


def _side(meaning: str, modifiers: Sequence[str], label: str) -> str:
    """'left', 'right' or '': the one side that modifiers, code and label agree on.

    Raises:
        ValueError: they contradict each other.
    """
    by_code = [side for side, code in SIDES.items() if code.value in modifiers]
    said = {*by_code, *map(side_from_words, (*modifiers, meaning, label))} - {""}
    if len(said) > 1:
        words = (meaning, *(word for word in modifiers if not word.isdigit()))
        codes = ", ".join(filter(None, words))
        raise ValueError(
            f"segment '{label}' is coded as {codes}: left or right? --structures can say which "
            "side it is"
        )
    return said.pop() if said else ""


def by_codes(attributes: dict) -> list[Structure]:
    """The structure that a segment's codes and label stand for; none for Background. A segment of
    type 'Bone' is the bone that its anatomic region names.

    Args:
        attributes: as in an entry of dcmqi's meta.json.
    """
    scheme, value = code_of(attributes)
    if (scheme, value) == BACKGROUND:
        return []
    kind = attributes.get("SegmentedPropertyTypeCodeSequence", {})
    region = attributes.get("AnatomicRegionSequence", {})
    if region and Code(value, scheme, "") in ANY_BONE:
        kind = region
        scheme, value = region.get("CodingSchemeDesignator", ""), region.get("CodeValue", "")
    modifiers = []
    for keyword in MODIFIERS:
        item = attributes.get(keyword, {})
        modifiers += [item.get("CodeValue", ""), item.get("CodeMeaning", "")]
    label = attributes.get("SegmentLabel") or attributes.get("SegmentDescription") or ""
    found = identify(scheme, value, kind.get("CodeMeaning", ""), modifiers, label)
    if found in (*PELVIS, OTHER_BONE):
        return [found]
    said = attributes.get("SegmentedPropertyCategoryCodeSequence", {})
    values = [said.get(key) for key in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")]
    return [replace(found, category=category_of(values) if all(values) else CATEGORY)]


def to_attributes(structure: Structure, value: int, algorithm: str = "") -> dict:
    """A segment's entry of dcmqi's meta.json, the inverse of `by_codes`.

    Args:
        value: of the structure in the label map.
        algorithm: name and version; '' for what a person drew.
    """
    attributes = {
        "labelID": value,
        "SegmentLabel": structure.name,
        "SegmentDescription": structure.name,
        "SegmentAlgorithmType": "AUTOMATIC" if algorithm else "MANUAL",
        "SegmentedPropertyCategoryCodeSequence": _written(structure.category),
        "SegmentedPropertyTypeCodeSequence": _written(
            Code(structure.value, structure.scheme, structure.meaning)
        ),
        "recommendedDisplayRGBValue": list(structure.colour),
    }
    if algorithm:
        attributes["SegmentAlgorithmName"] = algorithm
    if structure.side:
        attributes["SegmentedPropertyTypeModifierCodeSequence"] = _written(SIDES[structure.side])
    return attributes


def _written(code: Code) -> dict[str, str]:
    return {
        "CodeValue": code.value,
        "CodingSchemeDesignator": code.scheme_designator,
        "CodeMeaning": code.meaning,
    }


def code_of(attributes: dict) -> tuple[str, str]:
    """(scheme, value) of a segment's property type; ("", "") where it has none."""
    code = attributes.get("SegmentedPropertyTypeCodeSequence", {})
    return code.get("CodingSchemeDesignator", ""), code.get("CodeValue", "")


def colour_of(text: str) -> tuple[int, int, int]:
    """sRGB of a structure that no table knows, the same for the same text."""
    seed = sum((i + 1) * ord(c) for i, c in enumerate(text))
    return 60 + seed * 37 % 180, 60 + seed * 71 % 180, 60 + seed * 113 % 180
