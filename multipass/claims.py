"""One run at a time in a folder of results, and whose results a folder holds."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from multipass.files import TEMPORARY, replacing

LOCK_NAME = ".multipass.lock"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps other runs of this program from writing to it until the block ends.

    The lock is the operating system's and ends with the process, however that ends; on a network
    file system it holds between hosts. Where the file system has no locks, no run is kept out.
    What a killed run or process left half written is removed, before and after, and what it had put
    aside gets its name back.

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
            if is_locked:
                _clear_up(folder)
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


def holder_of(folder: Path) -> str:
    """The run that writes to a folder, as its lock names it; "" where none does."""
    try:
        return (folder / LOCK_NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _is_the_file(descriptor: int, path: Path) -> bool:
    """False if the run that held the lock has ended in between and removed its file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _clear_up(folder: Path) -> None:
    """Only while the folder is locked: then no run is at work on its temporary files."""
    for path in list(folder.iterdir()):
        match = TEMPORARY.fullmatch(path.name)
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
