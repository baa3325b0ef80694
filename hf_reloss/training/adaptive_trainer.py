"""AdaptiveLossTrainer: adaptive loss alignment (ALA), a loss that a controller changes while a model is trained on it.

Huang et al. 2019, Addressing the Loss-Metric Mismatch with Adaptive Loss Alignment, arXiv:1905.05895.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainingArguments

from ..adaptive_loss.controller import LossController
from ..metrics import Metric
from ..surrogates.base import Surrogate
from .strategies.adaptive import Adaptive
from .trainer import ReLossTrainer


class AdaptiveLossTrainer(ReLossTrainer):
    """A `ReLossTrainer` that adapts its loss: `ReLossTrainer(..., surrogate="ala")`, on validation data of its own.

    The first half of a run is on the model's own loss (`surrogate_warmup`), then the loss is -σ(Σ_j Φ_yj log p_j).
    Every `adapt_steps` steps (K, `ReLossTrainingArguments`) a controller looks at the confusions of pairs of classes
    on validation data and lowers, leaves or raises its Φ. Its reward is 1 if the metric has gained since its last
    action, -1 if it has lost. Φ is saved as any surrogate; the controller, in the folder `controller` beside it, can go
    on with another model or data set. With `adapt_children` each launched process trains a model, and they share it.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, processing_class, trainer_options: as for
            `ReLossTrainer`.
        surrogate: `"ala"`, with a fresh controller, or a `LossController`.
        metric: of which the reward is: what `load_metric` takes.
        validation_dataset: what the controller sees, by default `eval_dataset`, which then says nothing of other data.
            Of more than 2,000 examples, 2,000 are read, evenly spaced.
        loss: what is adapted in place of class correlations, from the start of the run on: the name of a hand-made loss
            that can be, such as `"triplet"`, or what `hand_made_loss` makes of it, which is changed then.

    Raises:
        ValueError: without a metric or validation data, or for a loss that cannot be adapted.

    Example:
        >>> AdaptiveLossTrainer(
        ...     model, train_dataset=train, validation_dataset=validation, loss="triplet", metric="recall_at_k"
        ... )  # doctest: +SKIP
    """

    strategy: Adaptive

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        metric: Metric | Any = None,
        surrogate: str | LossController = "ala",
        validation_dataset: Any = None,
        loss: str | Surrogate | None = None,
        **trainer_options: Any,
    ):
        if surrogate != "ala" and not isinstance(surrogate, LossController):
            raise ValueError(
                f"AdaptiveLossTrainer has surrogate='ala', or a LossController, but got {surrogate!r}: pass that to "
                "ReLossTrainer, or loss= here for what is to be adapted."
            )
        controller = surrogate if isinstance(surrogate, LossController) else None
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            surrogate=Adaptive(metric, controller=controller, loss=loss, validation_dataset=validation_dataset),
            **trainer_options,
        )

    @property
    def adaptation(self) -> Adaptive:
        """What adapts the loss: its controller, the history of actions, their rewards."""
        return self.strategy
