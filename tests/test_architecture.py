"""The floors of the house: nothing imports what stands above it, and nothing imports in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from transformers import Seq2SeqTrainer, Trainer

from hf_reloss.training.strategies.base import LossStrategy
from hf_reloss.training.strategies.choice import COME_ALONG

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_reloss"
FLOORS = [
    {"ranking", "distributed", "progress"},
    {"metrics"},
    {"losses"},
    {"hub"},
    {"surrogates"},
    {"predictions"},
    {"learning", "adaptive_loss", "decisions"},
    {"training"},
    {"compare", "programs"},
    {"app"},
    {"cli"},
]
"""From the ground up; a room imports from its own floor only what is in it."""

HEIGHT = {room: height for height, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*base, *([node.module] if node.module else [])])
        for name in node.names:
            inner = f"{base}.{name.name}"
            found.add(inner if (ROOT / inner.replace(".", "/")).with_suffix(".py").exists() else base)
    return found - {"hf_reloss"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path).removeprefix("hf_reloss."))
def test_nothing_imports_what_stands_above_it(path):
    own = module_of(path).split(".")[1]
    for module in imported(path):
        room = module.split(".")[1]
        assert room == own or HEIGHT[room] < HEIGHT[own], f"{module_of(path)} imports {module}"


def test_nothing_imports_in_a_circle_not_even_inside_of_functions():
    graph = {module_of(path): imported(path) - {module_of(path)} for path in FILES}
    list(TopologicalSorter(graph).static_order())  # which raises CycleError


def test_all_relative_imports_are_seen():
    assert "hf_reloss.surrogates.base" in imported(PACKAGE / "surrogates" / "tokens.py")
    assert "hf_reloss.losses.base" in imported(PACKAGE / "losses" / "learned" / "margin.py")


def test_every_room_has_a_line_on_the_page_about_it():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    rooms |= {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert rooms == set(HEIGHT)
    assert all(f"`{room}/`" in page or f"`{room}.py`" in page for room in rooms)


PRIVATE = {name for kind in (Trainer, Seq2SeqTrainer) for name in vars(kind) if name.startswith("_") and name[1] != "_"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_of(path).removeprefix("hf_reloss."))
def test_no_private_method_of_trainer_is_called_or_overridden(path):
    tree = ast.parse(path.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    trainers = [
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.endswith(("Trainer", "Mixin"))
    ]
    defined = {part.name for node in trainers for part in node.body if isinstance(part, ast.FunctionDef)}
    assert not defined & PRIVATE
    # Of the same name as something of one's own is only what is defined in the file itself.
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} - defined
    assert not (used & PRIVATE) - own


def test_nothing_but_the_strategies_and_their_choice_knows_ways_to_train():
    """Elsewhere in training their words are no more than defaults, and nothing asks for their classes."""
    classes, words = {kind.__name__ for kind in COME_ALONG}, set(LossStrategy.defined)
    for path in (PACKAGE / "training").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                assert not words & {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)} - {"ala"}
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                assert not classes & {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def test_a_reader_can_hold_each_file_in_the_head():
    files = [
        path for folder in ("hf_reloss", "trainers", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    assert not {str(path.relative_to(ROOT)) for path in files if len(path.read_text().splitlines()) > 400}
