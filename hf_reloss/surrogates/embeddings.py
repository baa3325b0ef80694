"""Losses of embeddings, of which nothing is learned: from embeddings [..., N, D] and classes [..., N]."""

from collections.abc import Mapping
from typing import Any

import torch

from ..losses.base import Evidence
from ..losses.hand_made.margin import Margin
from ..losses.hand_made.triplet import Triplet
from ..metrics import Metric
from ..metrics.base import IGNORED_LABEL
from .base import Surrogate, output_tensor

NAMES = ("embeddings", "sentence_embedding", "text_embeds", "image_embeds")
"""What models call their embeddings, the logits of those with a head aside."""


class SurrogateForEmbeddings(Surrogate):
    """A loss for metric learning: examples of one class are to be near each other, and far from all others.

    Its architectures are hand-made losses, `"triplet"` and `"margin_loss"`, of groups. Embeddings are what the model
    puts out as `embeddings`, `sentence_embedding`, `text_embeds`, `image_embeds` or, if it has none of these, `logits`.

    Example:
        >>> from hf_reloss import hand_made_loss
        >>> loss = hand_made_loss("triplet", margin=0.1)
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> loss(embeddings, torch.tensor([7, 7, 9])) < loss(embeddings, torch.tensor([7, 9, 7]))
        tensor(True)
    """

    task = "embeddings"
    networks = (Triplet, Margin)
    read_columns = ("embeddings",)
    scored = ("embeddings", "labels")
    original_loss = "triplet"

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if labels.dim() != 1 or not isinstance(outputs, Mapping) or outputs.get("logits") is not None:
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
        return Evidence(embeddings, classes.masked_fill(~counts, 0), counts)

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "SurrogateForEmbeddings":
        """There is none: no surrogate of a metric of embeddings is learned here.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "No surrogate of a metric of embeddings is learned: train on surrogate='triplet' or 'margin_loss', or on "
            "one of them that is adapted to the metric, AdaptiveLossTrainer(..., loss='triplet')."
        )

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        return False


def embeddings_of(outputs: Any) -> torch.Tensor:
    """The embeddings [..., N, D] that a model puts out, by their names or, of a tuple, the first tensor."""
    found = isinstance(outputs, Mapping) and next((name for name in NAMES if outputs.get(name) is not None), "logits")
    return output_tensor(outputs, found or NAMES[0])
