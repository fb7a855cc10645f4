"""Reading pickles of builtins and numpy arrays of numbers: without code, in bounded work.

A pickle can name any function, and a few bytes of it can unfold to any size: a list of twice the
same list, thirty times over, has a billion elements. So the opcodes are weighed first, without
being carried out; then an unpickler that admits only what rebuilds numpy arrays carries them out.
"""

from __future__ import annotations

import os
import pickle
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# Kinds of numpy numbers: bool, signed, unsigned, float. No objects, no strings, no records.
NUMBER_KINDS = "biuf"
# Memo slots far beyond what any file needs exist only to make the unpickler reserve memory.
MAX_MEMO = 1 << 20
# Without references a pickle unfolds to less than its own size. Pickles of other programs refer
# to strings and dtypes that they hold once.
UNFOLDED_PER_BYTE, UNFOLDED_FREE = 4, 1 << 20
MAX_DEPTH = 50
MAX_TEXT = 100


def read_pickle(path: Path) -> Any:
    """Read a pickle of builtins and numpy arrays of numbers, and nothing else.

    Raises:
        ValueError: the file is damaged, would run code (the function is named), or would unfold to
            far more than its size.
        OSError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            _weigh(_Source(file))
            file.seek(0)
            return _plain(_NumbersOnlyUnpickler(file).load())
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused, {error}") from None
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{path}: not a patient file or damaged ({_short(error)})") from None


def _short(value: object) -> str:
    return " ".join(str(value).split())[:MAX_TEXT]


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.view(np.ndarray)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


# ------------------------------------------------------------- weighing opcodes

_FILLING = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
_STORING = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_FETCHING = {"GET", "BINGET", "LONG_BINGET"}
# No pickler needs them for data without circles. Sets are hashed, and nothing here is a set.
_REFUSED = {
    *("DUP", "POP", "POP_MARK", "EMPTY_SET", "FROZENSET", "ADDITEMS"),
    *("NEXT_BUFFER", "READONLY_BUFFER"),
}
_FIRST_KEY = {"DICT": 0, "SETITEM": 1, "SETITEMS": 1}  # its place among the operands


class _Source:
    """A file to read opcodes from that refuses lengths beyond its end instead of reserving them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        if count > self.size - self._file.tell():
            raise ValueError("it ends too early")
        return self._file.read(count)


class _Weight:
    """A value on the unpickler's stack: how many bytes and values it unfolds to, how deep it is
    nested, and whether it stands in the memo for more than one place."""

    def __init__(self, size: int, parts: Iterable[_Weight], is_text: bool = False) -> None:
        self.size, self.depth, self.is_text, self.is_fetched = size, 1, is_text, False
        self.add(parts)

    def add(self, parts: Iterable[_Weight]) -> None:
        for part in parts:
            self.size += part.size
            self.depth = max(self.depth, 1 + part.depth)


def _weigh(source: _Source) -> None:
    """Raise UnpicklingError unless the pickle in a file unfolds to a size and a depth that are in
    proportion to the file, and all keys of its dicts are strings."""
    limit = UNFOLDED_FREE + UNFOLDED_PER_BYTE * source.size
    stacks: list[list[_Weight]] = [[]]
    memo: dict[int, _Weight] = {}
    for opcode, argument, _ in pickletools.genops(source):  # type: ignore[arg-type]
        if opcode.name in _REFUSED:
            raise pickle.UnpicklingError(f"it uses the opcode {opcode.name}")
        if opcode.name in _STORING:
            place = len(memo) if opcode.name == "MEMOIZE" else int(argument or 0)
            if place > MAX_MEMO:
                raise pickle.UnpicklingError("it reserves an absurd amount of memory")
            memo[place] = stacks[-1][-1]
        elif opcode.name == "MARK":
            stacks.append([])
        elif opcode.name in _FETCHING:
            memo[int(argument or 0)].is_fetched = True
            stacks[-1].append(memo[int(argument or 0)])
        else:
            made = _made(opcode, argument, stacks)
            if made.size > limit:
                raise pickle.UnpicklingError("it unfolds to far more than its size")
            if made.depth > MAX_DEPTH:
                raise pickle.UnpicklingError(f"it is nested more than {MAX_DEPTH} deep")


def _made(opcode: pickletools.OpcodeInfo, argument: Any, stacks: list[list[_Weight]]) -> _Weight:
    """Takes an opcode's operands from the stack and puts there what it makes of them."""
    takes = opcode.stack_before
    marked = pickletools.markobject in takes
    operands = stacks.pop() if marked else []
    fixed = takes.index(pickletools.markobject) if marked else len(takes)
    operands = [stacks[-1].pop() for _ in range(fixed)][::-1] + operands
    if not all(key.is_text for key in operands[_FIRST_KEY.get(opcode.name, len(operands)) :: 2]):
        raise pickle.UnpicklingError("it holds a dict whose keys are not strings")
    if opcode.name in _FILLING:
        made, *parts = operands
        if made.is_fetched:
            raise pickle.UnpicklingError("it changes a value that stands in several places")
        made.add(parts)
    else:
        text = opcode.name.endswith(("UNICODE", "UNICODE8", "STRING"))
        length = len(argument) if isinstance(argument, (bytes, bytearray, str)) else 0
        made = _Weight(1 + length, operands, text)
    stacks[-1] += [made] * len(opcode.stack_after)
    return made


# ----------------------------------------------------------------- unpickling


class _Dtype:
    """Stands for numpy.dtype while unpickling; becomes a dtype only if it is one of numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        dtype = np.dtype(code) if isinstance(code, str) and "," not in code else np.dtype("O")
        if dtype.kind not in NUMBER_KINDS or dtype.shape:
            what = repr(code[:MAX_TEXT]) if isinstance(code, str) else "objects"
            raise pickle.UnpicklingError(f"it holds an array of {what}, not of numbers")
        self.dtype = dtype

    def __setstate__(self, state: tuple) -> None:
        if len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it holds an array of records, not of numbers")
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array(np.ndarray):
    """Stands for numpy.ndarray while unpickling, for arrays saved by `_reconstruct` and a state."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        array = _from_buffer(raw, dtype, shape, "F" if fortran else "C")
        checked: Any = (1, array.shape, array.dtype, bool(fortran), bytes(raw))
        super().__setstate__(checked)


def _from_buffer(buffer: bytes, dtype: _Dtype, shape: tuple, order: Any) -> np.ndarray:
    if not isinstance(buffer, (bytes, bytearray)):  # of a number, bytearray makes so many zeros
        raise pickle.UnpicklingError("it holds an array whose values are no bytes")
    return np.frombuffer(bytearray(buffer), dtype.dtype).reshape(shape, order=order)


def _reconstruct(kind: str, shape: tuple, code: bytes) -> np.ndarray:
    if kind is not _NDARRAY or shape != (0,):
        raise pickle.UnpicklingError("it rebuilds something else than a numpy array")
    return np.ndarray.__new__(_Array, (0,), np.uint8)


# What `_reconstruct` is told to make; not the class itself, which a pickle could call.
_NDARRAY = "numpy.ndarray"
_ADMITTED = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _NDARRAY,
    **{(f"{core}.numeric", "_frombuffer"): _from_buffer for core in ("numpy._core", "numpy.core")},
    **{
        (f"{core}.multiarray", "_reconstruct"): _reconstruct
        for core in ("numpy._core", "numpy.core")
    },
}


class _NumbersOnlyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it would call {_short(f'{module}.{name}')}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside itself")
