"""Metrics of the edges of segmentation maps."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from .base import IGNORED_LABEL, numbers, same_length
from .segmentation import MeanIoU, differ


@dataclass(frozen=True)
class BoundaryIoU(MeanIoU):
    """Boundary IoU (Cheng et al. 2021, arXiv:2103.16562): mean IoU of what lies near the edges of a class, in [0, 1].

    Of each map only the pixels of a class count that are within a distance of where it ends, or the image does; sides
    and corners are as far. Counts are added up over images, and the mean is over classes, as of `mean_iou`. Pixels that
    do not count are of no class in the references, and where they are no prediction counts.

    Predictions and options as of `SegmentationMetric`; they have to be whole maps, so that a surrogate, for which
    pixels are recorded without their places, cannot be learned of it. Statistics as of `CountMetric`.

    Args:
        dilation_ratio: the distance, as a share of the image's diagonal; it is 1 pixel or more.
    """

    name: ClassVar[str] = "boundary_iou"
    dilation_ratio: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.dilation_ratio < 1:
            raise ValueError(
                f"{self.name}: dilation_ratio is a share of an image's diagonal, 0 to 1, but got {self.dilation_ratio}."
            )

    def statistics(self, predictions: Any, references: Any) -> torch.Tensor:
        if not (differ(predictions) or differ(references)):
            return super().statistics(predictions, references)
        same_length(self.name, predictions, references)
        images = zip(predictions, references, strict=True)
        apart = [
            super(BoundaryIoU, self).statistics(*(numbers(each, self.name)[None] for each in image)).view(3, -1)
            for image in images
        ]
        classes = max(counts.shape[1] for counts in apart)
        return torch.stack([F.pad(counts, (0, classes - counts.shape[1])).flatten() for counts in apart])

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, references = super().read(predictions, references)
        if references.dim() != 3:
            raise ValueError(
                f"{self.name} wants whole maps [N, H, W], for edges are found by where pixels are, but got references "
                f"{list(references.shape)}. In a trainer it can be a key of compute_metrics; train on 'mean_iou'."
            )
        return predictions, references

    def _of_pixels(self, predictions: torch.Tensor, references: torch.Tensor, classes: int) -> torch.Tensor:
        counts = references != IGNORED_LABEL
        negative = ((predictions < 0) | (references < 0)) & counts
        if negative.any():
            raise ValueError(f"{self.name}: class indices are 0 or more, but there is one below.")
        largest = max([-1, *(int(x[counts].max()) for x in (predictions, references) if counts.any())])
        found = torch.zeros(len(references), 3, max(classes, 1, largest + 1), dtype=torch.float64)
        diagonal = math.hypot(*references.shape[1:])
        distance = max(1, round(self.dilation_ratio * diagonal))
        for image, (predicted, wanted) in enumerate(zip(predictions, references, strict=True)):
            known = counts[image]
            present = torch.cat([predicted[known], wanted[known]]).unique()[:, None, None]
            edges, theirs = (_near_edges(x == present, distance) & known for x in (predicted, wanted))
            kinds = torch.stack([edges & theirs, edges, theirs]).flatten(2).sum(-1)
            found[image, :, present.flatten().cpu()] = kinds.double().cpu()
        return found.flatten(1).to(references.device)


def _near_edges(masks: torch.Tensor, distance: int) -> torch.Tensor:
    """Those pixels of masks [k, H, W] bool that are at most a distance from one outside, or from the image's end."""
    outside = F.pad(~masks, (distance,) * 4, value=True).float()[:, None]
    width = 2 * distance + 1
    near = F.max_pool2d(F.max_pool2d(outside, (width, 1), stride=1), (1, width), stride=1)[:, 0]
    return masks & near.bool()
