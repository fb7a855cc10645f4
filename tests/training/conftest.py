"""What tests of training.py share: the script as a module, and three patients of balls."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from balls import write_cohort

SCRIPT = Path(__file__).resolve().parents[2] / "training.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """training.py; a module of its own for each file of tests, which replace parts of it."""
    spec = importlib.util.spec_from_file_location("training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """complete_dataset.pkl; read only."""
    return write_cohort(tmp_path_factory.mktemp("processed"), 3)
