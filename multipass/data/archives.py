"""Zip archives as folders: unpacked while their scans are worked on, and never beyond a bound."""

from __future__ import annotations

import errno
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from multipass.terminal import brief, is_out_of_memory, printable

SUFFIX = ".zip"
# Guards against archives that unpack to absurd sizes; a CT of 1000 slices is 0.5 GB, and packs to
# a half or a third of that.
MAX_BYTES = 40 << 30
MAX_FILES = 200_000
MAX_RATIO, RATIO_FROM_BYTES = 200, 1 << 30
# Archives in archives: a study that was zipped, sent and zipped again.
MAX_DEPTH = 3
# Room that stays free for what else needs temporary files.
SPARE_BYTES = 256 << 20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass
class Archive:
    """A zip file, and the folder that it is unpacked to.

    Attributes:
        folder: the same whenever it is unpacked, so that paths in it hold; empty meanwhile.
        uses: how many cases are still to be read from it.
        size: of its files, in bytes, once it has been unpacked.
        damaged: name and reason of each file that could not be unpacked.
    """

    path: Path
    folder: Path
    uses: int = 0
    size: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)
    is_unpacked: bool = False

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Unpacked until the block ends, and longer while there are more cases in it.

        Raises:
            ValueError, OSError: it cannot be unpacked.
        """
        self.unpack()
        try:
            yield
        finally:
            self.uses -= 1
            if self.uses <= 0:
                self.clear()

    def unpack(self) -> None:
        """Unpacks it unless it is, and archives in it to folders of their names.

        Raises:
            ValueError: it is no zip file, too large, or nested too deep.
            OSError: the disk is full.
        """
        if self.is_unpacked:
            return
        self.size = 0
        self.damaged.clear()
        try:
            self._unpack(self.path, self.folder, 1)
        except BaseException:
            self.clear()
            raise
        self.is_unpacked = True

    def clear(self) -> None:
        """Removes what was unpacked."""
        self.is_unpacked = False
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def left_out(self) -> list[str]:
        """A sentence on the files that could not be unpacked, if any."""
        if not self.damaged:
            return []
        name, why = self.damaged[0]
        files = "1 file" if len(self.damaged) == 1 else f"{len(self.damaged)} files"
        return [f"{files} of {printable(self.path.name)} could not be unpacked ({name}: {why})"]

    def inside(self, path: Path) -> Path:
        """Where a path in the folder lies in the archive: study.zip/folder/file."""
        return self.path.resolve() / path.relative_to(self.folder)

    def _unpack(self, path: Path, folder: Path, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"archives in archives, more than {MAX_DEPTH} deep")
        try:
            archive = zipfile.ZipFile(path)
        except OSError:
            raise
        except Exception as error:  # a damaged directory raises many kinds
            raise ValueError(f"no zip file, or damaged: {_reason(error)}") from None
        with archive:
            members = [item for item in archive.infolist() if not item.filename.endswith("/")]
            self._check_size(members)
            for item in members:
                self._extract(archive, item, folder)
        inner = [p for p in folder.rglob("*") if p.suffix.lower() == SUFFIX and p.is_file()]
        for path in sorted(inner):
            self._unpack_inner(path, depth)

    def _check_size(self, members: Sequence[zipfile.ZipInfo]) -> None:
        size = sum(item.file_size for item in members)
        packed = sum(item.compress_size for item in members)
        self.size += size
        would = f"it would unpack to {self.size / 2**30:.1f} GiB"
        if len(members) > MAX_FILES:
            raise ValueError(f"{len(members)} files, at most {MAX_FILES} are unpacked")
        if self.size > MAX_BYTES:
            raise ValueError(f"{would}, at most {MAX_BYTES >> 30} GiB are unpacked")
        if size > RATIO_FROM_BYTES and size > MAX_RATIO * packed:
            raise ValueError(f"{would}, {size // max(packed, 1)} times its size, as no scan does")
        free = shutil.disk_usage(self.folder).free
        if size + SPARE_BYTES > free:
            raise ValueError(
                f"{would}, and {self.folder.parent} has {free / 2**30:.1f} GiB free: make room, or "
                "let the variable TMPDIR (with --cluster: --output) name a larger folder"
            )

    def _extract(self, archive: zipfile.ZipFile, item: zipfile.ZipInfo, folder: Path) -> None:
        """Writes one member; one that is damaged is noted and left out, and the others go on."""
        inside = [part for part in PurePosixPath(item.filename).parts if part not in ("/", "..")]
        target = folder.joinpath(*inside)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(item) as source, target.open("xb") as file:
                try:
                    shutil.copyfileobj(source, file)
                except BaseException:
                    target.unlink()
                    raise
        except Exception as error:  # zlib, lzma, bz2 and encryption have kinds of their own
            if is_out_of_memory(error) or getattr(error, "errno", None) in _DISK_FULL:
                raise
            is_second = isinstance(error, FileExistsError)
            reason = "a second file of this name" if is_second else _reason(error)
            self.damaged.append((brief(printable(item.filename)), reason))

    def _unpack_inner(self, path: Path, depth: int) -> None:
        """A folder with its files in the place of an archive in the archive."""
        folder = path.with_suffix("")
        while folder.exists():
            folder = folder.with_name(f"{folder.name}_")
        folder.mkdir()
        try:
            self._unpack(path, folder, depth + 1)
        except ValueError as error:
            name = brief(path.relative_to(self.folder).as_posix())
            self.damaged.append((name, str(error)))
        path.unlink()


def _reason(error: Exception) -> str:
    return brief(str(error)) or type(error).__name__
