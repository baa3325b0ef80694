"""A loss that is any function or module."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ...metrics import Metric
from ..batch import Batch
from .base import LossDescription, LossStrategy, StrategyLoss

logger = logging.get_logger(__name__)

NUMBER = "num_items_in_batch"


class OfFunction(LossStrategy):
    """A function of (outputs, labels) or of (outputs, labels, num_items_in_batch), or a module that is called so.

    It returns a scalar: a mean over what counts in a batch or, where it takes the number of items, a sum divided by
    that. The mean of a step is exact then, however its examples are divided into micro-batches and processes. It is the
    loss in evaluation, too. No alignment is measured, for it is not known what it reads of predictions.

    Args:
        function: the loss. A module is moved to the device of the model, and its own weights are not trained.
        metric: None.
    """

    changes_loss = False

    def __init__(self, function: Callable[..., torch.Tensor], metric: Metric | Any = None):
        super().__init__(metric)
        self.function, self.takes_number = function, _takes_number(function)

    @classmethod
    def of(cls, surrogate: Any, metric: Metric | Any) -> "OfFunction | None":
        return cls(surrogate, metric) if callable(surrogate) else None

    def prepare(self, trainer: Any) -> None:
        super().prepare(trainer)
        if self.wanted_metric is not None:
            logger.warning(
                f"metric= is not used: of {self.name}, a function, no alignment is measured. (LossMetricMonitor, a "
                "callback, measures that of the usual loss.)"
            )
        if isinstance(self.function, nn.Module):
            self.function.to(trainer.args.device)
            weights = sum(weight.numel() for weight in self.function.parameters() if weight.requires_grad)
            if weights:
                logger.warning(
                    f"{self.name} has {weights:,} weights of its own, which are not trained: the optimizer has those "
                    "of the model alone. Make it a part of the model if it is to learn."
                )

    @property
    def name(self) -> str:
        """Of the function."""
        return getattr(self.function, "__qualname__", None) or type(self.function).__qualname__

    def begin(self) -> None:
        self.announce_warmup()

    def end_step(self) -> None:
        self.announce_switch()

    def loss(self, batch: Batch, outputs: Any) -> StrategyLoss:
        number = {NUMBER: batch.counts.sum()} if self.takes_number else {}
        loss = self.function(outputs, batch.labels, **number)
        if not torch.is_tensor(loss) or loss.dim() > 0:
            found = f"a tensor {list(loss.shape)}" if torch.is_tensor(loss) else type(loss).__name__
            raise ValueError(f"The loss of a batch is a scalar, its mean, but {self.name} returned {found}.")
        if not batch.counts.any():
            loss = torch.nan_to_num(loss) * 0.0  # a mean over nothing
        return StrategyLoss(batch.weights.of_parts * loss, outputs)

    def describe(self) -> LossDescription:
        return LossDescription(self.name, sentence=f"on the loss function {self.name}, which is no surrogate")


def _takes_number(function: Callable[..., torch.Tensor]) -> bool:
    """Whether a loss is called with the number of items.

    Raises:
        ValueError: for one that cannot be called with outputs and labels.
    """
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # of a builtin
        return False
    takes = NUMBER in signature.parameters
    try:
        signature.bind(None, None, **({NUMBER: None} if takes else {}))
    except TypeError:
        raise ValueError(
            f"surrogate= takes a function of (outputs, labels) or (outputs, labels, {NUMBER}), but this one is of "
            f"{signature}."
        ) from None
    return takes
