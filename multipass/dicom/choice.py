"""Which of a folder's series is the CT, and why the others are not."""

from __future__ import annotations

from collections.abc import Sequence

from multipass.dicom.belonging import named_by
from multipass.dicom.series import MIN_SLICES, Found, Series


def choose(found: Found, wanted_uid: str | None = None) -> tuple[Series, list[tuple[Series, str]]]:
    """Choose one CT series, and say of each other why not.

    In this order: the one asked for, where it is here; one that a SEG belongs to; originals before
    derived and secondary images; axial before other planes; most slices; lowest series number,
    then UID.

    Raises:
        ValueError: no series qualifies.
    """
    candidates = fit(found)
    if not candidates:
        raise ValueError(_nothing_fits(found))
    named = named_by(found.seg, candidates)
    candidates = [s for s in candidates if s.uid == wanted_uid] or candidates
    chosen = min(candidates, key=lambda s: (not _among(s, named), *_rank(s)))
    return chosen, [
        (s, unfit(s) or _why_not(s, chosen, named)) for s in found.ct if s is not chosen
    ]


def fit(found: Found) -> list[Series]:
    """The series that can be a scan of a patient's body."""
    return [series for series in found.ct if not unfit(series)]


def unfit(series: Series) -> str:
    """Why a series can't be a scan of a patient's body, '' if it can."""
    if "LOCALIZER" in series.image_type:
        return "a localizer"
    if len(series.slices) >= MIN_SLICES and not series.extent_mm:
        return "all slices at one place"
    if len(series.slices) < MIN_SLICES:
        reason = f"at least {MIN_SLICES} slices are needed"
        return f"{reason} ({series.refused[0]})" if series.refused else reason
    return ""


def _among(series: Series, named: Sequence[Series]) -> bool:
    return any(one is series for one in named)


def _rank(series: Series) -> tuple:
    return (
        not series.is_original,
        not series.is_axial,
        -len(series.slices),
        series.number,
        series.uid,
    )


def _why_not(series: Series, chosen: Series, named: Sequence[Series]) -> str:
    if _among(chosen, named) and not _among(series, named):
        return "the segmentation belongs to another series"
    if not series.is_original and chosen.is_original:
        return "derived"
    if not series.is_axial and chosen.is_axial:
        return "not axial"
    if len(series.slices) < len(chosen.slices):
        return f"fewer slices than series {chosen.number}"
    return f"as good as series {chosen.number}, which comes first"


def _nothing_fits(found: Found) -> str:
    if found.ct:
        return "; ".join(f"{series}: {unfit(series)}" for series in found.ct[:3])
    left_out = [*found.others, *found.unread]
    if left_out:
        path, reason = left_out[0]
        more = len(left_out) - 1
        return f"no CT image here ({path.name}: {reason}{f'; {more} more files' if more else ''})"
    return "no DICOM file here"
