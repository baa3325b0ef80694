"""A micro-batch, read once: its labels, what counts, and its weight in the loss of the step that it is a part of."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..distributed import own_rows
from ..losses.heatmaps import labelled
from ..metrics.base import IGNORED_LABEL
from ..predictions.models import batch_labels


class Weights(NamedTuple):
    """How much a micro-batch counts in a step; the mean of each over micro-batches and processes is 1.

    A Trainer takes the mean over micro-batches, and DDP that over processes, which is the mean over examples only where
    all are of one size. The last ones of an epoch are not.

    Attributes:
        of_parts: of a mean over what counts in it, as this process has it.
        of_group: of the loss of a group, which all processes have together.
        of_examples: of a mean over examples, as this process has it.
    """

    of_parts: torch.Tensor | float = 1.0
    of_group: torch.Tensor | float = 1.0
    of_examples: torch.Tensor | float = 1.0


EVEN = Weights()


@dataclasses.dataclass
class Batch:
    """A micro-batch, as a strategy sees it.

    Attributes:
        model: as it is trained, which may be wrapped; its mode says whether this is training or evaluation.
        inputs: what the collator has made of examples.
        labels: as surrogates read them (see `batch_labels`): [N, ...]; empty where they are none that a surrogate
            reads, and the loss is the model's own.
        weights: of it in its step.
        is_padding: whether this process has nothing in it but what fills the last batch of an epoch up.
    """

    model: nn.Module
    inputs: dict[str, Any]
    labels: torch.Tensor
    weights: Weights = EVEN
    is_padding: bool = False

    @property
    def training(self) -> bool:
        return self.model.training

    @functools.cached_property
    def counts(self) -> torch.Tensor:
        """Which labels [N, ...] count."""
        return which_count(self.labels)


class StepBatches:
    """Reads the micro-batches of a step before it begins, for their weights need the labels of all, everywhere.

    Args:
        trainer: whose they are.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._coming: list[tuple[list[Any], torch.Tensor | None, Weights, bool]] = []
        self._current: tuple[list[Any], torch.Tensor | None, Weights, bool] | None = None

    def fetch(self, batches: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Takes note of a step's micro-batches; what fills the last of an epoch up is cut off."""
        self._coming = []
        if not batches or (len(batches) == 1 and self.trainer.args.world_size == 1):
            return
        rows = [self._own_rows(batch, last=batch is batches[-1]) for batch in batches]
        labels = [self._labels(batch) for batch in batches]
        known = [each for each in labels if each is not None and each.numel()]
        weights = self._weights(known, rows, device) if len(known) == len(labels) else [EVEN] * len(batches)
        names = self.trainer.label_names
        sources = [[batch.get(name) for name in names] for batch in batches]
        self._coming = list(zip(sources, labels, weights, [number == 0 for number in rows], strict=True))

    def begin(self) -> None:
        """The next micro-batch of the step is trained on."""
        self._current = self._coming.pop(0) if self._coming else None

    def end(self) -> None:
        """It has been."""
        self._current = None

    def batch(self, model: nn.Module, inputs: dict[str, Any]) -> Batch:
        """The micro-batch at hand.

        Args:
            model: as it is trained or evaluated.
            inputs: on the device. Labels that were read before, the very tensors, are not read again.

        Raises:
            ValueError: if it has no labels.
        """
        sources, labels, weights, is_padding = self._current or ([], None, EVEN, False)
        same = len(sources) > 0 and all(
            inputs.get(name) is source for name, source in zip(self.trainer.label_names, sources, strict=True)
        )
        labels = labels if same else self._labels(inputs)
        if labels is None:
            raise ValueError(
                f"A surrogate wants labels, but label_names is {self.trainer.label_names} and the batch has "
                f"{sorted(inputs)}: check the data set's columns, or set label_names in TrainingArguments."
            )
        return Batch(model, inputs, labels, weights, is_padding)

    def _labels(self, inputs: dict[str, Any]) -> torch.Tensor | None:
        try:
            return batch_labels(self.trainer.model, inputs, self.trainer.label_names)
        except ValueError as error:
            self.trainer.strategy.does_without(str(error))
            return torch.empty(0, dtype=torch.long)

    def _own_rows(self, batch: dict[str, Any], last: bool) -> int:
        """How many of a batch's examples are not there to fill it up; the others are cut off."""
        names = [name for name in self.trainer.label_names if torch.is_tensor(batch.get(name))]
        if not names:
            return -1
        number = len(batch[names[0]])
        own = own_rows(self.trainer, number) if last else number
        if 0 < own < number:  # of nothing, there is no mean: such a batch has no weight instead
            for name, value in batch.items():
                is_column = value.dim() > 0 if torch.is_tensor(value) else isinstance(value, list)
                if is_column and len(value) == number:
                    batch[name] = value[:own]
        return own

    def _weights(self, labels: list[torch.Tensor], rows: list[int], device: torch.device) -> list[Weights]:
        numbers = [
            torch.stack([counts.sum(), counts.flatten(1).any(1).sum() if counts.dim() > 1 else counts.sum()])
            * bool(number)
            for counts, number in zip(map(which_count, labels), rows, strict=True)
        ]
        parts, examples = torch.stack(numbers, dim=-1).to(device).float()
        everywhere = self.trainer.accelerator.reduce(torch.stack([parts, examples]))
        micro_batches, processes = len(labels), self.trainer.args.world_size
        of_parts = parts * (micro_batches * processes) / everywhere[0].sum().clamp(min=1)
        of_groups = everywhere[1] * micro_batches / everywhere[1].sum().clamp(min=1)
        of_examples = examples * (micro_batches * processes) / everywhere[1].sum().clamp(min=1)
        return [Weights(*each) for each in zip(of_parts, of_groups, of_examples, strict=True)]


def which_count(labels: torch.Tensor) -> torch.Tensor:
    """Which labels [N, ...] count: joints that are visible, or all that are not -100."""
    return labelled(labels)[1] if labels.is_floating_point() and labels.dim() == 3 else labels != IGNORED_LABEL
