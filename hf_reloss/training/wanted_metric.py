"""Which metric a run learns: what `metric=` means is known once the first batch has shown what there is to score."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers.utils import logging

from ..metrics import AdditiveMetric, Metric
from ..metrics.adapters import CallableMetric, ComputeMetrics, EvaluationMetrics
from ..metrics.base import IGNORED_LABEL
from ..metrics.loading import direction_by_name
from ..metrics.per_example import PerExampleMetric
from ..metrics.probabilities import ProbabilityMetric
from ..predictions.dataset import scored
from ..predictions.models import metric_for, writes_text
from ..surrogates.base import Surrogate
from ..surrogates.config import SurrogateConfig
from ..surrogates.spans import SurrogateForSpans
from .arguments import option

logger = logging.get_logger(__name__)

MOST_EVALUATION_BYTES = 2**30
"""Of what is recorded for `compute_metrics`, in each process."""


class WantedMetric:
    """Finds out what is to be learned: a key of `compute_metrics`, or a metric.

    Args:
        trainer: whose run it is.
        wanted: a word, or what `load_metric` takes.

    Attributes:
        wanted: the word, where it may be a key of `compute_metrics`, or a metric.
        records_evaluation: whether what `compute_metrics` would get is to be recorded beside the predictions.
    """

    def __init__(self, trainer: Any, wanted: Metric | Any):
        self.trainer, self.word = trainer, wanted if isinstance(wanted, str) else ""
        # Of one that adds up batches, groups cannot be scored: a word is a name then.
        may_be_key = self.word and trainer.compute_metrics is not None and not trainer.args.batch_eval_metrics
        try:
            self.wanted: str | Metric = wanted if may_be_key else metric_for(trainer.model, wanted)
        except ValueError as unknown:
            if not trainer.args.batch_eval_metrics:
                raise
            raise ValueError(
                f"With batch_eval_metrics=True compute_metrics cannot score groups one by one, so metric={wanted!r} is "
                f"the name of a metric, no key of what it returns: {unknown}"
            ) from None
        self.records_evaluation = False

    @property
    def signature(self) -> str:
        """What was asked for: the word, or the metric's signature."""
        return self.wanted if isinstance(self.wanted, str) else self.wanted.signature

    def find(
        self, kind: type[Surrogate], outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]
    ) -> Metric | None:
        """The metric that is meant, by what a first batch has to score. A word means a key of `compute_metrics`, or
        else the name of a metric; None where it is no name, and whether it is a key cannot be found out, or where it is
        of probabilities that are not recorded, so that the strategy does without.

        Args:
            kind: of surrogates, which reads the predictions.
            outputs, labels: of the model.
            inputs: what it was given.

        Raises:
            ValueError: for predictions that cannot be read, or a word that is neither.
        """
        metric = self._found(kind, outputs, labels, inputs)
        if isinstance(metric, ProbabilityMetric) and not kind.scores_logits:
            self.trainer.strategy.does_without(
                f"{metric.name} is of probabilities, but of {kind.task} what is decided is recorded. The model's own "
                "loss is made for it already"
            )
            return None
        return metric

    def _found(
        self, kind: type[Surrogate], outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]
    ) -> Metric | None:
        """As `find`, of whatever."""
        reader = kind(SurrogateConfig(task=kind.task))
        reader.to(labels.device)  # type: ignore[arg-type]  # transformers' decorator hides `self`
        reader.evidence(outputs, labels)
        if not isinstance(self.wanted, str):
            means_another = self._meant(self.word, kind) != self.word
            return self._of_name(self.word, kind) if means_another else self.wanted.informed(kind.metric_options)
        columns = kind.recorded(outputs, labels, inputs)
        on_host = {name: x.detach().cpu() for name, x in columns.items()}
        return self._metric_of_key(self.wanted, kind, outputs, on_host, inputs)

    def try_on(
        self,
        metric: Metric,
        kind: type[Surrogate],
        decoder: Any,
        outputs: Any,
        labels: torch.Tensor,
        inputs: Mapping[str, Any],
    ) -> None:
        """Tries a metric on a first batch, decoded by `decoder`, else as `find`: what fails should fail now."""
        if not isinstance(metric, EvaluationMetrics):  # which has been called on this batch
            self._compute(metric, kind, decoder, kind.recorded(outputs, labels, inputs))
        known = getattr(metric, "direction_known", True)
        asked = isinstance(metric, CallableMetric | ComputeMetrics | PerExampleMetric)
        if asked and (not metric.higher_is_better or not known):
            less, more = ("Less", "more") if not metric.higher_is_better else ("More", "less")
            self.trainer.strategy.tell(
                f"{less} of {metric.name} is taken to be better{'' if known else ', as nothing says otherwise'}. If "
                f"{more} is, say so: metric=load_metric(..., higher_is_better={not metric.higher_is_better}) or, of a "
                "key of compute_metrics, metric_for_best_model with greater_is_better."
            )

    def _compute(
        self, metric: Metric, kind: type[Surrogate], decoder: Any, columns: Mapping[str, torch.Tensor]
    ) -> None:
        try:
            metric.compute(*scored(kind, {name: x.detach().cpu() for name, x in columns.items()}, decoder))
        except Exception as error:  # a batch may be too small for it, so this is no more than a sign
            if isinstance(metric, AdditiveMetric) and not isinstance(metric, PerExampleMetric):
                if not isinstance(error, ValueError):
                    raise  # any batch is large enough for it
                raise ValueError(
                    f"The metric {metric.name!r} cannot score what this model predicts, which is read as "
                    f"{kind.task}: {error}"
                ) from error
            logger.warning(
                f"The metric {metric.name!r} cannot score the first batch ({error!r}). If it cannot score groups "
                "either, no surrogate of it can be learned."
            )

    def _metric_of_key(
        self, key: str, kind: type[Surrogate], outputs: Any, columns: dict[str, torch.Tensor], inputs: Mapping[str, Any]
    ) -> Metric | None:
        """The metric that a word means: the user's own function, if it returns such a key, or one known by name."""
        ways = self._own_metrics(key, kind, outputs, columns, inputs)
        own, keys, failed = ways[0][0], set[str](), None
        for way, call in ways:
            try:
                own, keys, failed = way, {*call()}, None
                break
            except Exception as error:
                failed = failed or error
        if failed is not None and kind.scores_logits:  # which is reported when it is tried as the metric
            return next(way for way, _ in ways if not isinstance(way, EvaluationMetrics))
        if own.key in keys:
            self.records_evaluation = isinstance(own, EvaluationMetrics)
            return own
        try:
            metric = self._of_name(key.removeprefix("eval_"), kind)
        except ValueError as unknown:
            if failed is None:
                given = f"compute_metrics gives {sorted(keys)}, without {own.key!r}."
                raise ValueError(f"{given} {unknown}") from None
            self.trainer.strategy.does_without(
                f"compute_metrics cannot be called on a training batch ({failed!r}), and no metric is known by the "
                f"name {key!r}. Mend that, or pass metric= the metric itself, as load_metric takes it"
            )
            return None
        if failed is not None:
            self.trainer.strategy.tell(
                f"compute_metrics cannot be called on a training batch ({failed!r}): what is learned is the metric "
                f"that is known by the name {metric.name!r}."
            )
        return metric

    def _meant(self, word: str, kind: type[Surrogate]) -> str:
        """The name of the metric that a word means for a task; of texts that a model writes, F1 is that of answers."""
        return (SurrogateForSpans if writes_text(self.trainer.model) else kind).metric_words.get(word, word)

    def _of_name(self, word: str, kind: type[Surrogate]) -> Metric:
        return metric_for(self.trainer.model, self._meant(word, kind)).informed(kind.metric_options)

    def _own_metrics(
        self, key: str, kind: type[Surrogate], outputs: Any, columns: dict[str, torch.Tensor], inputs: Mapping[str, Any]
    ) -> list[tuple[ComputeMetrics, Callable[[], dict[str, float]]]]:
        """The key of `compute_metrics` as a metric, in the ways in which it may be called, and a call on the first
        batch of each. Where Trainer hands over no more than logits and labels, those that are recorded anyway do."""
        trainer, args, better = self.trainer, self.trainer.args, self._higher_is_better(key)
        handed = EvaluationMetrics(
            trainer.compute_metrics,
            key,
            higher_is_better=better,
            included=args.include_for_metrics,
            batch_size=None if args.eval_do_concat_batches else args.eval_batch_size,
        )
        whole = [(handed, lambda: handed.results(*handed.columns(self._evaluated_batch(outputs, inputs))))]
        if not kind.scores_logits:
            return whole  # type: ignore[return-value]
        passed_over = {"loss", *getattr(getattr(trainer.model, "config", None), "keys_to_ignore_at_inference", ())}
        own = ComputeMetrics(
            trainer.compute_metrics,
            key,
            preprocess_logits_for_metrics=trainer.preprocess_logits_for_metrics,
            higher_is_better=better,
            in_tuple=isinstance(outputs, Mapping) and len(outputs.keys() - passed_over) > 1,
        )
        logits, labels = (columns[name] for name in kind.scored)
        rows = (labels != IGNORED_LABEL).view(len(labels), -1).any(-1)
        alone = [(own, lambda: own.results(logits[rows].numpy(), labels[rows].numpy()))]
        gets_more = handed.beside or handed.batch_size is not None
        return [*whole, *alone] if gets_more else [*alone, *(whole if own.in_tuple else [])]

    def _evaluated_batch(self, outputs: Any, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What `compute_metrics` would get of a batch, on the host.

        Raises:
            ValueError: if that cannot be recorded.
        """
        found = {name: value.detach().cpu() for name, value in self.as_evaluated(outputs, inputs).items()}
        if not found:
            raise ValueError("what the model puts out is not one tensor with a row per example, or a tuple of these")
        size = sum(value[0].nbytes for value in found.values())
        most = option(self.trainer.args, "max_recorded_predictions")
        if size * most > MOST_EVALUATION_BYTES:
            raise ValueError(
                f"it would get {size / 2**20:.1f} MiB for each example, too much to record {most:,} of them: pass "
                "preprocess_logits_for_metrics=, such as lambda logits, labels: logits.argmax(-1)"
            )
        return found

    def as_evaluated(self, outputs: Any, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """What `compute_metrics` would get of a batch, as columns to record."""
        ignored = getattr(
            getattr(self.trainer.model, "config", None), "keys_to_ignore_at_inference", ["past_key_values"]
        )
        if isinstance(outputs, Mapping):
            found = tuple(value for name, value in outputs.items() if name not in ("loss", *ignored))
        else:
            found = tuple(outputs[1:])
        labels = tuple(inputs[name] for name in self.trainer.label_names)
        predictions = found[0] if len(found) == 1 else found
        labels = labels[0] if len(labels) == 1 else labels
        if getattr(self.trainer.args, "predict_with_generate", False):  # it gets ids; here they are of the next tokens
            predictions = found[0].argmax(-1)
        elif self.trainer.preprocess_logits_for_metrics is not None:
            predictions = self.trainer.preprocess_logits_for_metrics(predictions, labels)
        return EvaluationMetrics.recorded(predictions, labels, *self._beside(outputs, inputs))

    def _beside(self, outputs: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        """The inputs and the losses that `compute_metrics` gets beside predictions, or empty tuples."""
        included, given, losses = self.trainer.args.include_for_metrics, (), ()
        if "inputs" in included:
            given = inputs[getattr(self.trainer.model, "main_input_name", "input_ids")]
        if "loss" in included:
            loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs[0]
            first = inputs[self.trainer.label_names[0]]
            losses = loss.detach().mean().repeat(len(first))  # as Trainer does
        return given, losses

    def _higher_is_better(self, key: str) -> bool | None:
        chosen = (self.trainer.args.metric_for_best_model or "").removeprefix("eval_")
        if chosen == key and self.trainer.args.greater_is_better is not None:
            return self.trainer.args.greater_is_better
        return direction_by_name(key)
