"""Pairs of questions with sentences to be ranked and a metric, for benchmarks/promise.py."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from intents import Head, embedded, read_lines
from pairs import FROZEN_RECIPE, Pair
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss.metrics import Metric, load_metric
from hf_reloss.surrogates.multilabel import SurrogateForMultilabel


class RankingHead(Head):
    """Two linear layers from what is known of a question and each of its sentences, [N, D, width], to a score."""

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.layers(features).squeeze(-1)
        loss = None
        if labels is not None:
            counts = labels >= 0
            loss = F.binary_cross_entropy_with_logits(logits[counts], labels[counts])
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _questions(part: str) -> list[dict[str, torch.Tensor]]:
    """Questions with right and wrong sentences, by what MiniLM makes of both."""
    rows = read_lines("answer_ranking", part)
    question, sentence = (embedded(f"answers_{part}_{name}", [row[name] for row in rows]) for name in ("query", "text"))
    features = 20 * torch.cat([(question - sentence).abs(), question * sentence], dim=-1)  # about 1 each
    labels = torch.tensor([float(row["relevant"]) for row in rows])
    found = []
    for _, group in itertools.groupby(range(len(rows)), key=lambda row: rows[row]["query"]):
        chosen = list(group)
        if 0 < labels[chosen].mean() < 1:
            found.append({"features": features[chosen], "labels": labels[chosen]})
    return found


def _padded(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {
        "features": pad_sequence([row["features"] for row in rows], batch_first=True),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100.0),
    }


def _answers(metric: Metric) -> Pair:
    """Answer sentence selection (TREC questions): 78 questions of some 60 sentences each."""
    test = _questions("test")

    def score(trainer: Trainer) -> float:
        found = trainer.predict(test)
        return 100 * metric.compute(found.predictions, found.label_ids)

    return Pair(
        train=_questions("train"),
        development=_questions("dev"),
        test=test,
        make_model=functools.partial(RankingHead, 1, width=768),
        # Chosen for cross-entropy on development questions.
        recipe=FROZEN_RECIPE | {"learning_rate": 1e-3, "per_device_train_batch_size": 8},
        metric=metric,
        field_loss=lambda pair: lambda_loss,
        kind=SurrogateForMultilabel,
        options={"data_collator": _padded},
        score=score,
    )


def answers_map() -> Pair:
    """Answer sentences by MAP."""
    return _answers(load_metric("map"))


def answers_mrr() -> Pair:
    """Answer sentences by MRR."""
    return _answers(load_metric("mrr"))


def lambda_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """LambdaRank (Burges 2010): logistic losses of pairs, each by how much nDCG changes if the two are exchanged."""
    scores = outputs["logits"]
    exists = labels >= 0
    places = scores.detach().masked_fill(~exists, -torch.inf).argsort(1, descending=True).argsort(1)
    discounts = 1 / (2.0 + places).log2()
    relevant = labels > 0
    best = (1 / (2.0 + torch.arange(labels.shape[1])).log2()).cumsum(0)[relevant.sum(1).clamp(min=1) - 1]
    change = (discounts[:, :, None] - discounts[:, None, :]).abs() / best[:, None, None]
    pairs = relevant[:, :, None] & (exists & ~relevant)[:, None, :]
    losses = F.softplus(scores[:, None, :] - scores[:, :, None])
    return (losses * change * pairs).sum((1, 2)).mean()


RANKING_PAIRS: dict[str, Callable[[], Pair]] = {made.__name__: made for made in (answers_map, answers_mrr)}
"""All of these, by name."""
