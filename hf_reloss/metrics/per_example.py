"""A function that scores examples one by one, as a judge or a business cost does: a group has the mean of these."""

import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from .adapters import CallableMetric, EvaluateMetric
from .base import IGNORED_LABEL, MOST_SHOWN, AdditiveMetric, on_host, take
from .directions import takes_several
from .libraries import cut, entry, is_torchmetrics, scores_in

AT_ONCE = 256
"""How many examples a function gets in one call."""

FEW = 16
"""How many examples are scored to find out in which order a function takes its arguments, or its direction."""

Scores = Callable[[Any, Any, Mapping[str, Any]], np.ndarray]


class PerExampleMetric(AdditiveMetric):
    """The mean of what a function gives each example.

    Each example is scored once, however many groups it is drawn into, and what has the same prediction and reference
    (and the same of options with an entry for each example) has the same score. Statistics: [N, 2], the score and 1; a
    label of -100 does not count.

    The function is called with up to 256 predictions and their references, arrays or lists, and returns a number for
    each: a list, an array or a tensor, or a dictionary with such an entry. A function that does not is called with one
    prediction and one reference, and returns a number; a module of evaluate or torchmetrics, with lists of one each.
    Which of them it is, is found out at the first call. A function with arguments that are both called in the plural
    (predictions, references) gets several, and is to return as many numbers.

    Args:
        of: the function, with what it gets of a model's outputs, its direction and its options.
    """

    def __init__(self, of: CallableMetric):
        self.of = of
        self.name = of.name  # type: ignore[misc]  # each function's own
        self._known: dict[Any, float] = {}
        self._found: Scores | None = None

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]  # known once examples have been scored
        return self.of.higher_is_better

    @property
    def direction_known(self) -> bool:
        """As of `CallableMetric`."""
        return self.of.direction_known

    @property
    def options(self) -> dict[str, Any]:
        return self.of.options | {"per_example": True}

    def decide(self, outputs: Any) -> Any:
        return self.of.decide(outputs)

    def as_predictions(self, decided: torch.Tensor, classes: int) -> torch.Tensor:
        return self.of.as_predictions(decided, classes)

    def read(self, predictions: Any, references: Any) -> tuple[Any, Any]:
        predictions, references = self.of.read(predictions, references)
        return on_host(predictions), on_host(references)

    def _statistics(self, predictions: Any, references: Any) -> torch.Tensor:
        of_labels = isinstance(references, np.ndarray) and references.ndim == 1
        counts = references != IGNORED_LABEL if of_labels else np.ones(len(references), bool)
        rows, scores = counts.nonzero()[0], np.zeros(len(references))
        if len(rows):
            scores[rows] = self._scores(predictions, references, rows)
        return torch.from_numpy(np.stack([scores, counts.astype(np.float64)], axis=-1))

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]

    def _scores(self, predictions: Any, references: Any, rows: np.ndarray) -> list[float]:
        """Scores of some rows; those that are not known yet are asked for, each once."""
        of_examples, options = cut(self.of.function_options, len(references), self.name)
        columns = [take(values, rows) for values in (predictions, references, *of_examples.values())]
        keys = _contents(columns)
        places = {key: place for place, key in enumerate(keys) if key not in self._known}
        wanted = list(places)
        hidden = len(wanted) <= MOST_SHOWN or not logging.is_progress_bar_enabled()
        with tqdm(total=len(wanted), desc=f"scoring {self.name}", leave=False, unit="example", disable=hidden) as bar:
            for start in range(0, len(wanted), AT_ONCE):
                part = wanted[start : start + AT_ONCE]
                chosen = np.array([places[key] for key in part])
                given, truth, *more = (take(values, chosen) for values in columns)
                scores = self._ask(given, truth, options | dict(zip(of_examples, more, strict=True)), set(of_examples))
                self._known.update(zip(part, scores.tolist(), strict=True))
                bar.update(len(part))
        return [self._known[key] for key in keys]

    def _ask(self, predictions: Any, references: Any, options: Mapping[str, Any], of_examples: set[str]) -> np.ndarray:
        """Scores [n] of n examples, by the function."""
        asked = (predictions, references, options)
        if self._found is None:
            self._settle(*asked, of_examples)
            self._found = self._form(*asked, of_examples)
        return self._found(*asked)

    def _settle(self, predictions: Any, references: Any, options: Mapping[str, Any], of_examples: set[str]) -> None:
        """Finds out in which order the function takes its arguments, and which direction it has, by some examples."""
        few = np.arange(min(FEW, len(references)))
        given, truth = take(predictions, few), take(references, few)
        some = {key: take(value, few) if key in of_examples else value for key, value in options.items()}

        def mean(given: Any) -> float:
            return float(self._form(given, truth, some, of_examples)(given, truth, some).mean())

        self.of.settle_order(lambda: mean(given))
        self.of.settle_direction(mean, given, truth)

    def _form(self, predictions: Any, references: Any, options: Mapping[str, Any], of_examples: set[str]) -> Scores:
        """How the function is to be called, by calling it."""
        by_ones = isinstance(self.of, EvaluateMetric) or is_torchmetrics(self.of.function)
        few = np.arange(min(2, len(references)))
        some = {key: take(value, few) if key in of_examples else value for key, value in options.items()}
        asked = take(predictions, few), take(references, few), some
        try:
            self._several(*asked)
            return self._several
        except Exception as error:  # of somebody's own function, which may want one example
            failed = error
            if not by_ones and takes_several(self.of.function):
                raise
        singly: Scores = _Singly(self.of, of_examples, by_ones)
        try:
            singly(*asked)
        except Exception as error:
            raise ValueError(
                f"The metric {self.name!r} scores examples neither several at once ({failed}) nor one by one "
                f"({type(error).__name__}: {error}). It is to take predictions and references, and return a number for "
                "each, or to take one of each, and return a number."
            ) from failed
        return singly

    def _several(self, predictions: Any, references: Any, options: Mapping[str, Any]) -> np.ndarray:
        found = scores_in(self.of.call(predictions, references, options), self.of.key, self.name)
        if found.size != len(references) or not found.ndim:
            raise ValueError(
                f"The metric {self.name!r} is to give each example a number, but gave {found.size} for "
                f"{len(references)} examples."
            )
        return found.reshape(-1)


class _Singly:
    """Calls of a function with one example each."""

    def __init__(self, of: CallableMetric, of_examples: set[str], in_lists: bool):
        self.of, self.of_examples, self.in_lists = of, of_examples, in_lists

    def __call__(self, predictions: Any, references: Any, options: Mapping[str, Any]) -> np.ndarray:
        scores = []
        for place in range(len(references)):
            row: Any = slice(place, place + 1) if self.in_lists else place
            own = {key: value[row] if key in self.of_examples else value for key, value in options.items()}
            scores.append(entry(self.of.call(predictions[row], references[row], own), self.of.key, self.of.name))
        return np.array(scores, dtype=np.float64)


def _contents(columns: list[Any]) -> list[Any]:
    """What examples hold, as keys: one for each row of columns of the same length."""
    kinds: list[Any] = []
    parts: list[list[Any]] = []
    for values in columns:
        values = on_host(values)
        if isinstance(values, np.ndarray) and not values.dtype.hasobject:
            kinds.append((values.dtype.str, values.shape[1:]))
            parts.append([row.tobytes() for row in values] if values.ndim > 1 else values.tolist())
        else:
            kinds.append(None)
            parts.append([value if isinstance(value, str) else pickle.dumps(value) for value in values])
    kind = tuple(kinds)
    return [(kind, *row) for row in zip(*parts, strict=True)]
