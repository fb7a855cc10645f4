"""What a person reads in a terminal: whole whatever its encoding, and in one sentence."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from tempfile import gettempdir
from typing import Any, TypeVar

import tyro

from multipass import __version__

LONGEST_SENTENCE = 300
LONGEST_PART = 160
# numpy, torch and ITK each have words of their own for it.
_OUT_OF_MEMORY = ("allocate memory", "unable to allocate", "out of memory", "bad_alloc")
# The system's words, in what pydicom makes of its errors, too, and ITK's.
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "Error writing")


def settle_streams() -> None:
    """Lets `print` outlive its terminal: letters that the encoding has not are spelled out, and
    what nobody reads any more (`| head`) or a full disk has no room for is dropped, so that the run
    goes on to its end."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            lasting = io.BufferedWriter(_Lasting(stream.fileno()))
            encoding = stream.encoding
            stream = io.TextIOWrapper(lasting, encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, stream)


class _Lasting(io.RawIOBase):
    """A descriptor that is written to as long as it takes what is written."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError:
            return len(data)


Options = TypeVar("Options")
THREADS = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def short(name: str) -> Any:
    """Another name of an option, in its annotation: `Annotated[Path, short("-i")]`."""
    return tyro.conf.arg(aliases=[name])


def limit_threads(count: int | None) -> None:
    """Tells numpy, torch, ITK and what they start how many threads to take; they listen only when
    they are imported."""
    if count is not None and count < 1:
        sys.exit(f"{Path(sys.argv[0]).name}: --threads {count}: at least one is needed")
    os.environ.update(dict.fromkeys(THREADS, str(count)) if count else {})


def options_of(options: type[Options], description: str, files_option: str) -> Options:
    """The options of a script that starts, see `command_line`; its prints outlive the terminal."""
    settle_streams()
    return command_line(options, description, files_option)


def command_line(options: type[Options], description: str, files_option: str) -> Options:
    """The options of a script from its command line; it ends with a sentence on what is wrong, or
    with the version where that is asked for.

    Args:
        files_option: what names files, for those that are given without it.
    """
    if "--version" in sys.argv[1:]:
        print(f"{Path(sys.argv[0]).name} {__version__}")
        sys.exit()
    parsed, unknown = tyro.cli(options, description=description, return_unknown_args=True)
    if unknown and not any(word.startswith("-") for word in unknown):
        sys.exit(
            f"{Path(sys.argv[0]).name}: {' '.join(map(printable, unknown))}: no option is called "
            f"so; a file or folder is named by {files_option} PATH, and one at a time"
        )
    return tyro.cli(options, description=description) if unknown else parsed


def printable(text: str | Path) -> str:
    """Text with file names' undecodable bytes spelled out, as any file and page can hold it."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def brief(text: str) -> str:
    """What a file says, as part of a sentence: on one line, printable, not too long."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())[:LONGEST_PART]


def one_sentence(error: BaseException) -> str:
    """What happened, for a list of failures; a fault that nobody foresaw is called unexpected."""
    text = printable(" ".join(str(error).split()))[:LONGEST_SENTENCE]
    if is_out_of_memory(error):
        return f"not enough memory ({text})" if text else "not enough memory"
    if any(words in text for words in _DISK_FULL) and not getattr(error, "errno", None):
        return f"no space left for the results or, in {gettempdir()}, for temporary files"
    foreseen = isinstance(error, (ValueError, OSError)) and not isinstance(error, UnicodeError)
    return text if foreseen and text else f"unexpected {type(error).__name__}: {text}"


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _OUT_OF_MEMORY)
