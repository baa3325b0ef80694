"""Losses of embeddings, learned and hand-made: from embeddings [..., N, D] and classes [..., N]."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils import logging

from ..losses.base import Evidence
from ..losses.hand_made.margin import Margin
from ..losses.hand_made.triplet import Triplet
from ..losses.learned.neighbours import NeighbourNetwork, supervised_contrastive
from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from ..metrics.retrieval import RecallAtK
from .base import Surrogate, output_tensor
from .config import SurrogateConfig

logger = logging.get_logger(__name__)

NAMES = ("embeddings", "sentence_embedding", "text_embeds", "image_embeds")
"""What models call their embeddings, the logits of those with a head aside."""


class SurrogateForEmbeddings(Surrogate):
    """A loss for metric learning: examples of one class are to be near each other, and far from all others.

    The architecture `"neighbours"` is the soft form of Recall@k; `"triplet"` and `"margin_loss"` are hand-made losses.
    All are of groups. Embeddings are what the model puts out as `embeddings`, `sentence_embedding`, `text_embeds`,
    `image_embeds` or, if it has none of these, `logits`.

    Evidence: outputs [..., N, D], embeddings; labels [..., N] int64, classes; counts [..., N], False where the label
    was -100.

    Example:
        >>> loss = SurrogateForEmbeddings.for_metric("recall_at_k")
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> loss(embeddings, torch.tensor([7, 7, 9])) < loss(embeddings, torch.tensor([7, 9, 7]))
        tensor(True)
    """

    task = "embeddings"
    networks = (NeighbourNetwork, Triplet, Margin)
    read_columns = ("embeddings",)
    scored = ("embeddings", "labels")
    original_loss = "supervised_contrastive"
    swaps_labels = True

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if labels.dim() != 1 or labels.is_floating_point() or not isinstance(outputs, Mapping):
            return False
        if outputs.get("logits") is not None:
            return False
        return any(outputs.get(name) is not None for name in NAMES)

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"embeddings": embeddings_of(outputs).float(), "labels": labels}

    def example(self) -> tuple[str, str]:
        return "torch.randn(32, 64)", "torch.randint(8, (32,))"

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        embeddings = embeddings_of(outputs)
        if labels is None or embeddings.dim() < 2 or embeddings.shape[:-1] != labels.shape:
            given = None if labels is None else list(labels.shape)
            raise ValueError(
                "A loss of embeddings wants one embedding and one class per example, [..., N, D] and [..., N], but got "
                f"{list(embeddings.shape)} and {given}."
            )
        classes = labels.long()
        counts = classes != IGNORED_LABEL
        if labels.is_floating_point() or (classes[counts] < 0).any():
            raise ValueError(
                f"A loss of embeddings wants class indices from 0 on, or {IGNORED_LABEL} for what does not count, but "
                f"got {labels[counts].min().item()} ({labels.dtype})."
            )
        embeddings = embeddings.float()
        if not embeddings.isfinite().all():
            raise ValueError(
                f"{int((~embeddings.isfinite()).sum())} of {embeddings.numel()} values of the embeddings are not "
                "finite: the model has diverged. Lower the learning rate, clip gradients, or train in a wider "
                "precision."
            )
        evidence = Evidence(embeddings, classes.masked_fill(~counts, 0), counts)
        if counts.dim() == 1 and (missing := _missing(evidence)):
            logger.warning_once(
                f"In a batch {missing}, so that there is nothing in it to learn from. If that is so in most of them, "
                "use larger ones, or a sampler that draws some examples of each of several classes."
            )
        return evidence

    def original_losses(self, evidence: Evidence) -> torch.Tensor:
        return supervised_contrastive(evidence)

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "SurrogateForEmbeddings":
        """A fresh surrogate for a metric, or what `load_metric` takes: `"neighbours"`, which is soft Recall@k."""
        load_metric(metric)
        return cls(SurrogateConfig(**{"task": cls.task, "architecture": "neighbours"} | options))

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        return isinstance(metric, RecallAtK)


def _missing(evidence: Evidence) -> str:
    """What a group [N] lacks of examples of one class and of different ones; empty if it has both, or nothing."""
    sizes = evidence.labels[evidence.counts].unique(return_counts=True)[1]
    if len(sizes) > 1 and sizes.max() == 1:
        return "no two examples are of one class"
    return "all examples are of one class" if len(sizes) == 1 else ""


def embeddings_of(outputs: Any) -> torch.Tensor:
    """The embeddings [..., N, D] that a model puts out, by their names or, of a tuple, the first tensor."""
    found = isinstance(outputs, Mapping) and next((name for name in NAMES if outputs.get(name) is not None), "logits")
    return output_tensor(outputs, found or NAMES[0])
