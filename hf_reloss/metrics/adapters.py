"""Metrics from what users have: a module of `evaluate`, a Trainer's `compute_metrics`, any function."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import EvalPrediction

from .base import GroupwiseMetric
from .directions import less_is_better, takes_scores, takes_truth_first


class CallableMetric(GroupwiseMetric):
    """A function of predictions and references.

    Args:
        function: takes predictions and references, N each, and options; returns a number, or a dict. Both are arrays,
            or lists where they are texts or of different lengths. One with a first argument called y_true,
            reference, labels, truth or the like (`directions.TRUTHS`) gets the references first.
        key: which entry of a returned dict is the score. Not needed where it has one entry.
        name: how the metric is called; the function's own name by default.
        higher_is_better: False for error rates; by default what the function says as `higher_is_better`, as modules of
            torchmetrics do, or else what its name does: less is better of a word such as error, loss, mse or wer in it.
        class_indices: whether the function gets class indices [N] where the model puts out logits [N, C] for references
            [N], or the logits. By default it gets class indices, unless it calls them y_score, probabilities or the
            like (`directions.SCORES`), as scikit-learn's `roc_auc_score` does: then it gets probabilities [N, C] or, of
            two classes, that of the second one, [N]. Of one output, [N, 1], it gets that.
        options: passed to every call.
    """

    name: str  # type: ignore[misc]  # each function's own, where other metrics have that of their class
    higher_is_better: bool  # type: ignore[misc]

    def __init__(
        self,
        function: Callable[..., Any],
        key: str | None = None,
        *,
        name: str | None = None,
        higher_is_better: bool | None = None,
        class_indices: bool | None = None,
        **options: Any,
    ):
        self.function = function
        self.key = key
        of_function: str = getattr(function, "__name__", type(function).__name__)
        self.name = name or key or of_function
        if higher_is_better is None:
            higher_is_better = not less_is_better(f"{self.name}_{key or of_function}", function)
        self.higher_is_better = higher_is_better
        self.probabilities = class_indices is None and takes_scores(function)
        self.class_indices = not self.probabilities if class_indices is None else class_indices
        self.function_options = options

    @property
    def options(self) -> dict[str, Any]:
        return ({"key": self.key} if self.key else {}) | self.function_options

    def decide(self, outputs: Any) -> Any:
        if not (torch.is_tensor(outputs) and outputs.is_floating_point() and outputs.dim() > 1):
            return outputs
        if outputs.shape[-1] == 1:
            return outputs.squeeze(-1)
        if self.probabilities:
            found = outputs.float().softmax(-1)
            return found[..., 1] if found.shape[-1] == 2 else found
        return outputs.argmax(-1) if self.class_indices else outputs

    def as_predictions(self, decided: torch.Tensor, classes: int) -> torch.Tensor:
        return decided if self.class_indices and decided.dim() == 1 else _logits(decided, classes)

    def score_one(self, predictions: Any, references: Any) -> float:
        both = (references, predictions) if self._truth_first else (predictions, references)
        return _entry(self.function(*both, **self.function_options), self.key, self.name)

    @functools.cached_property
    def _truth_first(self) -> bool:
        return takes_truth_first(self.function)


class EvaluateMetric(CallableMetric):
    """A module of `evaluate`, such as `evaluate.load("f1")`, called on class indices.

    Args:
        module: an `evaluate.EvaluationModule`.
        key: which entry of its results is the score; by default the one of the module's own name, or the only one.
        higher_is_better: as for `CallableMetric`.
        options: passed to `module.compute`, e.g. `average="macro"`.
    """

    def __init__(self, module: Any, key: str | None = None, *, higher_is_better: bool | None = None, **options: Any):
        def compute(predictions: Any, references: Any, **options: Any) -> Any:
            found = module.compute(predictions=predictions, references=references, **options)
            if not isinstance(found, Mapping):  # of wer and cer it is a number
                return {module.name: found}
            is_only = key is None and module.name not in found and len(found) == 1
            return {module.name: next(iter(found.values()))} if is_only else found

        super().__init__(
            compute,
            key or module.name,
            name=module.name,
            higher_is_better=higher_is_better,
            **options,
        )


class ComputeMetrics(GroupwiseMetric):
    """A Trainer's `compute_metrics`, of which one key is the metric.

    Args:
        compute_metrics: takes an `EvalPrediction` of arrays, returns a dict.
        key: the entry that is the score, with or without the prefix `eval_`.
        preprocess_logits_for_metrics: the Trainer's function of that name, applied to each prediction first.
        higher_is_better: False for error rates.
        in_tuple: whether the Trainer hands over a tuple of outputs, the logits first, as it does for models that put
            out more than logits. Only the logits are in it here.
    """

    name: str  # type: ignore[misc]  # that of the key
    higher_is_better: bool  # type: ignore[misc]

    def __init__(
        self,
        compute_metrics: Callable[[EvalPrediction], Mapping[str, float]],
        key: str,
        *,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None,
        higher_is_better: bool = True,
        in_tuple: bool = False,
    ):
        self.compute_metrics = compute_metrics
        self.key = self.name = key.removeprefix("eval_")
        self.preprocess = preprocess_logits_for_metrics
        self.higher_is_better = higher_is_better
        self.in_tuple = in_tuple

    @property
    def signature(self) -> str:
        return f"{self.name}|compute_metrics:{getattr(self.compute_metrics, '__name__', 'callable')}"

    def as_predictions(self, decided: torch.Tensor, classes: int) -> torch.Tensor:
        return _logits(decided, classes)

    def score_one(self, predictions: Any, references: Any) -> float:
        return _entry(self.results(predictions, references), self.key, self.name)

    def results(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """All that `compute_metrics` returns for logits [N, C] and labels [N], without the prefix `eval_`."""
        predictions: Any = (logits,) if self.in_tuple else logits
        if self.preprocess is not None:
            tensors: Any = (torch.from_numpy(logits),) if self.in_tuple else torch.from_numpy(logits)
            predictions = np.asarray(self.preprocess(tensors, torch.from_numpy(labels)))
        results = self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
        return {key.removeprefix("eval_"): value for key, value in results.items()}


class EvaluationMetrics(ComputeMetrics):
    """A Trainer's `compute_metrics` on what Trainer hands over in an evaluation, whatever the task.

    Predictions are recorded as Trainer gives them to `compute_metrics` (after `preprocess_logits_for_metrics`), and so
    are the labels: one array each, or a tuple of several.
    """

    prefixes: ClassVar[tuple[str, str]] = ("evaluation predictions", "evaluation labels")
    """How the names of the recorded columns begin; a number follows."""

    @classmethod
    def recorded(cls, predictions: Any, labels: Any) -> dict[str, torch.Tensor]:
        """The columns [n, ...] to record of a batch, or none if they are no tensors of one row per example.

        Args:
            predictions, labels: a tensor or a tuple of tensors each, as Trainer has them in an evaluation.
        """
        found = {}
        for prefix, values in zip(cls.prefixes, (predictions, labels), strict=True):
            for place, value in enumerate(values if isinstance(values, tuple) else (values,)):
                found[f"{prefix} {place}"] = value
        rows = [len(value) if torch.is_tensor(value) and value.dim() else -1 for value in found.values()]
        return found if rows[0] >= 0 and len(set(rows)) == 1 else {}

    def columns(self, recorded: Mapping[str, torch.Tensor]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predictions and labels, arrays [n, ...] each, of recorded columns."""
        predictions, labels = (
            [column.numpy() for name, column in recorded.items() if name.startswith(prefix)] for prefix in self.prefixes
        )
        return predictions, labels

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        scores = []
        for rows in tqdm(index.numpy(), f"scoring {self.name}", disable=len(index) < 64, leave=False, unit="group"):
            group = ([array[rows] for array in arrays] for arrays in (predictions, references))
            scores.append(self.score_one(*group))
        return torch.tensor(scores, dtype=torch.float64)

    def results(  # type: ignore[override]  # of several arrays each, as Trainer may hand them over
        self, predictions: list[np.ndarray], labels: list[np.ndarray]
    ) -> dict[str, float]:
        """All that `compute_metrics` returns for arrays [N, ...], without the prefix `eval_`."""
        handed: list[Any] = [arrays[0] if len(arrays) == 1 else tuple(arrays) for arrays in (predictions, labels)]
        results = self.compute_metrics(EvalPrediction(*handed))
        return {key.removeprefix("eval_"): value for key, value in results.items()}


def _logits(decided: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits [n, C] that lead to classes [n], or to several labels [n, L], 0 or 1."""
    return F.one_hot(decided, classes).float() if decided.dim() == 1 else 20.0 * decided - 10.0


def _entry(result: Any, key: str | None, name: str) -> float:
    """The score in what a metric function returned."""
    if not isinstance(result, Mapping):
        return float(result)
    if key is None and len(result) == 1:
        (key,) = result
    if key not in result:
        raise KeyError(f"The metric {name!r} gave {sorted(result)}, without {key!r}: pass key= one of these.")
    return float(result[key])
