"""Image files: NIfTI, NRRD and MetaImage as voxels and the place of each; what is damaged, cut off
or does not say which side is left.

ITK checks no checksum, gives what a cut zlib stream holds, and calls a MetaImage that is cut off a
file that does not exist; so files are measured before it reads them.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from multipass.data.nifti import CHUNK_BYTES, NO_SIDES, RAS_TO_LPS, read_nifti
from multipass.geometry.lattices import is_place
from multipass.geometry.volume import grid_of
from multipass.scratch import in_utf8
from multipass.terminal import is_out_of_memory

# A header longer than this is none.
HEADER_BYTES = 1 << 20
# zlib's: both zlib and gzip streams.
ANY_STREAM = 47
# A pattern with more files than this is a mistake.
MOST_FILES = 100_000
META_BYTES = {
    "CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4,
    "LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip
# NRRD's fields that put the voxels elsewhere than behind the header.
SKIPS = {"byte skip", "byteskip", "line skip", "lineskip"}
# NRRD's spaces that name the patient's sides, by their first axis' ends.
SIDED_SPACE = re.compile(r"(?i)^(left|right)-|^[LR][AP]S")


@dataclass(frozen=True)
class Image:
    """An image file in memory.

    Attributes:
        array: (X, Y, Z) as stored, after slope and intercept.
        affine: (4, 4) from voxel indices to LPS mm; sheared where the file says so.
        fields: the text fields of its header, as ITK names them; {} for NIfTI.
        notes: what a person should know of the file.
    """

    array: np.ndarray
    affine: np.ndarray
    fields: dict[str, str]
    notes: tuple[str, ...] = ()


def read_image(path: Path) -> Image:
    """One scalar volume.

    Raises:
        ValueError: the file is damaged or cut off, or holds no scalar volume.
    """
    if path.name.lower().endswith((".nii", ".nii.gz")):
        array, affine, notes = read_nifti(path)
        return Image(array, affine, {}, tuple(notes))
    _check_whole(path)
    try:
        with in_utf8(path) as name:
            image = sitk.ReadImage(name)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path.name}: cannot be read ({reason})") from None
    read = from_sitk_image(image, path.name)
    return read if _names_sides(path, read.fields) else replace(read, notes=(NO_SIDES,))


def from_sitk_image(image: sitk.Image, name: str) -> Image:
    """A SimpleITK image of one scalar volume, called `name` in errors.

    Raises:
        ValueError: it is none, or its voxels have no place.
    """
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{name}: {image.GetSize()}, one scalar 3D image is needed")
    affine = grid_of(image).affine
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.isascii()}
    return _checked(Image(sitk.GetArrayFromImage(image).T, affine, fields), name)


def from_ras(array: np.ndarray, affine: np.ndarray, name: str) -> Image:
    """Voxels as nibabel gives them, called `name` in errors.

    Args:
        array: (X, Y, Z).
        affine: (4, 4) from voxel indices to RAS mm: x grows to the patient's right, y to the front.

    Raises:
        ValueError: they are no scalar volume, or have no place.
    """
    array, affine = np.asarray(array), np.asarray(affine)
    if array.ndim != 3 or not array.size:
        raise ValueError(f"{name}: {array.shape}, one scalar 3D image is needed")
    is_affine = affine.shape == (4, 4) and affine.dtype.kind in "iuf"
    if not (is_affine and (affine[3] == (0, 0, 0, 1)).all()):
        raise ValueError(f"{name}: its affine is no 4 x 4 matrix that ends with 0, 0, 0, 1")
    return _checked(Image(array, RAS_TO_LPS @ affine, {}), name)


def _checked(image: Image, name: str) -> Image:
    if not is_place(image.affine):
        raise ValueError(f"{name}: its affine gives voxels no place and no size")
    if image.array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: voxels of type {image.array.dtype}, real numbers are needed")
    return image


def detached(path: Path) -> list[Path]:
    """The files with the voxels of a MetaImage or NRRD header: one, a list of them, or those of a
    pattern as `slice%03d.raw 1 100 1`. [] where the voxels follow the header."""
    if path.suffix.lower() not in (".mhd", ".mha", ".nhdr", ".nrrd"):
        return []
    return [path.parent / name for name in _data_names(path) if (path.parent / name).is_file()]


def _data_names(path: Path) -> Iterator[str]:
    text = _head(path).decode("utf-8", errors="replace")
    found = re.search(r"(?im)^(?:ElementDataFile\s*=|data ?file:)[ \t]*(\S.*?)[ \t\r]*$", text)
    if found is None or found[1].upper() == "LOCAL":
        return
    pattern = re.fullmatch(r"(\S*%0?\d*d\S*)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(?:\s+\d+)?", found[1])
    if found[1].upper().split()[0] == "LIST":
        yield from (line.strip() for line in text[found.end() :].splitlines() if line.strip())
    elif pattern:
        first, last, step = (int(number) for number in pattern.groups()[1:])
        numbers = range(first, last + (1 if step >= 0 else -1), step or 1)
        for number in numbers[:MOST_FILES]:
            yield re.sub(r"%(0?\d*)d", lambda form, n=number: f"{n:{form[1]}d}", pattern[1])
    else:
        yield found[1]


def _names_sides(path: Path, fields: dict[str, str]) -> bool:
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        return bool(SIDED_SPACE.match(fields.get("NRRD_space", "")))
    return bool(re.search(rb"(?m)^(TransformMatrix|Orientation|Rotation)\s*=", _head(path)))


def _check_whole(path: Path) -> None:
    """Raise ValueError for a MetaImage or NRRD file whose voxels are cut off or damaged."""
    head, is_meta = _head(path), path.suffix.lower() in (".mha", ".mhd")
    missing = [name for name in _data_names(path) if not (path.parent / name).is_file()]
    if missing:
        raise ValueError(f"{path.name}: its voxels are to lie in {missing[0]}, which is not there")
    files = detached(path)
    end = 0 if files else _end_of_header(head, is_meta)
    text = (head[:end] if end else head).decode("latin-1")
    fields = dict(re.findall(r"(?m)^([\w ]+?)\s*[=:]\s*(.*?)\s*$", text))
    wanted = None
    if is_meta:
        wanted = _meta_bytes(fields, path)
        packed = fields.get("CompressedData", "").lower() == "true"
    else:
        packed = fields.get("encoding", "").lower() in ("gzip", "gz") and not SKIPS & set(fields)
    if packed and len(files) < 2:
        _check_stream(files[0] if files else path, end, wanted)
    elif wanted is not None and not packed:
        held = sum(file.stat().st_size for file in files or [path]) - end
        if held < wanted:
            raise ValueError(f"{path.name}: cut off, {held} bytes of voxels, not {wanted}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)


def _end_of_header(head: bytes, is_meta: bool) -> int:
    """Where the voxels of a file with its own voxels start; 0 where that is not found."""
    last = re.search(rb"(?m)^ElementDataFile\s*=.*\n" if is_meta else rb"\r?\n\r?\n", head)
    return last.end() if last else 0


def _meta_bytes(fields: dict[str, str], path: Path) -> int | None:
    """Bytes of a MetaImage's unpacked voxels; None where its header leaves that open.

    Raises:
        ValueError: its axes are not as many as it says, which lets ITK write beyond its memory.
    """
    size = fields.get("DimSize", "").split()
    if fields.get("NDims") not in ("3", "4") or fields["NDims"] != str(len(size)):
        raise ValueError(
            f"{path.name}: cannot be read, its header gives NDims = {fields.get('NDims')} and "
            f"DimSize = {' '.join(size)}"
        )
    item = META_BYTES.get(fields.get("ElementType", "").removeprefix("MET_"))
    counts = [*size, fields.get("ElementNumberOfChannels", "1")]
    if item is None or fields.get("BinaryData", "True").lower() == "false":
        return None
    return math.prod(map(int, counts)) * item if all(c.isdecimal() for c in counts) else None


def _check_stream(path: Path, start: int, wanted: int | None) -> None:
    """Unpacks to the checksum."""
    stream, held = zlib.decompressobj(ANY_STREAM), 0
    with path.open("rb") as file:
        file.seek(start)
        try:
            while not stream.eof and (chunk := file.read(CHUNK_BYTES)):
                held += len(stream.decompress(chunk))
        except zlib.error as error:
            raise ValueError(f"{path.name}: damaged, {error}") from None
    if not stream.eof or (wanted is not None and held < wanted):
        raise ValueError(f"{path.name}: cut off, its packed voxels end after {held} bytes")


def distinct_whole(array: np.ndarray, most: int) -> Sequence[int]:
    """The values of an array of whole numbers from 0 on; () where it has others, or more than
    `most`."""
    found: set[int] = set()
    for k in range(array.shape[2]):
        values = np.unique(array[:, :, k])
        if not (np.isfinite(values).all() and (values >= 0).all() and (values % 1 == 0).all()):
            return ()
        found |= set(values.astype(int).tolist())
        if len(found) > most:
            return ()
    return sorted(found)
