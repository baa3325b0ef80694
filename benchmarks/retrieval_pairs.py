"""Pairs of sentences to be found by their embeddings and Recall@1, for benchmarks/promise.py."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from metric_learning import TEST, TRAINED, VALIDATION, BagOfWords, Sentences
from pairs import FROZEN_RECIPE, Pair, by_hand, intent_rows
from torch import nn
from transformers import Trainer
from transformers.utils import ModelOutput

from hf_reloss import SurrogateConfig, SurrogateForEmbeddings
from hf_reloss.metrics import load_metric


class Retriever(nn.Module):
    """Embeddings, with the supervised contrastive loss."""

    def __init__(self):
        super().__init__()
        self.contrastive = SurrogateForEmbeddings(SurrogateConfig(task="embeddings"))

    def answer(self, found: torch.Tensor, labels: torch.Tensor | None) -> ModelOutput:
        """What the model puts out, of embeddings [n, D]."""
        if labels is None:
            return ModelOutput(embeddings=found)
        losses = self.contrastive.original_losses(self.contrastive.evidence(found, labels))
        return ModelOutput(loss=losses.mean(), embeddings=found)


class SentenceRetriever(Retriever):
    """Two linear layers from embeddings [n, 384] to embeddings [n, 64]."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(384, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 64))

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor | None = None) -> ModelOutput:
        return self.answer(self.layers(embeddings), labels)


class WordRetriever(Retriever):
    """The mean of a vector for each word and each pair of neighbouring words."""

    def __init__(self):
        super().__init__()
        self.words = BagOfWords()

    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> ModelOutput:
        return self.answer(self.words(ids).embeddings, labels)


def retrieval_intents() -> Pair:
    """HWU64: sentences of 64 intents, embedded by MiniLM as it comes, by embeddings of two further layers."""
    parts, _ = intent_rows("hwu64")
    return _pair(parts, SentenceRetriever, 1e-3)


def retrieval_new_intents() -> Pair:
    """CLINC150: trained on 50 intents, development on 25 others, test on 75 others; vectors of words from scratch."""
    parts = [Sentences("train", TRAINED), Sentences("train", VALIDATION), Sentences("test", TEST)]
    return _pair(parts, WordRetriever, 3e-2)


def _pair(parts: list[Any], make_model: Callable[[], Retriever], learning_rate: float) -> Pair:
    """The learning rate is the best of three for the usual loss on development data, one seed."""
    metric = load_metric("recall_at_k")

    def score(trainer: Trainer) -> float:
        found = trainer.predict(parts[-1])
        return 100 * metric.compute(found.predictions, found.label_ids)

    return Pair(
        *parts,
        make_model=make_model,
        recipe=FROZEN_RECIPE | {"learning_rate": learning_rate, "per_device_train_batch_size": 128},
        metric=metric,
        field_loss=triplet,
        kind=SurrogateForEmbeddings,
        warmup=0.1,  # as "auto" has it
        score=score,
    )


triplet = functools.partial(by_hand, "triplet")
"""The triplet loss, with its default margin."""


RETRIEVAL_PAIRS: dict[str, Callable[[], Pair]] = {
    made.__name__: made for made in (retrieval_intents, retrieval_new_intents)
}
"""All of these, by name."""
