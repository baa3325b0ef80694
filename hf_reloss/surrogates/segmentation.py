"""Surrogates for semantic segmentation: from logits [N, C, h, w] and maps of labels [N, H, W]."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..losses.base import Evidence
from ..losses.learned.pixels import GENERAL_SCORES, PixelCountNetwork, PixelMarginNetwork
from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from ..metrics.counts import CountMetric
from ..metrics.segmentation import SegmentationMetric
from .base import Surrogate, output_tensor
from .config import SurrogateConfig

IGNORED_PIXEL = 255
"""The label of a pixel that does not count, beside -100, unless it is a class."""

MOST_SCORED = 4_096
"""Pixels of an image of which decisions are recorded, for a metric to compare; of smaller ones all."""

MOST_NUMBERS, FEWEST_PIXELS = 512, 16
"""Logits of an image that are recorded to learn from, and of how many pixels at least."""

PULL = 0.01
"""The pull on the scale of logits: one of 0.1, as of classes, leaves no probabilities above nine tenths."""

ACCURACIES = ("pixel_accuracy", "accuracy")


class SurrogateForSegmentation(Surrogate):
    """A learned loss for semantic segmentation.

    Two architectures: `"counts"`, the soft form of metrics of counts per class (mean IoU, Dice), over the pixels of a
    batch, and `"margin"`, that of pixel accuracy.

    Labels are [N, H, W] int64, of which -100 does not count, nor does 255 unless it is a class. Logits [N, C, h, w] of
    another size are brought to that of the labels bilinearly, as SegFormer does (`align_corners=False`). Of recorded
    predictions a sample of pixels is kept, the same places of all images of a size: `pixel_logits` [n, S, C] float32
    with `labels` [n, S], and decisions and labels of up to 4,096 pixels, `decided` and `map` int16, for the metric.

    Evidence: outputs [..., N, P, C]; labels [..., N, P]; counts [..., N, P], with P pixels of each image.

    Example:
        >>> loss = SurrogateForSegmentation.for_metric("mean_iou")
        >>> labels = torch.tensor([[[0, 1], [2, 255]]])
        >>> logits = 4.0 * F.one_hot(labels.clamp(max=2), 3).movedim(-1, 1)
        >>> loss(logits, labels) < loss(-logits, labels)
        tensor(True)
    """

    task = "segmentation"
    networks = (PixelCountNetwork, PixelMarginNetwork)
    read_columns = ("pixel_logits",)
    scored = ("decided", "map")
    original_loss = "cross_entropy"
    pipeline_tag = "image-segmentation"

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if labels.dim() != 3 or labels.is_floating_point():
            return False
        if isinstance(outputs, Mapping) and outputs.get("logits") is None:
            return False
        logits = output_tensor(outputs, "logits")
        return logits.dim() == 4 and len(logits) == len(labels) and logits.shape[1] > 1

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        logits = output_tensor(outputs, "logits").float()
        classes, size = logits.shape[1], labels.shape[-2:]
        flat = _ignoring(labels, classes).flatten(1)
        learned, scored = (
            _places(size, most, labels.device) for most in (max(FEWEST_PIXELS, MOST_NUMBERS // classes), MOST_SCORED)
        )
        return {
            "pixel_logits": _at(logits, size, learned),
            "labels": flat[:, learned],
            "decided": _at(logits, size, scored).argmax(-1).to(torch.int16),
            "map": flat[:, scored].to(torch.int16),
        }

    def example(self) -> tuple[str, str]:
        return "torch.randn(2, 19, 32, 32)", "torch.randint(19, (2, 128, 128))"

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        if isinstance(outputs, Mapping) and outputs.get("pixel_logits") is not None:
            logits = outputs["pixel_logits"].float()
        else:
            logits = _of_pixels(outputs, labels)
            labels = labels.flatten(1)
        classes = logits.shape[-1]
        labels = _ignoring(labels, classes)
        counts = labels != IGNORED_LABEL
        wrong = counts & ((labels < 0) | (labels >= classes))
        if wrong.any():
            raise ValueError(
                f"Labels must be 0 to {classes - 1} (the model puts out {classes} logits for each pixel), or "
                f"{IGNORED_LABEL} or {IGNORED_PIXEL} to be ignored, but {int(wrong.sum())} pixels are not, such as "
                f"{int(labels[wrong][0])}. If that label is not to count, replace it by {IGNORED_LABEL}, or set the "
                "model's config.semantic_loss_ignore_index to it."
            )
        if not logits.isfinite().all():
            raise ValueError(
                f"{int((~logits.isfinite()).sum())} of {logits.numel()} logits are not finite: the model has diverged. "
                "Lower the learning rate, clip gradients, or train in a wider precision."
            )
        return Evidence(logits, labels.masked_fill(~counts, 0), counts)

    def original_losses(self, evidence: Evidence) -> torch.Tensor:
        losses = F.cross_entropy(evidence.outputs.flatten(0, -2), evidence.labels.flatten(), reduction="none")
        return losses.view(evidence.labels.shape)

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "SurrogateForSegmentation":
        """A fresh surrogate of a structure that fits a metric, or what `load_metric` takes.

        For metrics of counts per class (mean IoU, Dice, F1) that is `"counts"` of the metric itself, for pixel accuracy
        `"margin"`; for a key of `compute_metrics` that of the metric of the name, where there is one; for any other
        `"counts"` of mean IoU and pixel accuracy, mixed.
        """
        metric = load_metric(metric)
        if metric.name in ACCURACIES:
            structure: dict[str, Any] = {"architecture": "margin"}
        elif _is_of_counts(metric):
            structure = {"architecture": "counts", "scores": {metric.name: metric.options}}
        else:
            own = metric.name in ("mean_iou", "dice")
            structure = {"architecture": "counts", "scores": {metric.name: {}} if own else GENERAL_SCORES}
        settings: dict[str, Any] = {"task": cls.task, "scale_weight": PULL}
        return cls(SurrogateConfig(**settings | structure | options))

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        return isinstance(metric, SegmentationMetric) or metric.name == "accuracy" or _is_of_counts(metric)


def _is_of_counts(metric: Metric) -> bool:
    of_labels = getattr(metric, "threshold", None) is not None
    return isinstance(metric, CountMetric) and not of_labels


def _ignoring(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Labels [...] as int64, -100 where they do not count."""
    labels = labels.long()
    return labels if classes > IGNORED_PIXEL else labels.masked_fill(labels == IGNORED_PIXEL, IGNORED_LABEL)


def _of_pixels(outputs: Any, labels: torch.Tensor | None) -> torch.Tensor:
    """Logits [N, H W, C] of a model's outputs at the pixels of labels [N, H, W]."""
    logits = output_tensor(outputs, "logits")
    given = None if labels is None else list(labels.shape)
    if labels is None or logits.dim() != 4 or labels.dim() != 3 or len(logits) != len(labels) or logits.shape[1] < 2:
        raise ValueError(
            "A surrogate for segmentation wants logits [N, C, h, w] of two classes or more and labels [N, H, W], but "
            f"got {list(logits.shape)} and {given}."
        )
    if labels.is_floating_point():
        raise ValueError(f"The surrogate wants integer labels, class indices, but these are {labels.dtype}.")
    logits = logits.float()
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return logits.flatten(2).transpose(1, 2)


def _places(size: Sequence[int], most: int, device: torch.device) -> torch.Tensor:
    """Places [S] of pixels of an image, row by row: all, or `most` of them, one at random in each stretch."""
    number = size[0] * size[1]
    if number <= most:
        return torch.arange(number, device=device)
    within = torch.rand(most, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ((torch.arange(most) + within) * (number / most)).long().to(device)


def _at(logits: torch.Tensor, size: Sequence[int], places: torch.Tensor) -> torch.Tensor:
    """Logits [N, S, C] at some places of maps of a size, of logits [N, C, h, w]: as if brought to that size before."""
    height, width = size
    if logits.shape[-2:] == torch.Size(size):
        return logits.flatten(2)[..., places].transpose(1, 2)
    rows, columns = places // width, places % width
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1).to(logits)
    grid = grid.expand(len(logits), 1, -1, -1)
    found = F.grid_sample(logits, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)
