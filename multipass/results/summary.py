"""What became of the cases of a run: summary.csv, index.html, and the last lines printed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multipass.evaluation.tables import score_lines, with_nan, write_summary
from multipass.results.page import write_index


@dataclass
class Outcome:
    """Reports of the finished cases, and failures with their reason."""

    reports: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def conclude(self, output: Path, page: bool) -> None:
        """Writes summary.csv and, if wanted, index.html; prints scores, flags and failures."""
        rows = []
        for report in self.reports:
            of_case = {"case": report["case"], "flags": "; ".join(report["flags"])}
            rows += [with_nan(row) | of_case for row in report["scores"] or [{}]]
        if rows:
            write_summary(output / "summary.csv", rows)
        if page and (self.reports or self.failed):
            write_index(output, self.reports, self.failed)
        for line in score_lines(rows):
            print(line)
        for report in self.reports:
            for flag in report["flags"]:
                print(f"Flag: {report['case']}: {flag}")
        for name, reason in self.failed:
            print(f"Failed: {name}: {reason}", file=sys.stderr)
        count = len(self.reports)
        print(f"{count} {'case' if count == 1 else 'cases'} segmented, results in {output}")
