"""What a run has recorded to learn a surrogate from, on all processes together."""

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.utils import broadcast_object_list, gather_object

from ..distributed import undisturbed
from ..learning.time_limit import HELD_OUT, TimeLimit, affordable_groups
from ..learning.trainer import MisalignedSurrogateError, SurrogateTrainingArguments
from ..metrics import GroupwiseMetric, Metric
from ..metrics.adapters import AskedMetric, EvaluationMetrics
from ..predictions.dataset import joined, recorded_dataset, scored, text_decoder
from ..predictions.models import description_of
from ..predictions.recorder import PredictionRecorder
from ..surrogates.base import Surrogate
from ..surrogates.config import SurrogateConfig
from .arguments import FEWEST_TO_LEARN, option


class RunRecording:
    """The predictions that a run records, a part of them in each process.

    Args:
        trainer: whose run it is.

    Attributes:
        recorder: of this process.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.recorder = self._fresh()

    @property
    def kind(self) -> type[Surrogate] | None:
        """The surrogates that read the predictions; None before the first."""
        return self.recorder.kind

    @property
    def known_kind(self) -> type[Surrogate]:
        """The surrogates that read the predictions, once a batch has been seen."""
        assert self.recorder.kind is not None
        return self.recorder.kind

    def begin_anew(self) -> None:
        """Forgets all predictions; what comes is of the same kind."""
        kind, self.recorder = self.kind, self._fresh()
        self.recorder.kind = kind

    def _fresh(self) -> PredictionRecorder:
        return PredictionRecorder(option(self.trainer.args, "max_recorded_predictions"))

    def number(self) -> int:
        """How many predictions there are."""
        return sum(gather_object([len(self.recorder)]))

    def dataset(self, metric: Metric) -> datasets.Dataset:
        """All predictions.

        Args:
            metric: that is to be learned from them.

        Raises:
            ValueError: if they are too few.
        """
        parts = [part for part in gather_object([self.recorder.rows() if len(self.recorder) else None]) if part]
        number = sum(len(part["labels"]) for part in parts)
        if number < FEWEST_TO_LEARN:
            raise ValueError(too_few(number))
        columns = {name: joined([part[name] for part in parts]) for name in parts[0] if name != "index"}
        return recorded_dataset(
            self.known_kind,
            columns,
            tokenizer=self._decoder(metric),
            metric=metric,
            description=description_of(self.trainer.model),
        )

    def right_share(self) -> float:
        """The share of predictions with p(label) > 1/2, of the later half.

        Where predictions have parts, those with the commonest label are left out if they are most of all: a tagger that
        calls every word "O" is mostly right, and has found nothing.
        """
        right, labels = torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.long)
        if len(self.recorder):
            latest = {name: column[len(self.recorder) // 2 :] for name, column in self.recorder.rows().items()}
            reader = self.known_kind(SurrogateConfig(task=self.known_kind.task))
            evidence = reader.evidence(latest, latest["labels"])
            right = (reader.original_losses(evidence) < math.log(2))[evidence.counts]
            labels = evidence.labels[evidence.counts]
        found = gather_object([(right, labels)])
        right, labels = (torch.cat([each[part] for each in found]) for part in range(2))
        if self.known_kind.has_parts and len(labels):
            rare = labels != labels.mode().values
            right = right[rare] if 2 * rare.sum() < len(labels) and rare.any() else right
        return float(right.float().mean()) if len(right) else 0.0

    def sizes(self, metric: Metric, predictions: datasets.Dataset, limit: TimeLimit) -> dict[str, int]:
        """How many groups of which size learning can afford, as settings of it."""
        columns, size = self.recorder.rows() if len(self.recorder) else {}, group_size(len(predictions))
        some = {name: column[:size] for name, column in columns.items()}
        score = functools.partial(self.score, metric, some) if some else None
        with undisturbed():
            found = affordable_sizes(self.known_kind, metric, len(predictions), some, score, limit.seconds)
        (found,) = broadcast_object_list([found])  # all have as many as the first process can afford
        return found

    def score(self, metric: Metric, columns: Mapping[str, torch.Tensor]) -> float:
        """A metric of recorded predictions, taken as one group."""
        if isinstance(metric, EvaluationMetrics):
            return metric.score_one(*metric.columns(columns))
        return metric.compute(*scored(self.known_kind, columns, self._decoder(metric)))

    def save(self, checkpoint: Path) -> None:
        """Writes what this process has recorded into a checkpoint."""
        self.recorder.save(checkpoint / self._name)

    def load(self, checkpoint: Path) -> bool:
        """Goes on from a checkpoint; whether any process has found something in it."""
        file = checkpoint / self._name
        if file.is_file():
            self.recorder.load(file)
        return any(gather_object([file.is_file()]))

    @property
    def _name(self) -> str:
        return f"recording_{self.trainer.args.process_index}.safetensors"

    def _decoder(self, metric: Metric) -> Any:
        trainer = self.trainer
        return text_decoder(trainer.model, self.known_kind, metric, trainer.processing_class, trainer.data_collator)


def group_size(predictions: int) -> int:
    """Of how many predictions a group is: few of them make smaller groups, a tenth of them, as a fifth is held out."""
    return max(FEWEST_TO_LEARN // 10, min(SurrogateTrainingArguments.group_size, predictions // 10))


def affordable_sizes(
    kind: type[Surrogate],
    metric: Metric,
    predictions: int,
    some: Mapping[str, torch.Tensor],
    score: Callable[[], float] | None,
    seconds: float,
) -> dict[str, int]:
    """How many groups of which size learning can afford, as settings of it.

    Args:
        kind: of the surrogate.
        metric: that it is learned for.
        predictions: how many there are.
        some: columns of a group of them; empty where a process has none.
        score: the metric of these.
        seconds: that learning may take.
    """
    size, most = group_size(predictions), SurrogateTrainingArguments.num_eval_groups
    elements = sum(some[name][0].numel() for name in kind.read_columns if name in some)
    one_by_one = score if isinstance(metric, GroupwiseMetric) else None
    held_out = affordable_groups(most, size, predictions, elements, one_by_one, seconds / 2)
    return {"group_size": size, "num_eval_groups": held_out, "num_groups": HELD_OUT * held_out}


def too_few(number: int) -> str:
    """Why nothing can be learned from so few predictions."""
    return f"{number} predictions are recorded, and {FEWEST_TO_LEARN} are the fewest to learn from."


def why_failed(error: Exception) -> str:
    """Why nothing could be learned, as a sentence; of what a metric of somebody's own raised, with its type."""
    if isinstance(error, MisalignedSurrogateError):
        return error.summary
    text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return text if text.endswith((".", "!", "?")) else f"{text}."


def wrong_way_round(metric: Metric, alignment: float) -> str:
    """What is said of a soft metric that ranks groups of what was recorded the other way round than the metric does."""
    if isinstance(metric, AskedMetric):
        return (
            f"{metric.name} falls where predictions get better (rank correlation {alignment:.2f}). It may rank better "
            "when the model has trained for longer; if less of it is better, say so: greater_is_better=False with "
            "metric_for_best_model, or metric=load_metric(..., higher_is_better=False)."
        )
    return (
        f"The soft metric for {metric.name} ranks what the model predicts so far the wrong way round (rank correlation "
        f"{alignment:.2f}), so it is not used as the loss. A model that has trained for longer may rank better."
    )
