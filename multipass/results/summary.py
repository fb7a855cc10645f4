"""What became of the cases of a run: summary.csv, index.html, and the last lines printed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from multipass.evaluation.tables import score_lines, with_nan, write_summary
from multipass.results.output_folder import OutputFolder
from multipass.results.page import INDEX, write_index
from multipass.terminal import one_sentence, printable

SUMMARY = "summary.csv"


@dataclass
class Outcome:
    """Reports of the cases that this run finished, and what failed with its reason: cases, parts of
    cases, and files that all cases share."""

    reports: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    unwritten: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        return not self.failed and not self.unwritten

    def add(self, name: str, done: dict[str, Any] | Exception) -> str:
        """Counts in what came of a case, its report or what went wrong; what is missing of it is
        told at the end, too. Returns a line about it."""
        if isinstance(done, Exception):
            self.failed.append((name, one_sentence(done)))
            return f"{name}: {self.failed[-1][1]}"
        self.reports.append(done)
        self.failed += [(done["case"], problem) for problem in done["problems"]]
        flags = f" ({'; '.join(done['flags'])})" if done["flags"] else ""
        return f"{done['case']}: {done['seconds']:.1f} s{flags}"

    def attempt(self, name: str, write: Callable[[], object]) -> None:
        """Writes a file that all cases share; if it cannot be written, that is said at the end."""
        try:
            write()
        except Exception as error:  # whatever it is, the others are written still
            self.unwritten.append(f"no {name}: {one_sentence(error)}")

    def conclude(self, output: OutputFolder, page: bool) -> None:
        """Writes summary.csv and, if wanted, index.html, of all cases in the folder; prints scores,
        flags and failures of this run."""
        here = {report["case"] for report in self.reports}
        earlier = set(output.reports) - here
        every = list(output.reports.values())
        if every:
            self.attempt(SUMMARY, lambda: write_summary(output.path / SUMMARY, rows_of(every)))
        if page and (every or self.failed):
            shown = output.path, every, self.failed, earlier
            self.attempt(INDEX, lambda: write_index(*shown))
        for line in score_lines(rows_of(self.reports)):
            print(line)
        for report in self.reports:
            for flag in report["flags"]:
                print(f"Flag: {report['case']}: {flag}")
        for name, reason in self.failed:
            print(f"Failed: {printable(name)}: {reason}", file=sys.stderr)
        for reason in self.unwritten:
            print(f"Failed: {reason}", file=sys.stderr)
        print(f"{self._counts(here)}, results in {printable(output.path)}")
        if earlier:
            print(f"{len(earlier)} more from earlier runs in {SUMMARY}.")

    def _counts(self, here: set[str]) -> str:
        """'23 of 28 cases segmented, 5 failed, 2 with something missing'."""
        failed = {name for name, _ in self.failed} - here
        partly = {name for name, _ in self.failed} & here
        done, total = len(self.reports), len(self.reports) + len(failed)
        of_all = f"{done} of {total}" if failed else str(done)
        line = f"{of_all} {'case' if total == 1 else 'cases'} segmented"
        line += f", {len(failed)} failed" if failed else ""
        return line + (f", {len(partly)} with something missing" if partly else "")


def rows_of(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of summary.csv; one without figures for a case that has none."""
    rows = []
    for report in reports:
        of_case = {
            "case": report["case"],
            "flags": "; ".join(report["flags"]),
            "input": report["input"],
        }
        rows += [with_nan(row) | of_case for row in report["scores"] or [{}]]
    return rows
