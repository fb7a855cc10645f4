"""A site's own names of segments: rules in a JSON file, before codes are looked at."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from multipass.structures import (
    OTHER_SIDE,
    PELVIS,
    Identify,
    Structure,
    by_codes,
    category_of,
    code_of,
    colour_of,
    usual_category,
)


@dataclass(frozen=True)
class SiteRules:
    """A site's own naming: the first rule that fits a segment names it, else its codes do.

    Attributes:
        rules: (whether a segment's attributes fit, the structures that it then is).
    """

    rules: Sequence[tuple[Callable[[dict], bool], list[Structure]]]

    def __call__(self, attributes: dict) -> list[Structure]:
        named = (structures for fits, structures in self.rules if fits(attributes))
        found = next(named, None)
        return by_codes(attributes) if found is None else found

    def decides(self, attributes: dict) -> bool:
        return any(fits(attributes) for fits, _ in self.rules)


def read_rules(path: Path | None) -> Identify:
    """Read a site's own naming: a JSON list of rules, the first that fits a segment decides.
    Without a file, `by_codes`.

    Each rule has "label" (the segment's label, any case) or "code" ([scheme, value]), and one of
    "structure" (a name of the shipped table), "split" (two such names: the segment is cut
    between its two bones), "new" ({"name", "code": [scheme, value, side]}, and, if it likes,
    "category": [scheme, value, meaning]) or "ignore": true.
    Segments that no rule fits are identified by their codes.

    Raises:
        ValueError: the file is not such a list.
    """
    if path is None:
        return by_codes
    try:
        rules = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(rules, list):
            raise ValueError(f"a {type(rules).__name__}")
        return SiteRules([(_fits(rule), _named(rule)) for rule in rules])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no list of structure rules ({error})") from None


def _fits(rule: dict) -> Callable[[dict], bool]:
    if "label" in rule:
        label = _folded(str(rule["label"]))
        return lambda attributes: _folded(attributes.get("SegmentLabel", "")) == label
    scheme, value = rule["code"]
    return lambda attributes: code_of(attributes) == (scheme, value)


def _folded(label: str) -> str:
    """Labels are alike whatever their case, and whether an accent is a letter's part or its own."""
    return unicodedata.normalize("NFC", label).casefold().strip()


def _named(rule: dict) -> list[Structure]:
    table = {structure.name: structure for structure in PELVIS}
    if rule.get("ignore"):
        return []
    if "new" in rule:
        scheme, value, side = rule["new"]["code"]
        name = str(rule["new"]["name"])
        if side not in OTHER_SIDE:
            raise ValueError(f"side '{side}' is not left, right or empty")
        category = rule["new"].get("category")
        category = category_of(category) if category else usual_category(scheme, value)
        colour = colour_of(scheme + value + side)
        return [Structure(name, scheme, value, name, side, colour, category)]
    names = rule["split"] if "split" in rule else [rule["structure"]]
    unknown = [name for name in names if name not in table]
    if unknown:
        raise ValueError(f"'{unknown[0]}' is none of {', '.join(table)}")
    structures = [table[name] for name in names]
    if "split" in rule and [s.side for s in structures] != ["left", "right"]:
        raise ValueError("'split' takes a left and a right structure")
    return structures
