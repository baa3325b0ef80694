"""Hand-made losses for imbalanced classes, to compare with: from logits [N, C] and labels [N] to a scalar.

Class frequencies are those of the training data, [C], summing to 1.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from task import Loss


def class_weights(logits: torch.Tensor, labels: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in which each class weighs as much as any other."""
    return F.cross_entropy(logits, labels, weight=1 / frequencies)


def logit_adjustment(logits: torch.Tensor, labels: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits to which log frequencies are added (Menon et al. 2021, arXiv:2007.07314, τ = 1)."""
    return F.cross_entropy(logits + frequencies.log(), labels)


def soft_f1(logits: torch.Tensor, labels: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """1 less the mean F1 of the batch's classes, with probabilities for decisions."""
    probabilities = logits.softmax(-1)
    due = F.one_hot(labels, logits.shape[-1]).to(probabilities)
    f1 = 2 * (probabilities * due).sum(0) / (probabilities + due).sum(0)
    return 1 - f1[due.sum(0) > 0].mean()


def of_classes(labels: torch.Tensor) -> dict[str, Loss]:
    """These losses by name, with the frequencies of the classes among training labels [n]."""
    frequencies = torch.bincount(labels).float() / len(labels)

    def bound(loss: Callable[..., torch.Tensor]) -> Loss:
        return lambda outputs, inputs: loss(outputs["logits"], inputs["labels"], frequencies)

    return {loss.__name__: bound(loss) for loss in (class_weights, logit_adjustment, soft_f1)}
