"""Seeded damage of a file: its bytes, its DICOM tags or its structure; for benchmarks/fuzz.py."""

from __future__ import annotations

import io
import pickle
import shutil
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from multipass.data.prepare import SEG_FOLDER  # noqa: E402

LABEL_MAP = "label_map.dcm"
NIFTI_HEADER, NIFTI_SIZES = 352, 40
# Value representations whose length has four bytes, after two that are empty (PS3.5 7.1.2).
LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
UNDEFINED = 0xFFFFFFFF
DEPTHS = (3, 30, 300, 3000)
# ReferencedSeriesSequence, SourceImageSequence, SegmentSequence, SharedFunctionalGroupsSequence,
# and one that nobody knows.
SEQUENCES = (0x00081115, 0x00082112, 0x00620002, 0x52009229, 0x00091001)
EXTREMES = {
    "US": [0, 1, 65535],
    "SS": [-32768, 0, 32767],
    "IS": ["0", "-1", "2147483647"],
    "DS": ["0", "-1", "1e30", "1e-30"],
    "FD": [0.0, -1.0, 1e300],
    "CS": ["", "LOCALIZER", "MR", "FRACTIONAL"],
    "UI": ["", "1.2.3", "1.2.840.10008.5.1.4.1.1.4"],
    "LO": ["", "../../escape", "\\..\\x"],
    "SH": ["", "../../x"],
    "PN": ["../../evil"],
    "UL": [0, 4294967295],
}
Damage = Callable[[Path, np.random.Generator], str]


def damage_file(path: Path, generator: np.random.Generator) -> str:
    """Damages a file and says how. What has a new structure may have its bytes damaged, too."""
    plain: list[Damage] = [flip_bits, cut_off, overwrite]
    structural: list[Damage] = [*STRUCTURAL[path.suffix]]
    structural += [to_label_map] if path.parent.name == SEG_FOLDER else []
    tags: list[Damage] = [edit_tag, edit_tag, drop_tag] if path.suffix == ".dcm" else []
    chosen = one_of(generator, [*plain, *tags, *structural])
    said = f"{chosen.__name__}({chosen(path, generator)})"
    if chosen in structural and generator.random() < 0.3:
        more = one_of(generator, plain)
        said += f" {more.__name__}({more(path, generator)})"
    return said


def one_of(generator: np.random.Generator, choices):
    return choices[int(generator.integers(len(choices)))]


# ----------------------------------------------------------------------- bytes


def flip_bits(path: Path, generator: np.random.Generator) -> str:
    """A few bits, most of them in the first 2 kB, where the header is."""
    data = bytearray(path.read_bytes())
    places = []
    for _ in range(int(generator.integers(1, 5))):
        header = NIFTI_HEADER if path.suffix == ".nii" else 2048
        end = min(len(data), header) if generator.random() < 0.8 else len(data)
        place = int(generator.integers(end))
        data[place] ^= 1 << int(generator.integers(8))
        places.append(place)
    path.write_bytes(data)
    return str(places)


def cut_off(path: Path, generator: np.random.Generator) -> str:
    data = path.read_bytes()
    end = int(generator.integers(len(data)))
    path.write_bytes(data[:end])
    return str(end)


def overwrite(path: Path, generator: np.random.Generator) -> str:
    """A run of random or extreme bytes."""
    data = bytearray(path.read_bytes())
    start = int(generator.integers(min(len(data), 4096)))
    length = int(generator.integers(1, 64))
    data[start : start + length] = one_of(
        generator, [generator.bytes(length), b"\xff" * length, b"\x00" * length]
    )
    path.write_bytes(data)
    return f"{start}+{length}"


# ------------------------------------------------------------------------ tags


def all_elements(dataset: Dataset) -> list[tuple[Dataset, pydicom.DataElement]]:
    elements = []
    for element in dataset:
        elements.append((dataset, element))
        if element.VR == "SQ":
            for item in element.value:
                elements += all_elements(item)
    return elements


def edit_tag(path: Path, generator: np.random.Generator) -> str:
    dataset = pydicom.dcmread(path)
    elements = [e for _, e in all_elements(dataset) if e.VR in EXTREMES]
    element = one_of(generator, elements)
    value = one_of(generator, EXTREMES[element.VR])
    if element.VM > 1:
        items = list(element.value)
        items[int(generator.integers(len(items)))] = value
        element.value = items
    else:
        element.value = value
    save(dataset, path)
    return f"{element.keyword}={value!r}"


def drop_tag(path: Path, generator: np.random.Generator) -> str:
    dataset = pydicom.dcmread(path)
    owner, element = one_of(generator, all_elements(dataset))
    del owner[element.tag]
    save(dataset, path)
    return str(element.keyword)


def save(dataset: Dataset, path: Path) -> None:
    """As written as it can be: an edit that pydicom will not write is left undone."""
    try:
        dataset.save_as(path.with_suffix(".new"))
    except (ValueError, TypeError, AttributeError, OverflowError, struct.error, KeyError):
        path.with_suffix(".new").unlink(missing_ok=True)
        return
    path.with_suffix(".new").replace(path)


# ------------------------------------------------------------ structure: DICOM


def nest(path: Path, generator: np.random.Generator) -> str:
    """A sequence in a sequence, up to 3,000 deep, of known or unknown length."""
    depth, tag = one_of(generator, DEPTHS), one_of(generator, SEQUENCES)
    is_open = bool(generator.random() < 0.5)
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + b"SQ\0\0"
    value = b""
    for _ in range(depth):
        length = UNDEFINED if is_open else len(value)
        item = ITEM + struct.pack("<I", length) + value + (ITEM_END + bytes(4)) * is_open
        length = UNDEFINED if is_open else len(item)
        value = start + struct.pack("<I", length) + item + (SEQUENCE_END + bytes(4)) * is_open
    data = path.read_bytes()
    at, _ = one_of(generator, raw_elements(path))
    path.write_bytes(data[:at] + value + data[at:])
    return f"{tag:08X} x {depth} at {at}"


def overlong(path: Path, generator: np.random.Generator) -> str:
    """An element that is said to be longer than the file."""
    data = bytearray(path.read_bytes())
    at, vr = one_of(generator, raw_elements(path))
    if vr in LONG:
        rest = len(data) - at - 12
        length = one_of(generator, [rest + 2, 1 << 31, UNDEFINED - 1, UNDEFINED])
        struct.pack_into("<I", data, at + 8, length)
    else:
        length = 0xFFFE
        struct.pack_into("<H", data, at + 6, length)
    path.write_bytes(data)
    return f"{vr} at {at}, {length} bytes"


def raw_elements(path: Path) -> list[tuple[int, str]]:
    """Offset and VR of top-level elements of a file in explicit little endian."""
    dataset = pydicom.dcmread(path)
    raw = [dataset.get_item(tag) for tag in dataset.keys()]  # noqa: SIM118
    return [
        (element.value_tell - (12 if element.VR in LONG else 8), str(element.VR))
        for element in raw
        if isinstance(element, RawDataElement)
    ]


def deflate(path: Path, generator: np.random.Generator) -> str:
    """The deflated transfer syntax (PS3.5 A.5)."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    return ""


def to_label_map(path: Path, generator: np.random.Generator) -> str:
    """The same segmentation as a label map (Supplement 243), with a tag or some bytes damaged."""
    shutil.copyfile(path.parents[3] / LABEL_MAP, path)
    more = one_of(generator, [edit_tag, drop_tag, flip_bits, overlong, deflate])
    return f"{more.__name__}({more(path, generator)})"


# ------------------------------------------------------- structure: other files


def oversize(path: Path, generator: np.random.Generator) -> str:
    """A NIfTI header that announces more voxels than there are."""
    data = bytearray(path.read_bytes())
    axis = int(generator.integers(8))
    size = one_of(generator, [0, -1, 2, 1000, 32767])
    struct.pack_into("<h", data, NIFTI_SIZES + 2 * axis, size)
    path.write_bytes(data)
    return f"dim[{axis}]={size}"


def nest_pickle(path: Path, generator: np.random.Generator) -> str:
    """One of the entries in tuples up to 3,000 deep."""
    content = pickle.loads(path.read_bytes())
    depth, key = one_of(generator, DEPTHS), one_of(generator, sorted(content))
    # Before the last opcodes, which make the entries a dict: one more, None in tuples. Protocol 3
    # has no frames.
    start, end = pickle.dumps(content, 3)[:-2], b"u."
    name = b"X" + struct.pack("<I", len(key)) + key.encode()
    path.write_bytes(start + name + b"N" + b"\x85" * depth + end)
    return f"{key} x {depth}"


def zip_again(path: Path, generator: np.random.Generator) -> str:
    """An archive in an archive, up to six deep."""
    depth = int(generator.integers(1, 6))
    zip_deep(path, depth)
    return str(depth)


def zip_deep(path: Path, depth: int) -> None:
    for level in range(depth):
        content = path.read_bytes()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"inner_{level}/{path.name}", content)


def misdescribe(path: Path, generator: np.random.Generator) -> str:
    """A directory of the archive with another size, name or flag of a member than it has."""
    data = bytearray(path.read_bytes())
    places = [n for n in range(len(data) - 46) if data[n : n + 4] == b"PK\1\2"]
    at = one_of(generator, places)
    # Flags, compression, CRC, packed size, size, length of the name, offset (APPNOTE 4.3.12).
    offset, kind = one_of(
        generator,
        [(8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H"), (42, "<I")],
    )
    top = (1 << 8 * struct.calcsize(kind)) - 1
    value = one_of(generator, [0, 1, 99, top // 2, top])
    struct.pack_into(kind, data, at + offset, value)
    path.write_bytes(data)
    return f"{offset}={value} at {at}"


def hostile_names(path: Path, generator: np.random.Generator) -> str:
    """Members that would lie outside of the folder, or twice at one place."""
    name = one_of(generator, ["../x.dcm", "/tmp/x.dcm", "a\0b.dcm", "x" * 300, "a/b", "a", ""])
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a second file of one name
        for _ in range(2):
            archive.writestr(zipfile.ZipInfo(name), b"text")
    path.write_bytes(content.getvalue())
    return repr(name[:20])


STRUCTURAL: dict[str, tuple[Damage, ...]] = {
    ".dcm": (nest, overlong, deflate),
    ".nii": (oversize,),
    ".pkl": (nest_pickle,),
    ".zip": (zip_again, misdescribe, hostile_names),
}
