"""What makes a step's loss that of all its examples, however they are divided into micro-batches and processes."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..distributed import own_rows
from ..losses.heatmaps import labelled
from ..metrics.base import IGNORED_LABEL
from ..predictions.models import batch_labels

EVEN = (1.0, 1.0, 1.0)


class GlobalBatches:
    """The part of a Trainer that weighs the micro-batches of a step, in all processes, by what counts in them.

    A Trainer takes the mean over micro-batches, and DDP that over processes, which is the mean over examples only where
    all are of one size. The last ones of an epoch are not; what Accelerate fills the last one up with is cut off.

    Attributes:
        share: of the micro-batch at hand: the weights of a mean over what counts in it, as this process has it, of the
            loss of a group, which all processes have together, and of a mean over examples, as this process has it.
            Their mean over micro-batches and processes is 1.
        is_padding: whether this process has nothing else in it.
    """

    share: tuple[Any, Any, Any] = EVEN
    is_padding: bool = False

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._coming = deque()
        if batches and (len(batches) > 1 or self.args.world_size > 1):
            rows = [self._own_rows(batch, last=batch is batches[-1]) for batch in batches]
            self._coming.extend(zip(self._shares(batches, rows, device), [count == 0 for count in rows], strict=True))
        return batches, items

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.share, self.is_padding = self._coming.popleft() if getattr(self, "_coming", None) else (EVEN, False)
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self.share, self.is_padding = EVEN, False

    def _own_rows(self, batch: dict[str, Any], last: bool) -> int:
        """How many of a batch's examples are not there to fill it up; the others are cut off."""
        names = [name for name in self.label_names if torch.is_tensor(batch.get(name))]
        if not names:
            return -1
        number = len(batch[names[0]])
        own = own_rows(self, number) if last else number
        if 0 < own < number:  # of nothing, there is no mean: such a batch has no weight instead
            for name, value in batch.items():
                is_column = value.dim() > 0 if torch.is_tensor(value) else isinstance(value, list)
                if is_column and len(value) == number:
                    batch[name] = value[:own]
        return own

    def _shares(self, batches: list[dict[str, Any]], rows: list[int], device: torch.device) -> list[tuple[Any, ...]]:
        labels = [batch_labels(self.model, batch, self.label_names) for batch in batches]
        if any(each is None for each in labels):
            return [EVEN] * len(batches)
        numbers = [
            torch.stack([counts.sum(), counts.flatten(1).any(1).sum() if counts.dim() > 1 else counts.sum()])
            * bool(number)
            for counts, number in zip(map(which_count, labels), rows, strict=True)
        ]
        parts, examples = torch.stack(numbers, dim=-1).to(device).float()
        everywhere = self.accelerator.reduce(torch.stack([parts, examples]))
        micro_batches, processes = len(batches), self.args.world_size
        of_parts = parts * (micro_batches * processes) / everywhere[0].sum().clamp(min=1)
        of_groups = everywhere[1] * micro_batches / everywhere[1].sum().clamp(min=1)
        of_examples = examples * (micro_batches * processes) / everywhere[1].sum().clamp(min=1)
        return list(zip(of_parts, of_groups, of_examples, strict=True))


def which_count(labels: torch.Tensor) -> torch.Tensor:
    """Which labels [N, ...] count: joints that are visible, or all that are not -100."""
    return labelled(labels)[1] if labels.is_floating_point() and labels.dim() == 3 else labels != IGNORED_LABEL
