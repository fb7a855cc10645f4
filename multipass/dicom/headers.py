"""DICOM headers: read with one kind of error, their values as plain numbers and text."""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pydicom.config
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from multipass.terminal import brief, is_out_of_memory

# Of a file without preamble: the first tag lies in the group of the file's meta data or of the
# image's identification (PS3.10 7.1 asks for a preamble, and old archives keep none).
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
PREAMBLE_BYTES = 128
NOT_DICOM = "not a DICOM file"
LARGE_BYTES = 1 << 20
# Deflated files beyond it are refused: 1000 slices of CT have 0.5 GB, and 1 GB of zeros deflate to
# 1 MB.
MAX_INFLATED_BYTES = 2 << 30

# Values are checked where they are used; pydicom's own warnings would only repeat that.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


class _BoundedReader(io.BufferedReader):
    """Reads no more than there is: Python makes room first for the 4 GB that a damaged length asks
    for."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LARGE_BYTES:
            size = max(0, min(size, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


class _TooLargeError(Exception):
    """A deflated file inflates beyond the bound."""


def read_dicom(
    path: Path, pixels: bool = False, specific_tags: Sequence[str] | None = None
) -> Dataset:
    """`pydicom.dcmread` with one kind of error; a file without preamble is read, too.

    Args:
        specific_tags: all that is wanted; None for everything.

    Raises:
        ValueError: the file is not DICOM or its header is damaged.
    """
    tags = None if specific_tags is None else ["SOPClassUID", *specific_tags]
    try:
        with path.open("rb", buffering=0) as raw, _BoundedReader(raw) as file:
            start = file.read(PREAMBLE_BYTES + 4)
            is_bare = start[PREAMBLE_BYTES:] != b"DICM" and start[:2] in FIRST_GROUPS
            _check_inflated(file)
            file.seek(0)
            dataset = pydicom.dcmread(
                file, force=is_bare, stop_before_pixels=not pixels, specific_tags=tags
            )
    except _TooLargeError:
        most = f"{MAX_INFLATED_BYTES / 2**30:.1f} GiB"
        raise ValueError(f"deflated from more than {most}, at most so much is read") from None
    except InvalidDicomError:
        raise ValueError(NOT_DICOM) from None
    except OSError as error:
        raise ValueError(f"cannot be read ({short(error)})") from None
    except RecursionError:
        raise ValueError("damaged DICOM header (sequences nested too deep)") from None
    except Exception as error:  # pydicom raises many kinds on damaged files
        if is_out_of_memory(error):
            raise
        raise ValueError(f"damaged DICOM header ({short(error)})") from None
    if is_bare:
        if "SOPClassUID" not in dataset:
            raise ValueError(NOT_DICOM)
        dataset.file_meta.setdefault("TransferSyntaxUID", _syntax_of(dataset))
    return dataset


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors in the block become a ValueError that names the file.

    Raises:
        ValueError, OSError.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # pydicom decodes values when they are asked for
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path.name}: damaged DICOM header ({short(error)})") from None


def _check_inflated(file: io.BufferedReader) -> None:
    """Raise _TooLargeError for a deflated file beyond a bound; pydicom inflates it in one go.

    Args:
        file: behind preamble and prefix. The meta data begin with their length, in 4 of 12 bytes
            (PS3.10 7.1).
    """
    length = file.read(12)[8:]
    meta = file.read(min(int.from_bytes(length, "little"), LARGE_BYTES))
    if DeflatedExplicitVRLittleEndian.encode() not in meta:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    packed = file.read(LARGE_BYTES)
    while packed and not inflater.eof:  # a byte of padding may follow
        size += len(inflater.decompress(packed, LARGE_BYTES))
        if size > MAX_INFLATED_BYTES:
            raise _TooLargeError
        packed = inflater.unconsumed_tail or file.read(LARGE_BYTES)


def _syntax_of(dataset: Dataset) -> str:
    is_implicit, is_little = dataset.original_encoding
    if is_implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian


def short(error: Exception) -> str:
    return brief(str(error)) or type(error).__name__


def image_type(header: Dataset) -> tuple[str, ...]:
    value = header.get("ImageType") or ()
    return (value,) if isinstance(value, str) else tuple(str(v).upper() for v in value)


def text(header: Dataset, keyword: str) -> str:
    return str(header.get(keyword) or "").strip()


def numbers(tags: Dataset, keyword: str, count: int) -> list[float]:
    """The tag's values.

    Raises:
        ValueError: there are not so many, or they are no finite numbers.
    """
    value = tags.get(keyword)
    values = [] if value is None else [float(v) for v in np.atleast_1d(value)]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError(f"no {keyword}" if not values else f"{keyword} {values}")
    return values
