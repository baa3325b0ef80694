"""Metrics from what users have: a module of `evaluate`, a Trainer's `compute_metrics`, any function."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import EvalPrediction
from transformers.utils import logging

from .base import GroupwiseMetric, take
from .directions import asked_direction, direction_of, takes_scores, takes_truth_first
from .libraries import called, cut, entry, is_of_two_classes, is_torchmetrics

logger = logging.get_logger(__name__)

MOST_ASKED = 3
"""How often a metric is asked at most which direction it has: of the first groups all references may be the same."""


class AskedMetric(GroupwiseMetric):
    """A metric of which is found out, on the first predictions that it is given, what its name does not say.

    Attributes:
        direction_known: whether it is known that more, or less, of it is better: it was said, or the name says it, or
            it scored right predictions of these examples higher, or lower, than wrong ones. Until then, more is.
    """

    higher_is_better: bool  # type: ignore[misc]  # each function's own, where other metrics have that of their class

    def __init__(self) -> None:
        self.direction_known = False
        self._times_asked = 0

    def _take_direction(self, given: bool | None, by_name: bool | None) -> None:
        """Takes what was given, or else what the name says."""
        found = by_name if given is None else given
        self.direction_known = found is not None
        self.higher_is_better = found is not False

    def settle_direction(self, score: Callable[[Any], float], predictions: Any, references: Any) -> None:
        """Asks, while the direction is not known, whether right predictions or wrong ones score higher; says so."""
        if self.direction_known or self._times_asked == MOST_ASKED or len(references) < 2:
            return
        self._times_asked += 1
        found = asked_direction(score, references, predictions)
        if found is None:
            if self._times_asked == MOST_ASKED:
                logger.warning(
                    f"More of the metric {self.name!r} is taken to be better: neither its name nor the first examples "
                    "say whether less is. higher_is_better= does."
                )
            return
        self.direction_known = True
        self.higher_is_better, right, wrong = found
        logger.warning(
            f"{'More' if self.higher_is_better else 'Less'} of the metric {self.name!r} is taken to be better: it is "
            f"{right:.4g} of right predictions and {wrong:.4g} of wrong ones. higher_is_better= says it beforehand."
        )


class CallableMetric(AskedMetric):
    """A function of predictions and references.

    Args:
        function: takes predictions and references, N each, and options; returns a number, or a dict. Both are arrays,
            or lists where they are texts or of different lengths. One with a first argument called y_true,
            reference, labels, truth or the like (`directions.TRUTHS`) gets the references first, and so does one with
            arguments of other names that fails on predictions first. Modules and functions of torchmetrics get
            tensors, and logits [N, C] (those of two classes: the probability of the second one); functions
            `corpus_...` of sacrebleu get references in streams.
        key: which entry of a returned dict, or attribute of an object, is the score. Not needed where there is one
            entry, nor for results of scipy (`statistic`) and sacrebleu (`score`).
        name: how the metric is called; the function's own name by default.
        higher_is_better: False for error rates; by default what the function says as `higher_is_better`, as modules of
            torchmetrics do, or else what its name does: less is better of a word such as error, loss, mse or wer in it.
            Where its name has no such word, it is asked: right predictions of the first examples are scored, and wrong
            ones, and what comes of it is logged.
        class_indices: whether the function gets class indices [N] where the model puts out logits [N, C] for references
            [N], or the logits. By default it gets class indices, unless it calls them y_score, probabilities or the
            like (`directions.SCORES`), as scikit-learn's `roc_auc_score` does: then it gets probabilities [N, C] or, of
            two classes, that of the second one, [N]. Of one output, [N, 1], it gets that.
        options: passed to every call; one that is as long as the predictions, such as sources, is cut with them.
    """

    name: str  # type: ignore[misc]  # each function's own, where other metrics have that of their class

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
        super().__init__()
        self.function = function
        self.key = key
        of_function: str = getattr(function, "__name__", type(function).__name__)
        self.name = name or key or of_function
        self._take_direction(higher_is_better, direction_of(f"{self.name}_{key or of_function}", function))
        self.truth_first = takes_truth_first(function)
        self.probabilities = class_indices is None and takes_scores(function)
        self.class_indices = not self.probabilities if class_indices is None else class_indices
        self.decides_itself = class_indices is None and is_torchmetrics(function)
        self.function_options = options

    @property
    def options(self) -> dict[str, Any]:
        return ({"key": self.key} if self.key else {}) | self.function_options

    def decide(self, outputs: Any) -> Any:
        if not (torch.is_tensor(outputs) and outputs.is_floating_point() and outputs.dim() > 1):
            return outputs
        if outputs.shape[-1] == 1:
            return outputs.squeeze(-1)
        if self.probabilities or (self.decides_itself and is_of_two_classes(self.function, self.function_options)):
            found = outputs.float().softmax(-1)
            return found[..., 1] if found.shape[-1] == 2 else found
        is_kept = not self.class_indices or (self.decides_itself and outputs.dim() == 2)
        return outputs if is_kept else outputs.argmax(-1)

    def as_predictions(self, decided: torch.Tensor, classes: int) -> torch.Tensor:
        return decided if self.class_indices and decided.dim() == 1 else _logits(decided, classes)

    def score_one(self, predictions: Any, references: Any) -> float:
        return self._score(predictions, references, self.function_options)

    def _score(self, predictions: Any, references: Any, options: Mapping[str, Any]) -> float:
        return entry(self.call(predictions, references, options), self.key, self.name)

    def call(self, predictions: Any, references: Any, options: Mapping[str, Any]) -> Any:
        """What the function returns for predictions and references, which it gets in its order, and options."""
        return called(self.function, predictions, references, bool(self.truth_first), options)

    def score_rows(self, predictions: Any, references: Any, rows: np.ndarray) -> float:
        options = self.options_of(rows, len(predictions))
        return self._score(take(predictions, rows), take(references, rows), options)

    def options_of(self, rows: np.ndarray, count: int) -> dict[str, Any]:
        """The function's options for some of `count` examples: those with an entry for each are cut with them."""
        of_examples, others = cut(self.function_options, count, self.name)
        return others | {key: take(value, rows) for key, value in of_examples.items()}

    def settle(self, predictions: Any, references: Any, rows: np.ndarray) -> None:
        self.settle_order(lambda: self.score_rows(predictions, references, rows))
        options, truth = self.options_of(rows, len(predictions)), take(references, rows)
        self.settle_direction(lambda right: self._score(right, truth, options), take(predictions, rows), truth)

    def settle_order(self, score: Callable[[], float]) -> None:
        """Finds out which of its arguments a function takes first, where their names do not say.

        Args:
            score: of some examples, in the order that `truth_first` says.
        """
        if self.truth_first is not None:
            return
        found: list[float | None] = []
        for self.truth_first in (True, False):
            try:
                found.append(score())
            except Exception:  # of somebody's own function, which may take them the other way only
                found.append(None)
        swapped, kept = found
        self.truth_first = kept is None and swapped is not None
        if self.truth_first:
            logger.warning(f"The metric {self.name!r} takes references first: the other way round it raises an error.")
        elif kept is not None and swapped is not None and abs(kept - swapped) > 1e-9:
            logger.warning(
                f"The metric {self.name!r} gets predictions first, then references, which matters ({kept:.4g}, the "
                f"other way round {swapped:.4g}), and the names of its arguments do not say whether that is right: "
                "call them predictions and references, in its order."
            )


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


class ComputeMetrics(AskedMetric):
    """A Trainer's `compute_metrics`, of which one key is the metric.

    Args:
        compute_metrics: takes an `EvalPrediction` of arrays, returns a dict.
        key: the entry that is the score, with or without the prefix `eval_`; by default the only one.
        preprocess_logits_for_metrics: the Trainer's function of that name, applied to each prediction first.
        higher_is_better: as for `CallableMetric`.
        in_tuple: whether the Trainer hands over a tuple of outputs, the logits first, as it does for models that put
            out more than logits. Only the logits are in it here.
    """

    name: str  # type: ignore[misc]  # that of the key

    def __init__(
        self,
        compute_metrics: Callable[[EvalPrediction], Mapping[str, float]],
        key: str | None = None,
        *,
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None,
        higher_is_better: bool | None = None,
        in_tuple: bool = False,
    ):
        super().__init__()
        self.compute_metrics = compute_metrics
        self.key = None if key is None else key.removeprefix("eval_")
        of_function: str = getattr(compute_metrics, "__name__", type(compute_metrics).__name__)
        self.name = self.key or of_function
        self._take_direction(higher_is_better, direction_of(self.name))
        self.preprocess = preprocess_logits_for_metrics
        self.in_tuple = in_tuple

    @property
    def signature(self) -> str:
        return f"{self.name}|compute_metrics:{getattr(self.compute_metrics, '__name__', 'callable')}"

    def as_predictions(self, decided: torch.Tensor, classes: int) -> torch.Tensor:
        return _logits(decided, classes)

    def score_one(self, predictions: Any, references: Any) -> float:
        return entry(self.results(predictions, references), self.key, self.name)

    def settle(self, predictions: Any, references: Any, rows: np.ndarray) -> None:
        truth = take(references, rows)
        self.settle_direction(lambda right: self.score_one(right, truth), take(predictions, rows), truth)

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
    are the labels: one array each, or a tuple of several; and inputs and losses, where they are asked for.

    Args:
        compute_metrics, key, higher_is_better: as for `ComputeMetrics`.
        included: what else it gets, as in `TrainingArguments.include_for_metrics`: `"inputs"`, `"loss"`.
        batch_size: of batches that it gets in a list, with `eval_do_concat_batches=False`; None for whole arrays.
    """

    prefixes: ClassVar[tuple[str, ...]] = (
        "evaluation predictions", "evaluation labels", "evaluation inputs", "evaluation losses"
    )  # fmt: skip
    """How the names of the recorded columns begin; a number follows."""

    def __init__(
        self,
        compute_metrics: Callable[[EvalPrediction], Mapping[str, float]],
        key: str | None = None,
        *,
        higher_is_better: bool | None = None,
        included: Collection[str] = (),
        batch_size: int | None = None,
    ):
        super().__init__(compute_metrics, key, higher_is_better=higher_is_better)
        self.beside = [kept for kept in ("inputs", "loss") if kept in included]
        self.batch_size = batch_size

    @classmethod
    def recorded(cls, predictions: Any, labels: Any, inputs: Any = (), losses: Any = ()) -> dict[str, torch.Tensor]:
        """The columns [n, ...] to record of a batch, or none if they are no tensors of one row per example.

        Args:
            predictions, labels, inputs, losses: a tensor or a tuple of tensors each, as Trainer has them in an
                evaluation.
        """
        found = {}
        for prefix, values in zip(cls.prefixes, (predictions, labels, inputs, losses), strict=True):
            for place, value in enumerate(values if isinstance(values, tuple) else (values,)):
                found[f"{prefix} {place}"] = value
        rows = [len(value) if torch.is_tensor(value) and value.dim() else -1 for value in found.values()]
        return found if rows[0] >= 0 and len(set(rows)) == 1 else {}

    def of_logits(self, preprocess: Any, in_tuple: bool) -> ComputeMetrics:
        """The same of logits and labels alone, for a decision to be tuned by.

        Args:
            preprocess, in_tuple: as for `ComputeMetrics`.

        Raises:
            ValueError: if it gets more than these, or batches.
        """
        if self.beside or self.batch_size is not None:
            raise ValueError(
                f"compute_metrics gets {', '.join(self.beside) or 'a list of batches'} beside logits and labels: no "
                f"decision is tuned by {self.name}. Pass metric= one of decisions, such as 'accuracy'."
            )
        return ComputeMetrics(
            self.compute_metrics,
            self.key,
            preprocess_logits_for_metrics=preprocess,
            higher_is_better=self.higher_is_better if self.direction_known else None,
            in_tuple=in_tuple,
        )

    def columns(self, recorded: Mapping[str, torch.Tensor]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """What `results` takes, arrays [n, ...], of recorded columns: predictions and what is beside them, labels."""
        found = [
            [column.numpy() for name, column in recorded.items() if name.startswith(prefix)] for prefix in self.prefixes
        ]
        return [*found[0], *found[2], *found[3]], found[1]

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        return self.score_relabelled(predictions, references, index, None)

    def score_relabelled(
        self, predictions: Any, references: Any, index: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Scores [m] of groups index [m, N], with labels [m, N, ...] of their own where there are some."""
        scores, hidden = [], len(index) < 64 or not logging.is_progress_bar_enabled()
        for place, rows in enumerate(
            tqdm(index.numpy(), f"scoring {self.name}", disable=hidden, leave=False, unit="group")
        ):
            group, truth = ([array[rows] for array in arrays] for arrays in (predictions, references))
            if labels is not None:
                truth = [labels[place].numpy().astype(truth[0].dtype)]
            scores.append(self.score_one(group, truth))
        return torch.tensor(scores, dtype=torch.float64)

    def results(  # type: ignore[override]  # of several arrays each, as Trainer may hand them over
        self, predictions: list[np.ndarray], labels: list[np.ndarray]
    ) -> dict[str, float]:
        """All that `compute_metrics` returns for arrays [N, ...], without the prefix `eval_`.

        Args:
            predictions: of the model, one array or more, then what is beside them: inputs, losses.
            labels: one array or more.
        """
        number = len(predictions) - len(self.beside)
        beside = {
            {"loss": "losses"}.get(name, name): self._handed([array])
            for name, array in zip(self.beside, predictions[number:], strict=True)
        }
        found = self.compute_metrics(EvalPrediction(self._handed(predictions[:number]), self._handed(labels), **beside))
        return {key.removeprefix("eval_"): value for key, value in found.items()}

    def _handed(self, arrays: list[np.ndarray]) -> Any:
        """Arrays [N, ...] as Trainer hands them over: one alone, or a tuple; in a list of batches, if it does so."""
        if self.batch_size is None:
            return arrays[0] if len(arrays) == 1 else tuple(arrays)
        starts = range(0, len(arrays[0]), self.batch_size)
        parts = [[array[start : start + self.batch_size] for array in arrays] for start in starts]
        return [part[0] if len(arrays) == 1 else tuple(part) for part in parts]


def _logits(decided: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits [n, C] that lead to classes [n], or to several labels [n, L], 0 or 1; of one output grades, [n, 1]."""
    if classes == 1 and decided.dim() == 1:
        return decided[:, None].float()
    return F.one_hot(decided, classes).float() if decided.dim() == 1 else 20.0 * decided - 10.0
