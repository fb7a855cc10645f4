from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from multipass.files import ROOT

# Tests may run where Ctrl-C is ignored, as jobs in the background are.
heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
CTRL_C = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    "script", ["processing.py", "training.py", "inference_pipeline/run_inference.py"]
)
def test_ctrl_c_while_modules_load_gives_no_traceback(tmp_path, script):
    for module in ("SimpleITK", "torch"):
        (tmp_path / f"{module}.py").write_text(CTRL_C)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / script)]
    run = subprocess.run(
        command, env=environment, capture_output=True, timeout=60, check=False, preexec_fn=heeding
    )
    assert (run.returncode, run.stderr) == (-signal.SIGINT, b"")


def test_a_run_that_ignores_ctrl_c_goes_on_ignoring_it():
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from multipass.startup import *; end_silently(); raise_again()\n"
        "signal.raise_signal(signal.SIGINT); print('whole')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == "whole\n"


def test_ctrl_c_is_raised_in_the_work_itself():
    code = (
        "import signal; from multipass.startup import *; end_silently(); raise_again()\n"
        "try: signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt: print('stopped')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=True, preexec_fn=heeding,
    )  # fmt: skip
    assert run.stdout == "stopped\n"
