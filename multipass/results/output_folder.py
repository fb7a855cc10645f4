"""The folder of all results: one folder a case, one case a scan, whatever the scans are called."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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


class OutputFolder:
    """The results that there are, and where those of a scan go.

    Attributes:
        reports: of the cases by their folders' names, of this and of earlier runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reports: dict[str, dict[str, Any]] = {}
        self._of_source: dict[tuple[str, str], str] = {}
        for folder in sorted(path.iterdir()):
            report = read_report(folder) if not folder.name.startswith(".") else None
            if report is not None:
                self.reports[folder.name] = {**report, "case": folder.name}
                if report["case"] == folder.name:  # else someone has put it aside
                    self._of_source[_source(report)] = folder.name

    def name_for(self, case: Case, sha256: str) -> str:
        """The name of the scan's folder: where a result of it lies already, by its place or, if it
        has moved, by its content; else one that no other scan has here."""
        if source_of(case) in self._of_source:
            return self._of_source[source_of(case)]
        taken = {name.lower(): report for name, report in self.reports.items()}
        for name in _names(case):
            report = taken.get(name.lower())
            if report is None or report["identity"].get("input_sha256") == sha256:
                return name
        raise AssertionError("there is always another number")

    def called(self, case: Case) -> str:
        """A case without a result here: by its name, and by its path if a result of that name is
        another scan's."""
        report = self.reports.get(case.name)
        is_other = report is not None and _source(report) != source_of(case)
        return f"{case.name} ({printable(case.source)})" if is_other else case.name

    def finished(self, name: str, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The report of a case of this identity, if all that was wanted of it is there, whole."""
        report = self.reports.get(name)
        return report if is_finished(self.path / name, report, identity) else None

    def check(self, name: str) -> None:
        """Raise ValueError if results cannot go there."""
        folder = self.path / name
        if folder.exists() and name not in self.reports:
            raise ValueError(f"{left_alone(folder)}: move it, or give another --output")

    @contextmanager
    def renewed(
        self, case: Case, sha256: str, wanted: Sequence[str]
    ) -> Iterator[tuple[Path, list[str]]]:
        """A temporary folder that becomes that of the case when the block ends without an error.

        What this program did not write stays in it. Where the scan's file has been replaced by
        another scan, the result of the one before is kept under another name.

        Args:
            case: named by `name_for`.

        Yields:
            The folder, and sentences on what was kept.
        """
        final, report = self.path / case.name, self.reports.get(case.name)
        aside = None
        if report is not None and not _is_of(report, case, sha256):
            aside = next(p for p in _numbered(f"{case.name}_earlier") if not self._exists(p))
        with replacing_folder(final) as temporary:
            hold_room(temporary)
            if aside is None:
                notes = keep_others(final, temporary, report, wanted)
            else:
                notes = [f"the scan of this name has changed: earlier result kept in {aside}"]
            yield temporary, notes
            if aside is not None:
                final.rename(self.path / aside)
                self.reports[aside] = {**(report or {}), "case": aside}

    def _exists(self, name: str) -> bool:
        return (self.path / name).exists()


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
