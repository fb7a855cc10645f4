"""Files: written whole or not at all, kept from other runs, found, and known by their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What pages are made of is code, too.
CODE = (".py", ".html", ".css", ".js")
LOCK_NAME = ".multipass.lock"
_CHUNK_BYTES = 1 << 22
# 50 letters of at most 4 bytes, and what is added, stay below the 255 bytes of a file's name.
_NAME_LETTERS = 50
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{16}\.(?P<kind>partial|aside)", re.DOTALL)


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


# --------------------------------------------------------- one run at a time


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps other runs of this program from writing to it until the block ends.

    The lock is the operating system's and ends with the process, however that ends; on a network
    file system it holds between hosts. Where the file system has no locks, no run is kept out.
    What a killed run left half written is removed, and what it had put aside gets its name back.

    Raises:
        ValueError: the folder cannot be written to, or another run writes to it.
    """
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, is_locked = _claim(path)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{folder} is no folder, or lies in none: name another one") from None
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror})") from None
    try:
        if is_locked:
            _clear_up(folder)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _claim(path: Path) -> tuple[int, bool]:
    """The open lock file, and whether it is locked; False where there are no locks.

    Raises:
        ValueError: another run has locked it.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_locked = lock(descriptor)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace") or "its process is not known"
            os.close(descriptor)
            raise ValueError(
                f"another run is writing to {path.parent} ({holder}); wait for it or give another "
                "--output"
            ) from None
        if not is_locked or _is_the_file(descriptor, path):
            with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
                os.truncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return descriptor, is_locked
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Whether the file is locked by this process from here on; False where there are no locks.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _is_the_file(descriptor: int, path: Path) -> bool:
    """False if the run that held the lock has ended in between and removed its file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _clear_up(folder: Path) -> None:
    """Only while the folder is locked: then no run is at work on its temporary files."""
    for path in list(folder.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        final = folder / match["name"]
        with contextlib.suppress(OSError):
            if match["kind"] == "aside" and not final.exists():
                path.rename(final)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def claimed_otherwise(path: Path, facts: Mapping[str, object]) -> tuple[str, object] | None:
    """Claims a folder for content that is made with these facts, if nothing has before: writes them
    to a file, so that content of others is not mixed in.

    Args:
        facts: JSON values.

    Returns:
        The first fact that the claim has otherwise, with its value there (None where it has none);
        None if all agree.
    """
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    before = json.loads(path.read_text(encoding="utf-8"))
    differing = (key for key in {**before, **facts} if before.get(key) != facts.get(key))
    return next(((key, before.get(key)) for key in differing), None)


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
    """Of the code that makes results, in all rooms: results of other code are made again."""
    code = [path for kind in CODE for path in (ROOT / "multipass").rglob(f"*{kind}")]
    return sha256_of(sorted([*code, *(ROOT / "inference_pipeline").rglob("*.py")]))
