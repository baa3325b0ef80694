"""How functions of libraries take what they score, and give it: tensors, streams of references, result objects."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

SCORES_OF_RESULTS = ("statistic", "correlation", "score")
"""What a result object calls its score: scipy's tests of correlation, older ones of theirs, sacrebleu's scores."""

CLASS_OPTIONS = {"labels", "label_names", "label_list", "target_names", "classes", "class_weights", "weights", "ignore"}
"""Options of metrics with an entry for each class, even where there are as many of these as examples."""

EXAMPLE_OPTIONS = {"sources", "source", "src", "sample_weight", "sample_weights", "questions", "contexts", "documents"}
"""Options of metrics that have an entry for each example."""


def wants_tensors(function: Any) -> bool:
    """Whether a function takes tensors and no arrays: a module of torch or torchmetrics, or a function of theirs."""
    home = getattr(function, "__module__", None) or ""
    return isinstance(function, torch.nn.Module) or home.split(".")[0] in ("torch", "torchmetrics")


def is_torchmetrics(function: Any) -> bool:
    """Whether it is of torchmetrics: a function, or a module of a class from there or below."""
    homes = [getattr(function, "__module__", None) or "", *(kind.__module__ for kind in type(function).__mro__)]
    return any(home.split(".")[0] == "torchmetrics" for home in homes)


def is_of_two_classes(function: Any, options: Mapping[str, Any]) -> bool:
    """Whether a function or module of torchmetrics is of two classes, and so takes the scores of the second one."""
    name = getattr(function, "__name__", type(function).__name__)
    return name.lower().startswith("binary") or options.get("task") == "binary"


def called(function: Any, predictions: Any, references: Any, swapped: bool, options: Any) -> Any:
    """What a function gives of arrays or lists, as it wants them.

    Args:
        function: of the user, or of a library.
        predictions, references: [N, ...] arrays, or lists of texts or of what else is ragged.
        swapped: whether it takes the references first.
        options: passed on.
    """
    if _wants_streams(function):
        references = _streams(references)
    if wants_tensors(function):
        predictions, references = (
            torch.from_numpy(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) else x
            for x in (predictions, references)
        )
    both = (references, predictions) if swapped else (predictions, references)
    if not (is_torchmetrics(function) and hasattr(function, "update")):
        return function(*both, **options)
    function.reset()  # what a module of torchmetrics has seen before is of other groups
    function.update(*both, **options)
    found = function.compute()
    function.reset()
    return found


def _wants_streams(function: Any) -> bool:
    """Whether it scores a corpus as sacrebleu does: the first reference of each prediction, then the second."""
    home, name = getattr(function, "__module__", None) or "", getattr(function, "__name__", "")
    return home.split(".")[0] == "sacrebleu" and name.startswith("corpus_")


def _streams(references: Sequence[Any]) -> list[list[Any]]:
    each = [[given] if isinstance(given, str) else list(given) for given in references]
    longest = max(map(len, each), default=0)
    return [[given[place] if place < len(given) else None for given in each] for place in range(longest)]


def entry(result: Any, key: str | None, name: str) -> float:
    """The score in what a metric function returned: a number, or of several, such as one for each class, their mean.

    Args:
        result: a number, a mapping, an object with the score as an attribute (`SCORES_OF_RESULTS`), or a list, an array
            or a tensor of numbers.
        key: which entry or attribute is the score. Not needed where there is one entry, or the attribute is known.
        name: of the metric.

    Raises:
        KeyError: if a mapping has no such key, or several and none is asked for.
        ValueError: for what is no number.
    """
    return float(np.mean(scores_in(result, key, name)))


def scores_in(result: Any, key: str | None, name: str) -> np.ndarray:
    """The score or scores, [...] float64, in what a metric function returned. Arguments and errors as of `entry`."""
    if isinstance(result, Mapping):
        if key is None and len(result) == 1:
            (key,) = result
        if key not in result:
            raise KeyError(f"The metric {name!r} gave {sorted(result)}, without {key!r}: pass key= one of these.")
        result = result[key]
    elif key is not None and hasattr(result, key):
        result = getattr(result, key)
    elif not isinstance(result, np.ndarray | np.generic) and not torch.is_tensor(result):
        result = next((getattr(result, word) for word in SCORES_OF_RESULTS if hasattr(result, word)), result)
    if torch.is_tensor(result):
        result = result.detach().cpu().double()
    try:
        if result is None or isinstance(result, tuple | str):
            raise TypeError
        return np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"The metric {name!r} gave {result!r:.100}, a {type(result).__name__}, which is no number: return a "
            "number, a dictionary of numbers (and pass key=), or a number for each class or example, which gives the "
            "mean."
        ) from None


def cut(options: Mapping[str, Any], count: int, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a function that have an entry for each example, and all others.

    Args:
        options: by name; a list, a tuple, an array or a tensor as long as there are examples is cut with them, unless
            it is of classes (`CLASS_OPTIONS`).
        count: how many examples there are.
        name: of the metric.

    Raises:
        ValueError: for an option that is always of examples (`EXAMPLE_OPTIONS`), and is not as long.
    """
    of_examples = {}
    for key, value in options.items():
        is_sequence = isinstance(value, list | tuple | np.ndarray) or (torch.is_tensor(value) and value.dim() > 0)
        if not is_sequence or key in CLASS_OPTIONS:
            continue
        if len(value) == count:
            of_examples[key] = value
        elif key in EXAMPLE_OPTIONS:
            raise ValueError(
                f"{name}: {key} has {len(value)} entries, for {count} predictions: it wants one for each, in their "
                "order. Predictions that a run records are drawn at random, so that there it cannot be used."
            )
    return of_examples, {key: value for key, value in options.items() if key not in of_examples}
