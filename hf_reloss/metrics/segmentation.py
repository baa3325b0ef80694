"""Metrics of segmentation maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from .base import IGNORED_LABEL, add_up, numbers, same_length
from .counts import CountMetric


@dataclass(frozen=True)
class SegmentationMetric(CountMetric):
    """A metric of the pixels of all images, which are counted together.

    Predictions are class maps [N, H, W], or logits [N, C, H, W] at the resolution of the references [N, H, W]; images
    of different sizes are lists of maps [H, W], or of logits [C, H, W]. Statistics as of `CountMetric`.

    Args:
        num_labels: C, where predictions are class maps; by default one more than the largest that occurs.
        ignore_index: pixels of that label do not count, nor do those of -100.
        reduce_labels: 0 is the background, which does not count, and all other labels in the references go down by one.
    """

    num_labels: int | None = None
    ignore_index: int = 255
    reduce_labels: bool = False

    def decide(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.argmax(1) if outputs.is_floating_point() else outputs

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if differ(predictions) or differ(references):
            predictions, references = self._as_one(predictions, references)
        return super().read(predictions, references)

    def _as_one(self, predictions: Sequence[Any], references: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps of different sizes as tensors of the largest, filled up with what does not count."""
        same_length(self.name, predictions, references)
        maps = [numbers(each, self.name) for each in references]
        height, width = (max(each.shape[side] for each in maps) for side in (-2, -1))

        def filled(each: torch.Tensor, value: int) -> torch.Tensor:
            return F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2]), value=value)

        decided = []
        for prediction, own in zip(predictions, maps, strict=True):
            found = self.decide(numbers(prediction, self.name)[None])[0]
            if found.shape != own.shape:
                raise ValueError(
                    f"{self.name} wants predictions at the resolution of the references, but an image has predictions "
                    f"{list(found.shape)} for references {list(own.shape)}."
                )
            decided.append(filled(found.long(), 0))
        return torch.stack(decided), torch.stack([filled(own.long(), IGNORED_LABEL) for own in maps])

    def statistics(self, predictions: Any, references: Any) -> torch.Tensor:
        classes = self.num_labels or 0
        if not differ(predictions):
            predictions = numbers(predictions, self.name)
            if predictions.is_floating_point():
                if predictions.dim() != 4:
                    shape = list(predictions.shape)
                    raise ValueError(f"{self.name} wants logits [N, C, H, W] or class maps, not {shape}.")
                classes = predictions.shape[1]
        elif predictions and numbers(predictions[0], self.name).is_floating_point():
            classes = len(predictions[0])
        return self._statistics(*self.read(predictions, references), classes)

    def score_groups(self, predictions: Any, references: Any, index: torch.Tensor) -> torch.Tensor:
        if len(references) and numbers(references[0], self.name).dim() == 0:
            return super().score_groups(predictions, references, index)
        statistics = self.statistics(predictions, references)  # of logits, which say how many classes there are
        return self.score(add_up(statistics, index.to(statistics.device)))

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor, classes: int = 0) -> torch.Tensor:
        ignored = references == IGNORED_LABEL
        if self.reduce_labels:
            ignored = ignored | (references == 0) | (references == 255)
            references = references - 1
        ignored = ignored | (references == self.ignore_index)
        for maps, what in ((references, "references"), (predictions, "predictions")):
            beyond = (maps >= classes) & ~ignored
            if classes and beyond.any():
                raise ValueError(
                    f"{self.name} is of {classes} classes, 0 to {classes - 1}, but {what} hold {int(maps[beyond][0])}: "
                    f"set num_labels, or ignore_index (which is {self.ignore_index}) to the label that does not count."
                )
        return self._of_pixels(predictions, references.masked_fill(ignored, IGNORED_LABEL), classes)

    def _of_pixels(self, predictions: torch.Tensor, references: torch.Tensor, classes: int) -> torch.Tensor:
        """Statistics of maps; -100 in the references is all that does not count, `classes` are there at least."""
        return super()._statistics(predictions, references, classes)

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        maps = {
            "predictions": self.decide(numbers(predictions, self.name)),
            "references": numbers(references, self.name),
        }
        seen = max(int(x[x != self.ignore_index].max()) for x in maps.values())
        return maps | {"num_labels": self.num_labels or seen + 1, "ignore_index": self.ignore_index}


@dataclass(frozen=True)
class MeanIoU(SegmentationMetric):
    """Mean intersection over union of the classes that are predicted or that references have, in [0, 1].

    As evaluate's `mean_iou`. Predictions and options as of `SegmentationMetric`.
    """

    name: ClassVar[str] = "mean_iou"

    def evaluated(self, predictions: Any, references: Any) -> dict[str, Any]:
        """As evaluate's module: intersection over union and recall, on average and of each class, and the pixels."""
        sums = self.statistics(predictions, references).sum(0).cpu().unflatten(-1, (3, -1))
        right, predicted, support = F.pad(sums, (0, max(0, (self.num_labels or 0) - sums.shape[-1])))
        each = {"iou": right / (predicted + support - right), "accuracy": right / support}
        means = {f"mean_{key}": float(values.nanmean()) for key, values in each.items()}
        return {
            **means,
            "overall_accuracy": float(right.sum() / support.sum()),
            **{f"per_category_{key}": values.numpy() for key, values in each.items()},
        }

    def _parts(
        self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _ratio(right, predicted + support - right)


@dataclass(frozen=True)
class Dice(SegmentationMetric):
    """Mean Dice coefficient, 2 |A ∩ B| / (|A| + |B|), of the classes that are predicted or that references have.

    In [0, 1]; equal to scikit-learn's macro-F1 of the pixels. Predictions and options as of `SegmentationMetric`.
    """

    name: ClassVar[str] = "dice"

    def _parts(
        self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _ratio(2 * right, predicted + support)


@dataclass(frozen=True)
class PixelAccuracy(SegmentationMetric):
    """The share of pixels that are right, in [0, 1]: evaluate's `overall_accuracy` of `mean_iou`.

    Predictions and options as of `SegmentationMetric`.
    """

    name: ClassVar[str] = "pixel_accuracy"
    evaluate_module: ClassVar[str] = "mean_iou"
    evaluate_key: ClassVar[str] = "overall_accuracy"

    def _parts(
        self, right: torch.Tensor, predicted: torch.Tensor, support: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _ratio(right.sum(-1, keepdim=True), support.sum(-1, keepdim=True))


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Part / whole [...] and, as its weight, whether there is a whole."""
    present = whole > 0
    return part / whole.masked_fill(~present, 1.0), present.to(whole)


def differ(maps: Any) -> bool:
    """Whether they are a list of maps of different sizes."""
    if not isinstance(maps, list | tuple):
        return False
    return len({tuple(each.shape if hasattr(each, "shape") else numbers(each, "A map").shape) for each in maps}) > 1
