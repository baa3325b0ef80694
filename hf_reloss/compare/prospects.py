"""Whether another loss or another decision would help a model, by its predictions: the model itself is not needed."""

import functools
from typing import Any, NamedTuple

import datasets
import torch

from ..decisions.tuning import TunedDecision, tune_decision
from ..learning.learn_surrogate import learn_surrogate
from ..learning.time_limit import TimeLimit
from ..metrics import Metric
from ..predictions.dataset import recorded_dataset
from ..surrogates.auto import AutoSurrogate
from ..surrogates.base import Surrogate
from ..training.recording import FEWEST_TO_LEARN, affordable_sizes, group_size, too_few, why_failed
from ..training.strategies.learned import EPOCHS


class Prospects(NamedTuple):
    """What predictions say of a metric.

    Attributes:
        metric: the metric, with what the predictions say of its options.
        score: of the predictions as they are.
        alignments: of the usual loss, of the soft metric, if there is one, and of what was learned: Spearman's
            correlation of the negated loss with the metric, over groups of predictions that nothing was learned from.
            Empty where nothing could be learned.
        surrogate: what was learned; None if nothing was.
        no_surrogate_because: why, "" if something was.
        decision: what tuning the decision has come to; None where there is none to tune.
        no_decision_because: why, "" if there is one.
    """

    metric: Metric
    score: float
    alignments: dict[str, float]
    surrogate: Surrogate | None
    no_surrogate_because: str
    decision: TunedDecision | None
    no_decision_because: str

    @property
    def best_aligned(self) -> str:
        """The loss that ranks best; of equals that which is learned least."""
        return max(self.alignments, key=lambda name: self.alignments[name])

    def __str__(self) -> str:
        """What there is to say, in two lines."""
        name = self.metric.name
        ranks = ", ".join(f"{loss.replace('_', ' ')} {value:.3f}" for loss, value in self.alignments.items())
        loss = f"rank correlation with {name} on held-out groups: {ranks}" if ranks else self.no_surrogate_because
        return f"loss: {loss}\n{self.decision or f'decision: {self.no_decision_because}'}"


def prospects(
    logits: torch.Tensor, labels: torch.Tensor, metric: Metric, *, seconds: float = 10.0, seed: int = 0
) -> Prospects:
    """Learns a surrogate of a metric from predictions, and tunes their decision by it.

    Args:
        logits: [n, C] float, of examples that the model was not trained on; of a model of one number, [n, 1].
        labels: [n] int64, or several for each example, [n, C], 0 or 1; of one number [n] float. -100 does not count.
        metric: of such predictions.
        seconds: that learning may take.
        seed: of groups and of the parts of the examples.

    Raises:
        ValueError: for predictions that no surrogate reads, or that the metric does not score.
    """
    kind = AutoSurrogate.reading({"logits": logits}, labels)
    metric = metric.informed(kind.metric_options)
    columns = kind.recorded({"logits": logits}, labels, {})
    score = metric.compute(*(columns[name] for name in kind.scored))
    predictions = recorded_dataset(kind, columns | {"stage": torch.ones(len(labels))}, metric=metric)
    surrogate, decision, reasons = None, None, ["", ""]
    alignments: dict[str, float] = {}
    try:
        surrogate, alignments = _learned(kind, predictions, metric, seconds, seed)
    except Exception as error:  # a metric may be somebody's own, and raise anything
        reasons[0] = why_failed(error)
    try:
        decision = tune_decision(logits, labels, metric, seed=seed)
    except ValueError as error:
        reasons[1] = str(error)
    return Prospects(metric, score, alignments, surrogate, reasons[0], decision, reasons[1])


def _learned(
    kind: type[Surrogate], predictions: datasets.Dataset, metric: Metric, seconds: float, seed: int
) -> tuple[Surrogate, dict[str, float]]:
    """A surrogate as a run would learn it, and the alignment of all losses that are considered there."""
    if len(predictions) < FEWEST_TO_LEARN:
        raise ValueError(too_few(len(predictions)))
    some = predictions.with_format("torch")[: group_size(len(predictions))]
    score = functools.partial(metric.compute, *(some[name] for name in kind.scored))
    sizes: dict[str, Any] = affordable_sizes(kind, metric, len(predictions), some, score, seconds)
    learned = kind.for_metric(metric, trust_region=True)
    at_start = learn_surrogate(
        learned, predictions, metric, limit=TimeLimit(seconds), num_train_epochs=EPOCHS, seed=seed, **sizes
    )
    record = learned.config.record
    alignments = {learned.original_loss: record[f"alignment_{learned.original_loss}"]}
    if kind.has_soft_metric(metric):
        alignments["soft metric"] = at_start.config.record["alignment"]
    return learned, alignments | {"learned": record["alignment"]}
