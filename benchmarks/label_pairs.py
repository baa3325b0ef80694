"""Pairs of data with several labels for each example and a metric, for benchmarks/promise.py."""

import functools
import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
from intents import Head, Rows, embedded, read_lines
from pairs import FROZEN_RECIPE, Pair, by_hand
from task import data_folder
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss.metrics import Metric, load_metric
from hf_reloss.surrogates.multilabel import SurrogateForMultilabel

TRAIN, DEVELOPMENT = 8_000, 2_000
"""Comments that are trained on, and those of development data."""


class LabelHead(Head):
    """Two linear layers on sentence embeddings [n, width], for several labels each."""

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.layers(embeddings)
        loss = None if labels is None else F.binary_cross_entropy_with_logits(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def _emotions(metric: Metric) -> Pair:
    """GoEmotions: 28 emotions, one or several for each comment, embedded by MiniLM as it comes, with a small head."""
    names = json.loads((data_folder() / "goemotions" / "label_names.json").read_text())
    parts = []
    for part, number in (("train", TRAIN), ("dev", DEVELOPMENT), ("test", None)):
        rows = read_lines("goemotions", part)[:number]
        labels = torch.tensor([[float(name in row["labels"]) for name in names] for row in rows])
        parts.append(Rows(embedded(f"goemotions_{part}_{len(rows)}", [row["text"] for row in rows]), labels))
    return Pair(
        *parts, functools.partial(LabelHead, len(names)), FROZEN_RECIPE | {"learning_rate": 4e-3}, metric=metric,
        field_loss=asymmetric, kind=SurrogateForMultilabel,
    )  # fmt: skip


def goemotions_macro_f1() -> Pair:
    """GoEmotions by macro-F1."""
    return _emotions(load_metric("f1", average="macro", threshold=0.5))


def goemotions_micro_f1() -> Pair:
    """GoEmotions by micro-F1."""
    return _emotions(load_metric("f1", average="micro", threshold=0.5))


asymmetric = functools.partial(by_hand, "asymmetric")
"""Asymmetric loss with its authors' options (Ridnik et al. 2021)."""


LABEL_PAIRS: dict[str, Callable[[], Pair]] = {
    made.__name__: made for made in (goemotions_macro_f1, goemotions_micro_f1)
}
"""All of these, by name."""
