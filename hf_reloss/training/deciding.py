"""Tuning the decision of a trainer's model, and putting it into the model."""

from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import Trainer

from ..decisions.base import DecisionRule
from ..decisions.folding import fold
from ..decisions.tuning import TunedDecision, tune_decision
from ..metrics import Metric
from ..metrics.adapters import EvaluationMetrics
from ..predictions.models import unwrapped

DECISION = "decision"
"""The prefix of what is measured where a decision is tuned, which is no evaluation of anybody's."""

FEW = 64
"""Examples by which it is checked that a model decides as its rule does."""


def tuned_decision(trainer: Trainer, dataset: Any, metric: Metric) -> tuple[TunedDecision, DecisionRule | None]:
    """Tunes the decision of a trainer's model on a data set, by a metric.

    Returns:
        What it has come to, and the rule if it is not in the model now.

    Raises:
        ValueError: for a model that puts out no logits [n, C], or labels that are not one for each example; for a key
            of a `compute_metrics` that gets more than these.
    """
    logits, labels, in_tuple = _logits_and_labels(trainer, dataset)
    if isinstance(metric, EvaluationMetrics):
        metric = metric.of_logits(trainer.preprocess_logits_for_metrics, in_tuple)
    # A slow metric is asked for as long as there is time: what the first process found holds for all.
    (found,) = broadcast_object_list([tune_decision(logits, labels, metric, seed=trainer.args.seed)])
    if found.rule is None:
        return found, None
    assert trainer.model is not None
    model: nn.Module = unwrapped(trainer.model)
    offsets = found.rule.offsets()
    if offsets is None or not hasattr(dataset, "__len__"):
        return found, found.rule
    few = [dataset[row] for row in range(min(FEW, len(dataset)))]
    if not fold(model, offsets):
        return found, found.rule
    folded, *_ = _logits_and_labels(trainer, few)
    if torch.allclose(folded, logits[: len(few)] + offsets.to(logits), atol=1e-3):
        return found, None
    fold(model, -offsets)  # that layer does not make the logits
    return found, found.rule


def _logits_and_labels(trainer: Trainer, dataset: Any) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """What a model puts out for a data set, its labels, and whether there is more than the logits."""
    kept = trainer.preprocess_logits_for_metrics, trainer.compute_metrics
    trainer.preprocess_logits_for_metrics = trainer.compute_metrics = None  # which may leave no logits
    try:
        output = trainer.predict(dataset, metric_key_prefix=DECISION)
    finally:
        trainer.preprocess_logits_for_metrics, trainer.compute_metrics = kept
    in_tuple = isinstance(output.predictions, tuple)
    logits = output.predictions[0] if in_tuple else output.predictions
    logits, labels = np.asarray(logits), np.asarray(output.label_ids)
    several = logits.ndim == 2 and labels.shape == logits.shape
    if not several and (logits.ndim not in (1, 2) or labels.shape != logits.shape[:1]):
        raise ValueError(
            "A decision is tuned for classifiers, logits [n, C] and labels [n] or, several for each example, [n, C], "
            f"but this model and data have {list(logits.shape)} and {list(labels.shape)}."
        )
    found = torch.from_numpy(labels)
    found = found.float() if found.is_floating_point() and not several else found.long()
    return torch.from_numpy(logits).float(), found, in_tuple
