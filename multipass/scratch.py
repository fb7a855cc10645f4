"""Temporary folders, which what comes after a killed run removes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from multipass.claims import LOCK_NAME, lock

PREFIX = "multipass_"


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """An empty folder, removed when the block ends.

    It is locked meanwhile: the first one that a later process asks for removes those that killed
    processes left.

    Args:
        parent: where; among the system's temporary files if None.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_abandoned(parent)
    with TemporaryDirectory(prefix=PREFIX, dir=parent) as name:
        folder = Path(name)
        # The lock gets its name when it is held: a folder whose lock is free has no owner.
        unnamed = folder / f"{LOCK_NAME}.new"
        descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if lock(descriptor):
                unnamed.rename(folder / LOCK_NAME)
            inner = folder / "files"
            inner.mkdir()
            yield inner
        finally:
            os.close(descriptor)


@cache
def remove_abandoned(temporary: Path) -> None:
    """Removes this product's temporary folders whose process has ended; once a process."""
    for folder in temporary.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if lock(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def in_utf8(path: Path) -> Iterator[str]:
    """A file's path for SimpleITK, which ends the process at a name that is not UTF-8: then that of
    a link to it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with scratch_folder() as folder:
            suffixes = "".join(path.suffixes[-2:])
            link = folder / f"file{suffixes.encode('ascii', 'replace').decode()}"
            link.symlink_to(path.resolve())
            yield str(link)
    else:
        yield str(path)
