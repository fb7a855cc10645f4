"""Which SEG files are a reference of which CT series, and why the others are not."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence

from multipass.dicom.seg_header import SegHeader, source_uids
from multipass.dicom.series import Series


def why_not(
    seg: SegHeader, series: Series, beside: Sequence[Series] = (), asked_for: bool = False
) -> str:
    """Why a SEG is no reference of a series, '' if it is one.

    The frame of reference must be the same. Then its references decide: to a series, else to
    images, in the header or in its frames. One that refers to nothing belongs to all series of its
    patient and frame of reference, or, where it names none, to the only series.

    Args:
        beside: the series that lie in the same study.
        asked_for: a person chose the series: the same frame of reference will do.
    """
    if seg.is_own:
        return "an automatic segmentation by this product, no reference"
    if _differ(seg.frame_of_reference_uid, series.frame_of_reference_uid):
        return "belongs to another frame of reference"
    if asked_for:
        return ""
    if seg.series_uids and series.uid not in seg.series_uids:
        return "belongs to another series"
    twins = [s for s in beside if s is not series and _alike(seg, s, series)]
    if seg.series_uids and not twins:
        return ""
    try:
        named = seg.instance_uids or source_uids(seg.path)
    except ValueError as error:
        return f"cannot be read ({error})"
    if named:
        if named & _instances(series):
            return ""
        if not seg.series_uids or any(named & _instances(twin) for twin in twins):
            return "belongs to the images of another series"
    if _differ(seg.patient_id, series.patient_id):
        return f"belongs to another patient, {seg.patient_id}"
    if not seg.series_uids and twins and not seg.frame_of_reference_uid:
        return "does not say to which of several series it belongs"
    return ""


def named_by(headers: Sequence[SegHeader], ct: Sequence[Series]) -> list[Series]:
    """The series that a SEG refers to and is a reference of."""
    return [one for one in ct if any(not why_not(seg, one, ct) for seg in headers)]


def fitting(
    headers: Sequence[SegHeader],
    series: Series,
    beside: Sequence[Series] = (),
    asked_for: bool = False,
) -> tuple[list[SegHeader], list[str]]:
    """The SEG files that are a reference of a series, and a note for each that is not; of copies of
    one file the first. Arguments as for `why_not`."""
    kept: list[SegHeader] = []
    notes: list[str] = []
    for seg in headers:
        reason = why_not(seg, series, beside, asked_for)
        same = next((k for k in kept if k.uid == seg.uid and filecmp.cmp(k.path, seg.path)), None)
        if reason:
            notes.append(f"{seg.path.name}: {reason}")
        elif same:
            notes.append(f"{seg.path.name}: a copy of {same.path.name}")
        else:
            kept.append(seg)
            if _differ(seg.patient_id, series.patient_id):
                notes.append(
                    f"{seg.path.name}: PatientID {seg.patient_id}, the CT's {series.patient_id}"
                )
    return kept, notes


def _alike(seg: SegHeader, other: Series, series: Series) -> bool:
    """Whether a SEG's header can't tell a series from this one."""
    if _differ(seg.frame_of_reference_uid, other.frame_of_reference_uid):
        return False
    if _differ(seg.patient_id, other.patient_id) and not _differ(seg.patient_id, series.patient_id):
        return False
    return other.uid in seg.series_uids if seg.series_uids else True


def _instances(series: Series) -> frozenset[str]:
    return frozenset(piece.sop_uid for piece in series.slices)


def _differ(one: str, other: str) -> bool:
    """Both are said, and not alike."""
    return bool(one and other and one != other)
