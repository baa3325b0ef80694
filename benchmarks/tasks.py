"""The tasks that losses are compared on, by name."""

import importlib
import re
from pathlib import Path

FAMILIES = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if re.search(r"^TASKS = \(", path.read_text(), re.M)
)
"""The files beside this one that define tasks."""

TASKS = {task.__name__: task for family in FAMILIES for task in importlib.import_module(family).TASKS}
