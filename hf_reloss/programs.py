"""The programs of trainers/, which come with the package: what `reloss train` runs."""

import dataclasses
import difflib
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

MARK = "def make_parser("
"""What a file of trainers/ has in it that is a program, and not a part of one."""


def folder() -> Path:
    """Where the programs lie: in the package, or beside it in a checkout."""
    here = Path(__file__).parent
    return next(place for place in (here / "trainers", here.parent / "trainers") if (place / "common.py").exists())


def program_names() -> list[str]:
    """The names of all programs, such as text_classification."""
    return sorted(file.stem for file in folder().glob("*.py") if MARK in file.read_text(encoding="utf-8"))


def program_file(name: str) -> Path:
    """The file of a program.

    Raises:
        ValueError: for a name that is none of theirs.
    """
    names = program_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        meant = f" (is {near[0]!r} meant?)" if near else ""
        raise ValueError(f"There is no program {name!r}{meant}: choose among {', '.join(names)}.")
    return folder() / f"{name}.py"


def run_program(name: str, arguments: list[str], processes: int = 1) -> int:
    """Runs a program in a process of its own, or in several.

    Args:
        name: the program.
        arguments: its command line.
        processes: how many Accelerate launches; with 1 the program is run as it is.

    Returns:
        Its exit status.
    """
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", str(processes)] if processes > 1 else []
    return subprocess.run([sys.executable, *launcher, str(program_file(name)), *arguments], check=False).returncode


def described(name: str) -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """What a program does, with an example of its use; and, by what they are of, its own options with their help.

    Those of TrainingArguments, which all programs have, are left out.
    """
    file = program_file(name)
    sys.path.insert(0, str(file.parent))  # where its parts are
    try:
        program = runpy.run_path(str(file), run_name=name)
    finally:
        sys.path.remove(str(file.parent))
    groups: dict[str, list[tuple[str, str]]] = {}
    for kind in program["make_parser"]().dataclass_types:
        if not issubclass(kind, TrainingArguments):
            of = "data" if "Data" in kind.__name__ else "model and loss"
            groups.setdefault(of, []).extend(map(_option, dataclasses.fields(kind)))
    written = file.read_text(encoding="utf-8").split('"""')[1]  # where \ still ends a line
    about = "\n\n".join(written.split("\n\n")[:3])
    return about.replace(f"python trainers/{name}.py", f"reloss train {name}"), groups


def _option(option: dataclasses.Field[Any]) -> tuple[str, str]:
    default = "" if option.default in (None, "", dataclasses.MISSING) else f" [{option.default}]"
    return f"--{option.name}", option.metadata.get("help", "") + default
