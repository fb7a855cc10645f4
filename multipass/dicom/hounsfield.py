"""Pixels of CT slices in Hounsfield units: decoding, rescale, padding, plausibility."""

from __future__ import annotations

import os
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from multipass.dicom.headers import read_dicom
from multipass.dicom.slices import Slice, rescale
from multipass.geometry.volume import AIR_HU
from multipass.scratch import in_utf8
from multipass.terminal import is_out_of_memory

# Padding is outside of what a scanner measures; a padding value above this is taken as data.
PADDING_BELOW_HU = -900
MAX_HU = 30000


def pixels(slices: Sequence[Slice]) -> np.ndarray:
    """int16 HU (columns, rows, slices); each file is decoded once."""
    zyx = np.empty((len(slices), slices[0].rows, slices[0].columns), np.int16)
    places = defaultdict(list)
    for k, current in enumerate(slices):
        places[current.path].append(k)
    for ks in places.values():
        for k, frame in zip(ks, hounsfield_frames([slices[k] for k in ks]), strict=True):
            zyx[k] = frame
    return zyx.transpose(2, 1, 0)


def hounsfield_frames(slices: Sequence[Slice]) -> Iterator[np.ndarray]:
    """int16 HU (rows, columns) of slices that lie in one file.

    Raises:
        ValueError: no installed library decodes the file, or its pixels are not those its tags
            announce.
    """
    path = slices[0].path
    try:
        dataset = read_dicom(path, pixels=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Some writers pad pixel data to more than an even length: harmless.
            warnings.filterwarnings("ignore", ".*excess padding.*")
            stored = _stored(dataset, path, len(slices))
    except Exception as error:  # decoders raise many kinds on damaged or unsupported pixels
        if is_out_of_memory(error):
            raise
        reason = shorten(str(error), 160, placeholder=" ...")
        raise ValueError(
            f"{path.name}: cannot be decoded, {_syntax_name(path)} ({reason})"
        ) from None
    stored = stored[None] if stored.ndim == 2 else stored
    wanted = (int(dataset.get("NumberOfFrames", 1) or 1), slices[0].rows, slices[0].columns)
    if stored.shape != wanted:
        raise ValueError(f"{path.name}: pixels of shape {stored.shape}, its tags say {wanted}")
    padding = _padding(dataset)
    for current in slices:
        yield _to_hounsfield(stored[current.frame], current, padding)


def _stored(dataset: Dataset, path: Path, count: int) -> np.ndarray:
    """Stored values (frames, rows, columns), or without the first axis; bits outside of those
    that BitsStored and HighBit name, where old writers keep overlays, are no part of them.

    Args:
        count: frames that are wanted.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    allocated = int(dataset.BitsAllocated)
    bits = int(dataset.get("BitsStored") or allocated)
    high = int(dataset.get("HighBit") or bits - 1)
    if not bits - 1 <= high < allocated:
        raise ValueError(f"HighBit {high} of {bits} bits stored in {allocated}")
    if not syntax.is_compressed or syntax == RLELossless or count > 1:
        if high == bits - 1:
            return dataset.pixel_array
        dataset.BitsStored, dataset.HighBit = allocated, allocated - 1
        return _significant(dataset.pixel_array, bits, high, dataset.PixelRepresentation == 1)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        raise ValueError("MONOCHROME1, which its decoder would invert")
    if high != bits - 1:
        raise ValueError(f"HighBit {high} of {bits} bits stored")
    values = _decoded_by_itk(path)
    slope, intercept = rescale(dataset)
    stored = np.rint((values.astype(np.float64) - intercept) / slope).astype(np.int32)
    return _significant(stored, bits, high, dataset.PixelRepresentation == 1)


def _significant(values: np.ndarray, bits: int, high: int, is_signed: bool) -> np.ndarray:
    """The integers that bits `high - bits + 1` to `high` of each value stand for. What a decoder
    made negative without a sign bit stays so."""
    used = (values.astype(np.int32) >> (high + 1 - bits)) & ((1 << bits) - 1)
    if is_signed:
        return np.where(used >> (bits - 1), used - (1 << bits), used)
    return np.where(values < 0, values, used)


def _decoded_by_itk(path: Path) -> np.ndarray:
    """Pixels after rescale, by ITK's GDCM, which decodes all JPEG kinds. It tries its 8-bit JPEG
    decoder before the 12-bit one and complains on stderr meanwhile; the result is right. Only the
    main thread drops the complaints: the descriptor belongs to all of them."""
    if threading.current_thread() is not threading.main_thread():
        return _read_by_itk(path)
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as silence:  # noqa: PTH123
            os.dup2(silence.fileno(), 2)
            return _read_by_itk(path)
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _read_by_itk(path: Path) -> np.ndarray:
    with in_utf8(path) as name:
        return sitk.GetArrayFromImage(sitk.ReadImage(name))


def _syntax_name(path: Path) -> str:
    try:
        uid = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
        return f"transfer syntax {uid.name}"
    except Exception:
        return "no transfer syntax named"


def _padding(dataset: Dataset) -> list[tuple[float, float]]:
    """The ranges of stored values that stand for 'no pixel', PS3.3 C.7.5.1.1.2. Where a writer
    gives several values, against the standard, each is one."""
    values = _integers(dataset, "PixelPaddingValue")
    limits = _integers(dataset, "PixelPaddingRangeLimit")
    ranges = []
    for value in values:
        limit = limits[0] if len(limits) == len(values) == 1 else value
        low, high = sorted((value, limit))
        if dataset.get("PixelRepresentation") == 1 and high > 32767:
            low, high = low - 65536, high - 65536
        ranges.append((float(low), float(high)))
    return ranges


def _integers(dataset: Dataset, keyword: str) -> list[int]:
    value = dataset.get(keyword)
    values = [] if value is None else np.atleast_1d(value).tolist()
    return [int(v) for v in values if isinstance(v, int | float)]


def _to_hounsfield(
    values: np.ndarray, current: Slice, padding: Sequence[tuple[float, float]]
) -> np.ndarray:
    slope, intercept = current.slope, current.intercept
    hounsfield: np.ndarray
    if slope == 1 and intercept == int(intercept):
        hounsfield = values.astype(np.int32) + int(intercept)
    else:
        hounsfield = values * slope + intercept
    result = np.clip(np.rint(hounsfield), AIR_HU, np.iinfo(np.int16).max).astype(np.int16)
    for bounds in padding:
        low, high = sorted(bound * slope + intercept for bound in bounds)
        # Some writers name a value as padding that real tissue has; below air it cannot be tissue.
        if high <= PADDING_BELOW_HU or low > MAX_HU:
            result[(hounsfield >= low - 0.5) & (hounsfield <= high + 0.5)] = AIR_HU
    return result


def implausible(array: np.ndarray) -> list[str]:
    """Flags for values that are no HU: a CT of a body has air around or in it, and soft tissue."""
    sample = array[::8, ::8, ::2]
    measured = sample[sample > AIR_HU]  # the rest may be padding
    if not measured.size:
        return ["no values but padding"]
    low, high = int(measured.min()), int(measured.max())
    if low > -500:
        return [f"values from {low} to {high}: no air, are they Hounsfield units?"]
    if high < 0:
        return [
            f"values from {low} to {high}: nothing as dense as water, are they Hounsfield units?"
        ]
    if not ((measured > -200) & (measured < 200)).mean() > 0.01:
        return [f"values from {low} to {high}: no soft tissue, are they Hounsfield units?"]
    return []
