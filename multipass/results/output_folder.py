"""The folder of all results: one folder a case, one case a scan, whatever the scans are called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from multipass.data.case import RESERVED_NAMES, Case
from multipass.files import replacing_folder
from multipass.results.case_folder import (
    check_utf8,
    hold_room,
    is_finished,
    keep_others,
    left_alone,
    read_report,
)
from multipass.terminal import printable


def check_folders(source: Path, output: Path) -> None:
    """Results among the scans would be taken for scans and references by the next run.

    Raises:
        ValueError: the output folder is the input folder or lies in it; or a name that is
            not UTF-8.
    """
    for name, folder in (("--output", output.absolute()), ("TMPDIR", Path(gettempdir()))):
        check_utf8(name, folder)
    source, output = source.resolve(), output.resolve()
    if source.is_dir() and (output == source or source in output.parents):
        raise ValueError(f"--output {output} lies in --input {source}: name a folder outside of it")


@dataclass(frozen=True)
class Place:
    """Where the results of a scan go.

    Attributes:
        path: the scan's folder.
        aside: where a result that lies there goes if it is another scan's.
    """

    path: Path
    aside: Path | None = None

    @property
    def report(self) -> dict[str, Any] | None:
        """Of the result that lies there, if one does."""
        report = read_report(self.path)
        return None if report is None else {**report, "case": self.path.name}

    def finished(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The report of a result of this identity, if all that was wanted of it is there, whole."""
        report = self.report
        return report if is_finished(self.path, report, identity) else None

    def check(self) -> None:
        """Raise ValueError if results cannot go there."""
        if self.path.exists() and self.report is None:
            raise ValueError(f"{left_alone(self.path)}: move it, or give another --output")

    @contextmanager
    def renewed(
        self, case: Case, sha256: str, wanted: Sequence[str]
    ) -> Iterator[tuple[Path, list[str]]]:
        """A temporary folder that becomes that of the case when the block ends without an error.

        What this program did not write stays in it. Where the scan's file has been replaced by
        another scan, the result of the one before is kept under another name.

        Yields:
            The folder, and sentences on what was kept.
        """
        report, aside = self.report, self.aside
        if report is None or _is_of(report, case, sha256):
            aside = None
        with replacing_folder(self.path) as temporary:
            hold_room(temporary)
            if aside is None:
                notes = keep_others(self.path, temporary, report, wanted)
            else:
                notes = [f"the scan of this name has changed: earlier result kept in {aside.name}"]
            yield temporary, notes
            if aside is not None:
                self.path.rename(aside)


class OutputFolder:
    """The results that there are, and where those of a scan go.

    Attributes:
        reports: of the cases by their folders' names, of this and of earlier runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reports: dict[str, dict[str, Any]] = {}
        self._of_source: dict[tuple[str, str], str] = {}
        self._given: set[str] = set()
        for folder in sorted(path.iterdir()):
            report = read_report(folder) if not folder.name.startswith(".") else None
            if report is not None:
                self.reports[folder.name] = {**report, "case": folder.name}
                if report["case"] == folder.name:  # else someone has put it aside
                    self._of_source[_source(report)] = folder.name

    def place_for(self, case: Case, sha256: Callable[[], str]) -> Place:
        """The scan's folder: where a result of it lies already, by its source or, if it has moved,
        by its content; else one that no other scan has here. Each is given to one scan.

        Args:
            sha256: tells that of the scan's files, where it matters.
        """
        name = self._of_source.get(source_of(case), "")
        if not name or name.lower() in self._given:
            name = self._free_name(case, sha256)
        self._given.add(name.lower())
        path = self.path.absolute() / name  # for workers, which run in other folders
        if name not in self.reports:
            return Place(path)
        aside = next(n for n in _numbered(f"{name}_earlier") if self._is_free(n))
        self._given.add(aside.lower())
        return Place(path, path.with_name(aside))

    def _free_name(self, case: Case, sha256: Callable[[], str]) -> str:
        taken = {name.lower(): report for name, report in self.reports.items()}
        for name in _names(case):
            if name.lower() in self._given:
                continue
            report = taken.get(name.lower())
            if report is None or report["identity"].get("input_sha256") == sha256():
                return name
        raise AssertionError("there is always another number")

    def _is_free(self, name: str) -> bool:
        return name.lower() not in self._given and not (self.path / name).exists()

    def take(self, report: dict[str, Any], place: Place) -> None:
        """Counts in what has become of a place: its result, and an earlier one that is kept."""
        self.reports[place.path.name] = report
        if place.aside is not None and (earlier := read_report(place.aside)) is not None:
            self.reports[place.aside.name] = {**earlier, "case": place.aside.name}

    def called(self, case: Case) -> str:
        """A case without a result here: by its name, and by its path if a result of that name is
        another scan's."""
        report = self.reports.get(case.name)
        is_other = report is not None and _source(report) != source_of(case)
        return f"{case.name} ({printable(case.source)})" if is_other else case.name


def source_of(case: Case) -> tuple[str, str]:
    """What tells a scan from others: where it lies, and the UID of its series."""
    return printable(case.source), case.series_uid


def _source(report: Mapping[str, Any]) -> tuple[str, str]:
    return str(report["input"]), str(report.get("series_uid") or "")


def _is_of(report: Mapping[str, Any], case: Case, sha256: str) -> bool:
    """Whether a report is of this scan: of the same content, or of the same series, slices of which
    may have been added since."""
    if report["identity"].get("input_sha256") == sha256:
        return True
    return bool(case.series_uid) and _source(report) == source_of(case)


def _names(case: Case) -> Iterator[str]:
    yield case.name
    yield from _numbered(case.longer_name)


def _numbered(name: str) -> Iterator[str]:
    if name.lower() not in RESERVED_NAMES:
        yield name
    number = 1
    while True:
        number += 1
        yield f"{name}_{number}"


# ------------------------------------------------------------------------- log


class _Quiet(logging.FileHandler):
    """A log that cannot be written stops nothing and prints no traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        return


@contextmanager
def log_file(log: logging.Logger, path: Path) -> Iterator[None]:
    """Appends the log's lines to a file."""
    handler = _Quiet(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        with suppress(OSError):  # what a full disk did not take is tried once more
            handler.close()
