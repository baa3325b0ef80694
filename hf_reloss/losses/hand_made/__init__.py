"""Hand-made losses, to compare with: each a file, of which nothing is learned.

As a surrogate, each of them computes in float32, sees the micro-batch of all processes where it is a group's, is
watched, saved and loaded as what is learned is: `ReLossTrainer(..., surrogate="focal")`.
"""

import importlib
import pkgutil
from collections.abc import Sequence

import torch

from .base import HandMadeLoss


def hand_made_losses(task: str | None = "classification") -> dict[str, type[HandMadeLoss]]:
    """Those for a task, or with None for any, by name: one in each module here, and those defined elsewhere by now."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {
        name: kind
        for (of_task, name), kind in sorted(HandMadeLoss.defined.items())
        if issubclass(kind, HandMadeLoss) and task in (None, of_task)
    }


def class_frequencies(name: str, labels: torch.Tensor | Sequence[int] | None) -> list[float]:
    """The share of each class, [C], among labels [n], for the loss of a name; or of each of several labels [n, L]."""
    if labels is None:
        raise ValueError(
            f"The loss {name!r} weighs classes by how frequent they are, but there are no labels to count: make it of "
            f"those that are trained on, hand_made_loss({name!r}, labels)."
        )
    labels = torch.as_tensor(labels).long()  # of two classes they may be True and False
    if labels.dim() == 2:
        shares = (labels > 0).sum(0) / (labels >= 0).sum(0)
        alike = (~((shares > 0) & (shares < 1))).nonzero().flatten().tolist()
        if alike:
            raise ValueError(
                f"The loss {name!r} divides by the shares of the examples that have each label and have it not, but "
                f"all or none have the labels {alike}: drop them, or pass frequencies=."
            )
        return shares.tolist()
    counts = torch.bincount(labels[labels >= 0])
    if len(counts) < 2 or not counts.all():
        missing = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"The loss {name!r} divides by the frequencies of the classes, but of the classes 0 to {len(counts) - 1} "
            f"{missing or 'others'} have no label in the training data: merge or drop them, or pass frequencies=."
        )
    return (counts / counts.sum()).tolist()
