"""What a metric is: a number for a group of predictions.

Most metrics are additive: each prediction has a small vector of statistics, a group's statistics are their sum, and the
score is a function of that sum. Statistics are extracted once; thousands of groups are then scored by one sum. Every
other metric is called group by group, with a progress bar and, where it is slow, in several processes.
"""

import abc
import dataclasses
import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from .processes import scores_of_groups

IGNORED_LABEL = -100
"""The label of a prediction that does not count, as everywhere in transformers."""

LATER = {"later": True}
"""Metadata of fields, options that a metric did not have at first."""

BAR = r"\x7c"
"""What stands for | in the options of a signature."""

MOST_SHOWN = 64
"""Of how many predictions is found out what a function does that is not known."""


class Metric(abc.ABC):
    """A score of a group of predictions against their references.

    A metric that is known by name is a dataclass, whose fields are its options.

    Attributes:
        name: the word that people use for it, and `load_metric` finds it by.
        higher_is_better: False for error rates.
        evaluate_module: the module of `evaluate` that computes the same; its `name` unless said otherwise.
        evaluate_key: the key of the score in what that module returns; its `name` unless said otherwise.
        libraries: the distributions that define what is counted, whose versions are part of the signature.
        watched_only: of a metric that no run can be for, why, and what to do; empty for all others.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    evaluate_module: ClassVar[str]
    evaluate_key: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()
    watched_only: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if isinstance(vars(cls).get("name"), str):
            cls.evaluate_module = vars(cls).get("evaluate_module", cls.name)
            cls.evaluate_key = vars(cls).get("evaluate_key", cls.name)

    @classmethod
    def named(cls, config_name: str | None = None, **options: Any) -> "Metric":
        """The metric that `load_metric` gives for the name.

        Args:
            config_name: as the second argument of `evaluate.load`: "multilabel" is of several labels per example.
            options: the metric's.
        """
        metric = cls(**options)
        if config_name not in (None, "default", "binary", "multiclass", "multilabel", "multilist"):
            raise ValueError(f"{cls.name} has no configuration {config_name!r}: its options are passed by their names.")
        return metric.informed({"threshold": 0.5}) if config_name == "multilabel" else metric

    @property
    def options(self) -> dict[str, Any]:
        """The options that it was given, by name."""
        if not dataclasses.is_dataclass(self):
            return {}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def signature(self) -> str:
        """One line that fixes what is computed: the name, all options, the versions of what counts.

        Options that a metric got `LATER` are there only where they are set: what was saved without them keeps it.
        """
        later = {key for key, default in _later(self).items() if getattr(self, key) == default}
        # An option may hold what parts a signature: in a string within a list it reads as before when it is escaped.
        kept = {key: value for key, value in self.options.items() if key not in later}
        options = [f"{key}:{_as_word(value)}".replace("|", BAR) for key, value in kept.items()]
        versions = [f"{library}:{importlib.metadata.version(library)}" for library in self.libraries]
        return "|".join([self.name, *options, *versions])

    def decide(self, outputs: Any) -> Any:
        """What the metric sees of a model's outputs, taken once per prediction however many groups it is drawn into.

        Args:
            outputs: [n, ...], a model's raw outputs.

        Returns:
            [n, ...] decisions; the outputs themselves unless a metric says otherwise.
        """
        return outputs

    @abc.abstractmethod
    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        """Scores of m groups of N predictions, drawn from n.

        Args:
            predictions: [n, ...] outputs, or decisions: what `compute` takes.
            references: [n, ...].
            index: [m, N] int64, which predictions make up each group.

        Returns:
            [m] float64.
        """

    def compute(self, predictions: Any, references: Any) -> float:
        """The score of one group.

        Args:
            predictions: [N, ...] outputs, or decisions where the metric takes them: a tensor, an array or a list.
            references: [N, ...] likewise; a label of -100 does not count.

        Raises:
            ValueError: for predictions and references of different length, or of a kind that the metric cannot read.
        """
        return float(self.score_groups(predictions, references, torch.arange(len(predictions))[None])[0])

    def as_predictions(self, decided: torch.Tensor, classes: int) -> torch.Tensor:
        """Decisions as predictions that the metric takes: themselves, or logits [n, C] that lead to them.

        Args:
            decided: class indices [n] int64, or several labels for each example, [n, C], 0 or 1.
            classes: C.
        """
        return decided

    def read(self, predictions: Any, references: Any) -> tuple[Any, Any]:
        """Predictions and references in the form that the metric works on, checked.

        Here tensors, from tensors, arrays or lists of numbers. Raises what `compute` does.
        """
        predictions, references = numbers(predictions, self.name), numbers(references, self.name)
        same_length(self.name, predictions, references)
        if not references.is_floating_point():
            references = references.long()  # -100 is none of the numbers of an unsigned type
        return self.decide(predictions), references.to(predictions.device)

    def check_against(self, module: Any, predictions: Any, references: Any) -> float:
        """Compares this metric with the module of `evaluate` that it stands for.

        Args:
            module: such as `evaluate.load("f1")`.
            predictions, references: what both of them take.

        Returns:
            This metric's score less the module's.
        """
        if not dataclasses.is_dataclass(self):
            raise ValueError(
                f"{self.name} is no metric that is known by name, so there is no module to compare it with."
            )
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        changed = {key: value for key, value in self.options.items() if value != defaults[key]}
        theirs = module.compute(**(changed | self.for_evaluate(predictions, references)))
        theirs = theirs[self.evaluate_key] if isinstance(theirs, dict) else theirs
        return self.compute(predictions, references) - float(np.mean(theirs))

    def evaluated(self, predictions: Any, references: Any) -> dict[str, Any]:
        """What its module of `evaluate` returns for predictions and references: its scores by their keys there."""
        return {getattr(self, "evaluate_key", self.name): self.compute(predictions, references)}

    def informed(self, facts: Mapping[str, Any]) -> "Metric":
        """The same metric, with what is known of a model in place of options that were left at their defaults.

        Args:
            facts: by the names of options, such as `label_names`.
        """
        if not dataclasses.is_dataclass(self):
            return self
        defaults = {option.name: option.default for option in dataclasses.fields(self) if option.init}
        left = {name for name, default in defaults.items() if getattr(self, name) == default}
        return dataclasses.replace(self, **{name: facts[name] for name in left & facts.keys()})

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        """Predictions and references as the keywords of its module of `evaluate`."""
        return {"predictions": predictions, "references": references}


class AdditiveMetric(Metric):
    """A metric whose score is a function of summed statistics. A subclass defines `_statistics` and `_score`."""

    def statistics(self, predictions: Any, references: Any) -> torch.Tensor:
        """What is added up: [N, K] float64 of N predictions, on their device; zeros where nothing counts.

        Takes and raises what `compute` does.
        """
        return self._statistics(*self.read(predictions, references))

    def score(self, sums: Any) -> torch.Tensor:
        """Scores [...] float64 of summed statistics [..., K]; nan where it is not defined."""
        return self._score(torch.as_tensor(sums, dtype=torch.float64))

    def added(self, sums: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        """Sums [K] of statistics of some predictions and of others.

        Raises:
            ValueError: where they are of classes, and more of these have been seen of the ones than of the others.
        """
        if sums.shape != more.shape:
            raise ValueError(
                f"{self.name} cannot add up batches of class indices, which do not say how many classes there are: "
                "hand over logits."
            )
        return sums + more

    @abc.abstractmethod
    def _statistics(self, predictions: Any, references: Any) -> torch.Tensor:
        """`statistics` of what `read` gives."""

    @abc.abstractmethod
    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        """`score` of a float64 tensor."""

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        statistics = self.statistics(predictions, references)
        return self.score(add_up(statistics, index.to(statistics.device)))


class CollectionMetric(Metric):
    """A metric of each example among all others of its group: bootstrap samples are of examples that are judged so,
    for one that is drawn twice would find itself. A subclass defines `statistics`, `score` and `score_groups`."""

    @abc.abstractmethod
    def statistics(self, predictions: Any, references: Any) -> torch.Tensor:
        """What is added up, [n, K] float64, of n examples, each among all of them."""

    @abc.abstractmethod
    def score(self, sums: torch.Tensor) -> torch.Tensor:
        """Scores [...] of sums [..., K] of statistics."""


class GroupwiseMetric(Metric):
    """A metric that can only be called, one group at a time. A subclass defines `score_one`."""

    @abc.abstractmethod
    def score_one(self, predictions: Any, references: Any) -> float:
        """The score of one group, arrays or lists as they came, whose ignored predictions have been taken out."""

    def read(self, predictions: Any, references: Any) -> tuple[Any, Any]:
        """Arrays become tensors, and so do lists of numbers; other lists, as of strings, stay.

        Predictions of the references' own shape are not logits, and stay as they are.
        """
        read = []
        for values in (predictions, references):
            try:
                read.append(numbers(values, self.name))
            except ValueError:
                read.append(values)
        same_length(self.name, *read)
        alike = all(map(torch.is_tensor, read)) and read[0].shape == read[1].shape
        return (read[0] if alike else self.decide(read[0])), read[1]

    def score_rows(self, predictions: Any, references: Any, rows: np.ndarray) -> float:
        """The score of some rows of predictions and references, arrays [n, ...] or lists."""
        return self.score_one(take(predictions, rows), take(references, rows))

    def settle(self, predictions: Any, references: Any, rows: np.ndarray) -> None:
        """Finds out what is not known of the metric yet, by some rows of what is to be scored."""

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        predictions, references = (on_host(values) for values in self.read(predictions, references))
        # Where labels are sequences, -100 marks positions inside a prediction: the metric's own business.
        of_labels = isinstance(references, np.ndarray) and references.ndim == 1
        counts = references != IGNORED_LABEL if of_labels else np.ones(len(references), bool)
        if counts[:MOST_SHOWN].any():
            self.settle(predictions, references, counts[:MOST_SHOWN].nonzero()[0])
        score = functools.partial(_score_of_group, self, predictions, references, counts)
        return torch.tensor(scores_of_groups(score, index.cpu().numpy(), self.name), dtype=torch.float64)


def _score_of_group(
    metric: GroupwiseMetric, predictions: Any, references: Any, counts: np.ndarray, rows: np.ndarray
) -> float:
    """The score of the rows that count, of a group."""
    return metric.score_rows(predictions, references, rows[counts[rows]])


def add_up(statistics: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Sums [m, K] of statistics [n, K] over groups index [m, N], which are never laid out as [m, N, K]."""
    if index.numel() == 0:
        return statistics.new_zeros(len(index), statistics.shape[-1])
    return F.embedding_bag(index, statistics, mode="sum")


def need(module: str, extra: str) -> Any:
    """Imports a module of an optional dependency.

    Raises:
        ImportError: that names the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"This needs {module}: pip install 'hf-reloss[{extra}]'.") from error


def numbers(values: Any, name: str) -> torch.Tensor:
    """Values as a tensor; on the host where they come from an array or a list.

    Raises:
        ValueError: for strings, ragged lists and whatever else is not an array of numbers.
    """
    if torch.is_tensor(values):
        return values
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        array = None
    if array is None or array.dtype.kind not in "biuf":
        wrong = sorted(_no_numbers(values))
        given = f"{', '.join(wrong)}: map classes to indices" if wrong else "lists of different lengths: pad them"
        raise ValueError(f"{name} wants logits or class indices, arrays of numbers, but got {given}.")
    if array.size == 0 or array.dtype.kind == "u":  # of nothing the type is not known; torch has few unsigned ones
        array = array.astype(np.int64)
    return torch.as_tensor(array)


def _no_numbers(values: Any) -> set[str]:
    """The types in nested lists and arrays that are not numbers."""
    if isinstance(values, list | tuple | np.ndarray):
        return set().union(*map(_no_numbers, values))
    if isinstance(values, int | float | np.number) or torch.is_tensor(values):
        return set()
    return {"str" if isinstance(values, str) else type(values).__name__}


def same_length(name: str, predictions: Any, references: Any) -> None:
    """Raises ValueError if there are not as many predictions as references."""
    if len(predictions) != len(references):
        raise ValueError(
            f"{name} wants one reference per prediction, but got {len(predictions)} predictions and "
            f"{len(references)} references."
        )


def _later(metric: Metric) -> dict[str, Any]:
    """The defaults of options that a metric got `LATER`."""
    if not dataclasses.is_dataclass(metric):
        return {}
    return {field.name: field.default for field in dataclasses.fields(metric) if field.metadata.get("later")}


def _as_word(value: Any) -> Any:
    """A function as its name; any other value as it is."""
    if not callable(value):
        return value
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", type(value).__qualname__)
    return f"{module}.{name}" if module else name


def on_host(values: Any) -> Any:
    """Tensors as arrays; NumPy has no bfloat16."""
    if not torch.is_tensor(values):
        return values
    return (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()


def take(values: Any, rows: np.ndarray) -> Any:
    """Some rows of an array, a tensor or a list."""
    return values[rows] if isinstance(values, np.ndarray) or torch.is_tensor(values) else [values[row] for row in rows]
