"""The programs of benchmarks/, which are no package."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def program(monkeypatch):
    """Imports one by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module
