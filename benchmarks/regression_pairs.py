"""Pairs of data with one number for each example and a metric, for benchmarks/promise.py."""

import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from intents import Head
from pairs import Pair, by_hand, sick_features
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss.metrics import Metric, load_metric
from hf_reloss.surrogates.regression import SurrogateForRegression


class NumberHead(Head):
    """Two linear layers on sentence embeddings [n, width], to one number."""

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.layers(embeddings)
        loss = None if labels is None else F.mse_loss(logits[:, 0], labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _relatedness(metric: Metric, field_loss: Callable[[Pair], Callable[..., torch.Tensor]]) -> Pair:
    """SICK: how related two sentences are, a number from 1 to 5; what MiniLM makes of them, with a small head."""
    pair = sick_features(metric, lambda scores: torch.tensor(scores) - 1)
    model = functools.partial(NumberHead, 1, width=768)
    return dataclasses.replace(pair, make_model=model, field_loss=field_loss, kind=SurrogateForRegression)


huber, cosent = (functools.partial(by_hand, name) for name in ("huber", "cosent"))


def sick_pearson() -> Pair:
    """SICK by Pearson's correlation."""
    return _relatedness(load_metric("pearsonr"), huber)


def sick_spearman() -> Pair:
    """SICK by Spearman's correlation."""
    return _relatedness(load_metric("spearmanr"), cosent)


def sick_kappa_of_scores() -> Pair:
    """SICK by kappa with quadratic weights of rounded scores."""
    return _relatedness(load_metric("cohen_kappa", weights="quadratic").informed({"of_grades": True}), huber)


REGRESSION_PAIRS: dict[str, Callable[[], Pair]] = {
    made.__name__: made for made in (sick_pearson, sick_spearman, sick_kappa_of_scores)
}
"""All of these, by name."""
