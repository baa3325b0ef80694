"""Hand-made losses as surrogates, by their names."""

from collections.abc import Sequence
from typing import Any

import torch

from ..losses.hand_made import class_frequencies, hand_made_losses
from .auto import AutoSurrogate
from .base import Surrogate
from .config import SurrogateConfig


def hand_made_loss(name: str, labels: torch.Tensor | Sequence[int] | None = None, **options: Any) -> Surrogate:
    """A loss by its name, as a `Surrogate`.

    Args:
        name: one of `hand_made_losses(None)`.
        labels: [n] int64, those of the training data, of which some take the frequencies of the classes; -100 does not
            count.
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
    if losses[name].wants_frequencies and "frequencies" not in options:
        options["frequencies"] = class_frequencies(name, labels)
    task = losses[name].task
    return AutoSurrogate.from_config(SurrogateConfig(task=task, architecture=name, loss_options=options))
