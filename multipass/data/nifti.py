"""NIfTI-1 and NIfTI-2 files, plain or packed, whatever their name says.

Where its voxels lie a file may say twice. As nibabel does, and so nnU-Net and TotalSegmentator, the
sform is taken where its code is not 0, else the qform where its code is not 0. ITK and the viewers
built on it take the qform, so that a file whose forms disagree is flagged. ITK also refuses a sform
without right angles, and turns NaN into 0, which is water.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from scipy.spatial.transform import Rotation

from multipass.geometry.lattices import SAME_VOXEL, apart_mm, is_place, voxel_mm
from multipass.geometry.volume import MAX_VOXELS

Stream = IO[bytes] | gzip.GzipFile
# Header extensions longer than this are none.
MOST_OFFSET = 1 << 28
GZIP_MAGIC = b"\x1f\x8b"
CHUNK_BYTES = 1 << 22
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NO_SIDES = "this file does not say which side is left"
# The size of the header is its first field; offsets are those of nifti1.h and nifti2.h.
_FIELDS_1 = {
    "dim": ("8i2", 40), "datatype": ("i2", 70), "pixdim": ("8f4", 76), "vox_offset": ("f4", 108),
    "scl_slope": ("f4", 112), "scl_inter": ("f4", 116), "xyzt_units": ("u1", 123),
    "qform_code": ("i2", 252), "sform_code": ("i2", 254), "quatern": ("3f4", 256),
    "qoffset": ("3f4", 268), "srow": ("(3,4)f4", 280), "magic": ("S3", 344),
}  # fmt: skip
_FIELDS_2 = {
    "magic": ("S3", 4), "datatype": ("i2", 12), "dim": ("8i8", 16), "pixdim": ("8f8", 104),
    "vox_offset": ("i8", 168), "scl_slope": ("f8", 176), "scl_inter": ("f8", 184),
    "qform_code": ("i4", 344), "sform_code": ("i4", 348), "quatern": ("3f8", 352),
    "qoffset": ("3f8", 376), "srow": ("(3,4)f8", 400), "xyzt_units": ("i4", 500),
}  # fmt: skip
_HEADERS = {348: (_FIELDS_1, b"n+1"), 540: (_FIELDS_2, b"n+2")}
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
}  # fmt: skip
_MM = {1: 1000.0, 3: 0.001}


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Voxels (X, Y, Z) after slope and intercept, their (4, 4) affine in LPS mm, and notes.

    Raises:
        ValueError: the file is damaged or cut off, or holds no scalar volume.
    """
    with path.open("rb") as file:
        is_packed = file.read(2) == GZIP_MAGIC
    try:
        with gzip.open(path) if is_packed else path.open("rb") as file:
            header = _header(file, path)
            array = _voxels(file, header, path)
            while file.read(CHUNK_BYTES):  # to the checksum
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name}: damaged or cut off ({error})") from None
    affine, notes = _affine(header, array.shape, path)
    return array, affine, notes


def _header(file: Stream, path: Path) -> Any:
    """The header's fields as a structured scalar, in either byte order."""
    start = file.read(4)
    for order in ("little", "big"):
        size = int.from_bytes(start, order)
        if size not in _HEADERS:
            continue
        fields, magic = _HEADERS[size]
        formats, offsets = zip(*fields.values(), strict=True)
        layout = np.dtype(
            {"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": size}
        ).newbyteorder(order)
        content = start + file.read(size - 4)
        if len(content) == size:
            header = np.frombuffer(content, layout)[0]
            if header["magic"] == magic:
                return header
    raise ValueError(f"{path.name}: cannot be read, no header of a NIfTI file in one piece")


def _voxels(file: Stream, header: Any, path: Path) -> np.ndarray:
    dimensions = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : 1 + max(0, min(dimensions, 7))])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    code = int(header["datatype"])
    if len(shape) != 3 or min(shape) < 1 or code not in _TYPES:
        coded = "" if code in _TYPES else f" of data type {code}"
        raise ValueError(f"{path.name}: {shape}{coded}, one scalar 3D image is needed")
    if math.prod(shape) > MAX_VOXELS:
        raise ValueError(f"{path.name}: {shape} voxels, at most {MAX_VOXELS:.0e} are read")
    stored = header.dtype["datatype"].byteorder
    kind = np.dtype(_TYPES[code]).newbyteorder(stored)
    # 4 bytes after the header say whether there are extensions.
    read, start = file.tell(), np.nan_to_num(float(header["vox_offset"]))
    file.read(int(np.clip(start, read + 4, MOST_OFFSET)) - read)
    wanted = math.prod(shape) * kind.itemsize
    content = file.read(wanted)
    if len(content) < wanted:
        raise ValueError(f"{path.name}: cut off, {len(content)} bytes of voxels, not {wanted}")
    array = np.frombuffer(content, kind).reshape(shape, order="F")
    array = array.astype(kind.newbyteorder("="), copy=False)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite([slope, intercept]).all() or slope == 0 or (slope, intercept) == (1, 0):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _affine(header: Any, size: tuple[int, ...], path: Path) -> tuple[np.ndarray, list[str]]:
    scale = np.diag([_MM.get(int(header["xyzt_units"]) & 7, 1.0)] * 3 + [1.0])
    with np.errstate(over="ignore", invalid="ignore"):
        given = {"sform": _sform(header), "qform": _qform(header)}
    codes = {name: int(header[f"{name}_code"]) for name in given}
    forms = {name: scale @ form for name, form in given.items() if codes[name] and is_place(form)}
    notes = [
        f"its {name} (code {codes[name]}) maps no volume and was left aside"
        for name, form in given.items()
        if codes[name] and not is_place(form)
    ]
    if not forms:
        edges = np.diag([*np.abs(header["pixdim"][1:4].astype(float)), 1.0])
        if not is_place(edges):
            raise ValueError(f"{path.name}: its header gives voxels no place and no size")
        return RAS_TO_LPS @ scale @ edges, [*notes, NO_SIDES]
    if len(forms) == 2:
        off_mm = apart_mm(forms["sform"], forms["qform"], size)
        if off_mm > SAME_VOXEL * voxel_mm(forms["sform"]):
            notes.append(
                f"its sform (code {codes['sform']}) and qform (code {codes['qform']}) disagree by "
                f"up to {off_mm:.0f} mm: read by the sform; programs that take the qform show scan "
                "and mask at different places"
            )
    return RAS_TO_LPS @ next(iter(forms.values())), notes


def _sform(header: Any) -> np.ndarray:
    return np.vstack([header["srow"].astype(float), (0, 0, 0, 1)])


def _qform(header: Any) -> np.ndarray:
    """The affine of nifti1.h's method 2."""
    quaternion = header["quatern"].astype(float)
    real = math.sqrt(max(0.0, 1 - float(quaternion @ quaternion)))
    form = np.eye(4)
    form[:3, 3] = header["qoffset"]
    if np.linalg.norm(quaternion) < 2:  # 1, but for rounding
        turn = Rotation.from_quat([*quaternion, real]).as_matrix()
        edges = np.abs(header["pixdim"][1:4].astype(float))
        form[:3, :3] = turn * edges * (1, 1, -1 if header["pixdim"][0] < 0 else 1)
    else:
        form[:3, :3] = np.nan
    return form
