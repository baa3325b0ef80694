"""What the wheel brings along: every package of the house, and the files that are no code."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="of Python 3.11 and later")

ROOT = Path(__file__).parents[1]
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {name: ROOT / folder for name, folder in SETUP["package-dir"].items()}
BESIDE = ("hf_reloss.hub_cards", "hf_reloss.trainers")
"""Packages that stand at the top level here."""


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def test_every_package_is_in_the_wheel():
    packages = {package_of(path) for path in (ROOT / "hf_reloss").rglob("__init__.py")}
    assert sorted(SETUP["packages"]) == sorted(packages.union(BESIDE))


def test_what_is_no_code_is_in_the_wheel_but_for_pictures():
    for name in SETUP["packages"]:
        folder = FOLDERS.get(name, ROOT / name.replace(".", "/"))
        wanted = SETUP["package-data"].get(name, [])
        for path in folder.rglob("*") if name in BESIDE else folder.glob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc", ".png"):
                continue
            within = path.relative_to(folder).as_posix()
            assert any(fnmatch(within, pattern) for pattern in wanted), f"{name} leaves out {within}"
