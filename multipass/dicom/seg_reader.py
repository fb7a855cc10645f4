"""DICOM SEG files and RT Structure Sets as the structures of a scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multipass.dicom.ct import CT
from multipass.dicom.reference import Reference, Segment, check_sides, share_overlaps
from multipass.dicom.rt_reader import read_contours
from multipass.dicom.seg_header import SegHeader
from multipass.dicom.seg_masks import Mask, read_masks
from multipass.dicom.seg_placement import Piece, placed
from multipass.geometry.lattices import LPS
from multipass.geometry.volume import Grid, ints3, touches_end
from multipass.site_rules import SiteRules
from multipass.structures import PELVIS, Identify, Key, Structure, by_codes, ordered

# Two bones side by side: each holds this part of their voxels at least, and the emptiest column
# between them this part of the average one at most. Of 8 synthetic patients' hip bones and femora
# it holds 0.02 or less between the two, and 0.53 or more within one.
LEAST_HALF = 0.25
FULLEST_GAP = 0.3


class _Pieces:
    """What the files say of each structure, as it is gathered."""

    def __init__(self) -> None:
        self.structures: dict[Key, Structure] = {}
        self.pieces: dict[Key, list[Piece]] = {}
        self.labels: dict[Key, list[str]] = {}
        self.by_code: dict[Key, set[str]] = {}
        self.by_seg: set[Key] = set()

    def add(self, structure: Structure, piece: Piece, label: str, origin: str) -> None:
        """`origin`: what told the segment apart; '' where a site's rule did."""
        self.structures.setdefault(structure.key, structure)
        self.pieces.setdefault(structure.key, []).append(piece)
        self.labels.setdefault(structure.key, []).append(label)
        self.by_code.setdefault(structure.key, set()).update({origin} - {""})


def read_reference(
    headers: Sequence[SegHeader],
    grid: Grid,
    rules: Identify = by_codes,
    ct: CT | None = None,
    frame: np.ndarray = LPS,
) -> Reference:
    """Read the SEG files and RT Structure Sets of one scan.

    Args:
        headers: one or more files; a structure may lie in one of them only, or alike in several.
            Contours count where no SEG has the structure.
        grid: the scan's, upright in the frame.
        rules: from a segment's attributes (`seg_header.attributes_of`) to structures: none to leave
            it out, two to split it between left and right; see `site_rules.read_rules`. Segments
            that they name alike become one structure, and are noted.
        ct: the scan, if it was read from DICOM: masks on its slices are resampled as these are.
            Contours need it.
        frame: (3, 3) axes of the grid's coordinates in LPS, as columns; see `lattices.frame_of`.

    Raises:
        ValueError: a file cannot be read, a structure lies twice, codes do not tell segments apart,
            nothing lies in the scan, left and right are swapped.
    """
    found = _Pieces()
    notes: list[str] = []
    for header in sorted(headers, key=lambda header: header.is_contours):
        earlier = set(found.pieces)
        masks, remarks = _masks_of(header, ct, rules, is_needed=not found.by_seg)
        notes += remarks
        for mask in masks:
            label = mask.attributes["SegmentLabel"]
            piece, outside = placed(mask, grid, ct, frame)
            if outside:
                notes.append(f"'{label}' lies outside the scan with {outside:.1%} of its voxels")
            for structure, part in _split(rules(mask.attributes), piece, label):
                if structure.key in earlier:
                    notes.append(_again(structure, part, header, found))
                else:
                    found.add(structure, part, label, _origin(mask, rules))
                    found.by_seg |= set() if header.is_contours else {structure.key}
    if not found.structures and notes:
        raise ValueError("; ".join(notes))
    structures = ordered(list(found.structures.values()))
    notes += _joined(structures, found)
    segments = [_merged(s, found.pieces[s.key], grid) for s in structures]
    if not any(segment.mask.size for segment in segments):
        raise ValueError("the segmentation has no voxel inside the scan")
    segments, shared = share_overlaps(segments)
    if shared:
        notes.append(f"segments overlap in {shared} voxels, shared equally")
    check_sides(segments, grid, frame)
    return Reference(grid, tuple(segments), tuple(notes))


def _again(structure: Structure, part: Piece, header: SegHeader, found: _Pieces) -> str:
    """The note on a structure that an earlier file has, too.

    Raises:
        ValueError: the two contradict each other.
    """
    if header.is_contours and structure.key in found.by_seg:
        return f"{header.path.name}: its {structure.name} gives way to a SEG's"
    if any(_same(part, other) for other in found.pieces[structure.key]):
        return f"{header.path.name} has the same {structure.name} once more"
    raise ValueError(f"{structure.name} lies in two segmentation files")


def _masks_of(
    header: SegHeader, ct: CT | None, rules: Identify, is_needed: bool
) -> tuple[list[Mask], list[str]]:
    """A file's masks, and notes. Contours that are not needed and cannot be read are noted."""
    if not header.is_contours:
        masks = read_masks(header.path, ct)
        return masks, [f"{header.path.name}: {masks[0].note}"] if masks[0].note else []
    if ct is None:
        raise ValueError(f"{header.path.name}: contours need the slices of a DICOM CT")
    try:
        masks, notes = read_contours(header.path, ct, rules)
    except ValueError as error:
        if is_needed:
            raise
        return [], [f"left out {error}"]
    return masks, [f"{header.path.name}: {note}" for note in notes]


def _origin(mask: Mask, rules: Identify) -> str:
    """The label and region by which a segment differs from others of its code; '' where a site's
    rule names it."""
    if isinstance(rules, SiteRules) and rules.decides(mask.attributes):
        return ""
    region = mask.attributes.get("AnatomicRegionSequence", {}).get("CodeMeaning", "")
    label = mask.attributes["SegmentLabel"]
    return f"'{label}' in region {region}" if region else f"'{label}'"


def _joined(structures: Sequence[Structure], found: _Pieces) -> list[str]:
    """Notes on structures that several segments name, as the fragments of a bone do.

    Raises:
        ValueError: all that such segments have in common is a code that this product does not know,
            as where every segment is coded as 'Tissue'.
    """
    notes = []
    for structure in structures:
        names = found.labels[structure.key]
        if len(names) < 2:
            continue
        origins = sorted(found.by_code[structure.key])
        if structure not in PELVIS and len(origins) > 1:
            raise ValueError(
                f"segments {', '.join(origins)} have the same code ({structure.meaning}); "
                "--structures can tell them apart by their labels"
            )
        listed = ", ".join(f"'{name}'" for name in names)
        notes.append(f"segments {listed} taken together as {structure.name}")
    return notes


def _same(one: Piece, other: Piece) -> bool:
    return one[0] == other[0] and np.array_equal(one[1], other[1])


def _split(
    structures: Sequence[Structure], piece: Piece, label: str
) -> list[tuple[Structure, Piece]]:
    """The pieces of one segment: itself, or its parts on both sides for a (left, right) pair.

    Raises:
        ValueError: it holds no pair.
    """
    if len(structures) != 2 or not piece[1].size:
        return [(structure, piece) for structure in structures]
    (x, y, z), mask = piece
    middle = _gap_between(mask)
    if middle is None:
        names = " or ".join(f"'{structure.name}'" for structure in structures)
        raise ValueError(
            f"segment '{label}' does not part into a left and a right bone, so 'split' would cut "
            f"one in two; --structures can say that it is {names}"
        )
    halves = {"right": ((x, y, z), mask[:middle]), "left": ((x + middle, y, z), mask[middle:])}
    return [(structure, halves[structure.side]) for structure in structures]


def _gap_between(mask: np.ndarray) -> int | None:
    """The emptiest column along x between two bones, None where there is but one."""
    profile = mask.sum(axis=(1, 2), dtype=np.float64)
    below = np.cumsum(profile) / profile.sum()
    between = np.flatnonzero((below >= LEAST_HALF) & (below <= 1 - LEAST_HALF))
    if not len(between):
        return None
    emptiest = profile[between].min()
    if emptiest > FULLEST_GAP * profile.mean():
        return None
    ties = between[profile[between] == emptiest]
    return int(ties[len(ties) // 2])


def _merged(structure: Structure, pieces: Sequence[Piece], grid: Grid) -> Segment:
    """One segment of all pieces that name the same structure, with its status."""
    pieces = [piece for piece in pieces if piece[1].size]
    if not pieces:
        return Segment(structure, (0, 0, 0), np.zeros((0, 0, 0), bool), "empty")
    start, mask = pieces[0]
    if len(pieces) > 1:
        low = np.min([s for s, _ in pieces], axis=0)
        high = np.max([np.add(s, m.shape) for s, m in pieces], axis=0)
        mask = np.zeros(high - low, np.result_type(*[m for _, m in pieces]))
        for s, m in pieces:
            span = tuple(slice(a, a + n) for a, n in zip(s - low, m.shape, strict=True))
            np.maximum(mask[span], m, out=mask[span])
        start = ints3(low)
    status = "cut" if touches_end(start, mask.shape, grid.size) else "complete"
    return Segment(structure, start, mask, status)
