"""Whether a module of `evaluate` is the one from there, or somebody's own of the same name."""

import hashlib
import inspect
import re
from typing import Any

FINGERPRINTS = {
    "accuracy": {"f4c8362714c1e9fe"},
    "f1": {"9c351e43dca2ff6b", "f92fa50836543559"},
    "matthews_correlation": {"2126c1012ae3fdeb"},
    "precision": {"374a6a9464a201f7", "353ae5cc409ce4ae"},
    "recall": {"935924eecd1d8f7d", "13eed97d2eb86994"},
}
"""Of evaluate's own modules, as they are copied into folders: `fingerprint` of their source, by name."""


def is_official(module: Any) -> bool:
    """Whether a module is evaluate's own.

    It is if it was loaded from the Hub by a name without an owner, or from a folder with the source that is published
    there. A module of one's own in a folder of that name is not, nor is a published one that was changed.

    Args:
        module: an `evaluate.EvaluationModule`.
    """
    package, *place = type(module).__module__.split(".")
    if package != "evaluate_modules":
        return False
    if place[1].startswith("evaluate-"):  # the owners of evaluate's modules: evaluate-metric, evaluate-comparison
        return True
    return "--" not in place[1] and fingerprint(_source(module)) in FINGERPRINTS.get(module.name, ())


def fingerprint(source: str) -> str:
    """What a module computes, as a short hash of its source.

    Descriptions, types of features, comments and white space are left out, which differ between versions.
    """
    code = re.sub(r'""".*?"""', "", source, flags=re.DOTALL)
    code = re.sub(r"    def _info\(self\):.*?(?=\n    def |\Z)", "", code, flags=re.DOTALL)
    code = re.sub(r"#.*|\s+", "", code)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def place_of(module: Any) -> str:
    """Where the source of a module is."""
    try:
        return inspect.getfile(type(module))
    except (OSError, TypeError):  # of a class that was made in an interpreter
        return type(module).__module__


def _source(module: Any) -> str:
    try:
        return inspect.getsource(inspect.getmodule(type(module)))  # type: ignore[arg-type]  # None is a TypeError
    except (OSError, TypeError):
        return ""
