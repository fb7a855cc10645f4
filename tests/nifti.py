"""NIfTI-1 and NIfTI-2 files written field by field, so that any header can be made."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
CODES = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "uint16": 512}

# Offsets of the fields in nifti1.h and nifti2.h.
PLACES: dict[int, dict[str, int]] = {
    1: {
        "size": 0, "dim": 40, "kind": 70, "edges": 76, "offset": 108, "scale": 112, "units": 123,
        "codes": 252, "quatern": 256, "srow": 280, "magic": 344, "end": 348,
    },
    2: {
        "size": 0, "magic": 4, "kind": 12, "dim": 16, "edges": 104, "offset": 168, "scale": 176,
        "codes": 344, "quatern": 352, "srow": 400, "units": 500, "end": 540,
    },
}  # fmt: skip


def write_nifti(
    path: Path,
    array: np.ndarray,
    sform: np.ndarray,
    qform: np.ndarray | None = None,
    codes: tuple[int, int] = (1, 1),
    order: str = "<",
    version: int = 1,
    packed: bool | None = None,
    scaling: tuple[float, float] = (0.0, 0.0),
    units: int = 2,
) -> None:
    """Writes (X, Y, Z) voxels.

    Args:
        sform, qform: (4, 4) in LPS mm; the qform is the sform's by default.
        codes: of the sform and the qform.
        order: "<" or ">".
        packed: by default where the name ends with .gz.
    """
    sform = LPS_TO_RAS @ sform
    turned = sform if qform is None else LPS_TO_RAS @ qform
    edges = np.linalg.norm(turned[:3, :3], axis=0)
    axes = turned[:3, :3] / edges
    factor = 1.0 if np.linalg.det(axes) > 0 else -1.0
    u, _, vt = np.linalg.svd(axes * (1, 1, factor))
    quaternion = Rotation.from_matrix(u @ vt).as_quat(canonical=True)[:3]
    places = PLACES[version]
    head = bytearray(places["end"] + 4)
    real, whole, integer = ("f", "h", "h") if version == 1 else ("d", "q", "i")

    def put(name: str, form: str, *values: float) -> None:
        struct.pack_into(order + form, head, places[name], *values)

    head[places["magic"] : places["magic"] + 4] = b"n+%d\0" % version
    put("size", "i", places["end"])
    put("dim", f"8{whole}", 3, *array.shape, 1, 1, 1, 1)
    put("kind", "hh", CODES[array.dtype.name], array.dtype.itemsize * 8)
    put("edges", f"4{real}", factor, *edges)
    put("offset", "f" if version == 1 else "q", len(head))
    put("scale", f"2{real}", *scaling)
    put("units", "B" if version == 1 else "i", units)
    put("codes", f"2{integer}", codes[1], codes[0])
    put("quatern", f"6{real}", *quaternion, *turned[:3, 3])
    put("srow", f"12{real}", *sform[:3].ravel())
    content = bytes(head) + array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")
    if packed if packed is not None else path.name.endswith(".gz"):
        content = gzip.compress(content, 1)
    path.write_bytes(content)
