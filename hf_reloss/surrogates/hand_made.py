"""Hand-made losses as surrogates, by their names."""

from collections.abc import Sequence
from typing import Any

import torch

from ..losses.hand_made import class_frequencies, hand_made_losses
from .auto import AutoSurrogate
from .base import Surrogate
from .config import SurrogateConfig


def hand_made_loss(
    name: str, labels: torch.Tensor | Sequence[int] | None = None, *, task: str | None = None, **options: Any
) -> Surrogate:
    """A loss by its name, as a `Surrogate`.

    Args:
        name: one of `hand_made_losses(None)`.
        labels: [n] int64, those of the training data, of which some take the frequencies of the classes, or several of
            each example, [n, L], 0 or 1; -100 does not count.
        task: what the loss is for: `"classification"`, `"multilabel"`, `"tokens"`, `"segmentation"` or
            `"embeddings"`; by default its first one.
        options: of the loss, such as `gamma=2.0` of `"focal"`; see its class.

    Raises:
        ValueError: for an unknown name or option, or where a loss wants labels and there are none.

    Example:
        >>> loss = hand_made_loss("focal", gamma=0.0)  # which is cross-entropy
        >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.1269)
    """
    losses = hand_made_losses(None)
    if name not in losses:
        raise ValueError(f"There is no hand-made loss {name!r}: choose one of {', '.join(losses)}.")
    task = task or losses[name].tasks[0]
    if task not in losses[name].tasks:
        choices = ", ".join(hand_made_losses(task)) or "none"
        raise ValueError(
            f"The loss {name!r} is for {' and '.join(losses[name].tasks)}. For {task} there are: {choices}."
        )
    if losses[name].wants_frequencies and "frequencies" not in options:
        options["frequencies"] = class_frequencies(name, labels)
    return AutoSurrogate.from_config(SurrogateConfig(task=task, architecture=name, loss_options=options))
