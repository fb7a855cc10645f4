"""Files: written whole or not at all, found, and known by their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What pages are made of is code, too.
CODE = (".py", ".html", ".css", ".js")
_CHUNK_BYTES = 1 << 22
# 50 letters of at most 4 bytes, and what is added, stay below the 255 bytes of a file's name.
_NAME_LETTERS = 50
TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{16}\.(?P<kind>partial|aside)", re.DOTALL)


# --------------------------------------------------------------------- writing


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, path.name[:_NAME_LETTERS], "partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends without an error.

    A folder of that name is renamed aside, and removed after the new one has taken its place; if
    that fails, it gets its name back.
    """
    path = Path(path)
    temporary = _beside(path, path.name[:_NAME_LETTERS], "partial")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, path: Path) -> None:
    aside = _beside(path, path.name, "aside")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
    try:
        new.rename(path)
    except BaseException:
        if aside.exists():
            aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _beside(path: Path, name: str, kind: str) -> Path:
    return path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(8)}.{kind}")


# --------------------------------------------------------- finding and hashing


def files_below(root: Path, refused: Callable[[OSError], None] | None = None) -> list[Path]:
    """The files below a folder that are not hidden, in order; links to folders are followed once.
    Pipes, sockets and devices are left out: reading them would wait for ever.

    Args:
        refused: is told of folders that cannot be listed.
    """
    files: list[Path] = []
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, onerror=refused, followlinks=True):
        if os.path.realpath(folder) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
    return [path for path in files if path.is_file() or not path.exists()]


def sha256_of(paths: Iterable[Path]) -> str:
    """Over the files' contents in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


@cache
def code_sha256() -> str:
    """Of the code that makes results, in all rooms: results of other code are made again. The same
    where the package is installed and in the repository."""
    code = (path for kind in CODE for path in (ROOT / "multipass").rglob(f"*{kind}"))
    return sha256_of(sorted(code))
