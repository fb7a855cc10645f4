"""What the three scripts have in common on their command lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from multipass import __version__
from multipass.files import ROOT
from multipass.model.network import FILTERS
from multipass.terminal import THREADS
from multipass.training.processes import start_processes

SCRIPTS = ["processing.py", "training.py", "inference_pipeline/run_inference.py"]
# Before any of these is imported, limits of threads are set.
HEAVY = {"torch", "numpy", "SimpleITK"}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def as_main(name: str, *arguments: str) -> str:
    return (
        "import runpy, sys\n"
        f"sys.argv = [{str(ROOT / name)!r}, *{arguments!r}]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    code = end.code\n"
    )


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_do_not_wait_for_torch(name, argument):
    late = {"torch"} if name == "processing.py" else HEAVY
    done = run(as_main(name, argument) + f"assert not code and not {late} & set(sys.modules)\n")
    assert done.returncode == 0, done.stderr
    if argument == "--version":
        assert done.stdout == f"{Path(name).name} {__version__}\n"
        return
    more = [] if name == "processing.py" else ["--device", "--threads"]
    for option in ["-i", "-o", *more]:
        assert option in done.stdout.replace(",", " ").split()


def test_training_sets_threads_before_torch_counts_them(tmp_path):
    arguments = ["-i", str(tmp_path / "none"), "-o", str(tmp_path), "--threads", "1"]
    check = "import torch\nassert torch.get_num_threads() == 1, torch.get_num_threads()\n"
    check += "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE' and 'none' in code, code\n"
    done = run(
        f"import os\nfor name in ('OMP_WAIT_POLICY', *{THREADS!r}):\n    os.environ.pop(name, 0)\n"
        + as_main("training.py", *arguments)
        + check
    )
    assert done.returncode == 0, done.stderr


def test_training_has_the_networks_filters():
    done = run(f"import training\nassert training.Options().filters == {FILTERS}\n")
    assert done.returncode == 0, done.stderr


def test_where_training_computes(monkeypatch):
    assert start_processes("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device tpu: auto, cpu"):
        start_processes("tpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert start_processes("cuda").index == start_processes("auto").index == 1
    assert start_processes("cuda:0").index == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="cuda:0: one for all"):
        start_processes("cuda:0")
