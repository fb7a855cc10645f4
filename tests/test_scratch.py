"""Temporary folders: removed at the end, and those of killed runs by the next one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from multipass.scratch import remove_abandoned, scratch_folder

HOLD = """
import sys, time
from multipass.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "scan.nii").write_bytes(b"0" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


def holder(temporary: Path) -> tuple[subprocess.Popen, Path]:
    """A process with a temporary folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip()).parent


def test_what_a_killed_run_leaves_is_removed_and_what_others_use_is_not(tmp_path):
    foreign = tmp_path / "multipass_notes"
    foreign.mkdir()
    living, used = holder(tmp_path)
    killed, left = holder(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert used.exists() and left.exists()
    remove_abandoned.cache_clear()
    try:
        remove_abandoned(tmp_path)
        assert not left.exists()
        assert foreign.exists() and (used / "files" / "scan.nii").exists()
    finally:
        living.kill()
        living.wait()


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_the_folder_is_empty_and_gone_at_the_end(tmp_path, is_elsewhere):
    with scratch_folder(tmp_path if is_elsewhere else None) as folder:
        assert not list(folder.iterdir()) and (tmp_path in folder.parents) == is_elsewhere
        (folder / "a").mkdir()
    assert not folder.parent.exists()
