"""Small synthetic patients that several tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from multipass.phantom import make_subject, write_subject


@pytest.fixture(scope="session")
def cohort_dir(tmp_path_factory) -> Path:
    """Three small patients in the CTPEL layout; read only."""
    folder = tmp_path_factory.mktemp("data") / "ctpel"
    for index in range(3):
        subject = make_subject(11, index, matrix=64, size="small")
        write_subject(folder / f"Patient_{index + 1:02d}", subject)
    return folder
