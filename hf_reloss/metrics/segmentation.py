"""Metrics of segmentation maps."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .base import IGNORED_LABEL, numbers
from .counts import CountMetric


@dataclass(frozen=True)
class MeanIoU(CountMetric):
    """Mean intersection over union of the classes that are predicted or due, in [0, 1].

    As evaluate's `mean_iou`: pixels of all images are counted together. Predictions are class maps [N, H, W], or logits
    [N, C, H, W] at the resolution of the references [N, H, W]. Statistics as of `CountMetric`.

    Args:
        num_labels: C, where predictions are class maps; by default one more than the largest that occurs.
        ignore_index: pixels of that label do not count, nor do those of -100.
        reduce_labels: 0 is the background, which does not count, and all other labels in the references go down by one.
    """

    name: ClassVar[str] = "mean_iou"
    num_labels: int | None = None
    ignore_index: int = 255
    reduce_labels: bool = False

    def decide(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(1) if outputs.is_floating_point() else outputs

    def statistics(self, predictions: Any, references: Any) -> torch.Tensor:
        predictions = numbers(predictions, self.name)
        if predictions.is_floating_point():
            if predictions.dim() != 4:
                raise ValueError(f"{self.name} wants logits [N, C, H, W] or class maps, not {list(predictions.shape)}.")
            classes = predictions.shape[1]
        else:
            classes = self.num_labels or 0
        return self._statistics(*self.read(predictions, references), classes)

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor, classes: int = 0) -> torch.Tensor:
        ignored = references == IGNORED_LABEL
        if self.reduce_labels:
            ignored = ignored | (references == 0) | (references == 255)
            references = references - 1
        ignored = ignored | (references == self.ignore_index)
        return super()._statistics(predictions, references.masked_fill(ignored, IGNORED_LABEL), classes)

    def _parts(
        self, right: torch.Tensor, predicted: torch.Tensor, due: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        union = predicted + due - right
        present = union > 0
        return right / union.masked_fill(~present, 1.0), present.to(due)

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        maps = {
            "predictions": self.decide(numbers(predictions, self.name)),
            "references": numbers(references, self.name),
        }
        seen = max(int(x[x != self.ignore_index].max()) for x in maps.values())
        return maps | {"num_labels": self.num_labels or seen + 1, "ignore_index": self.ignore_index}
