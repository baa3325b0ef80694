"""Metrics of keypoints, such as the joints of a body: on whatever device predictions are, in double precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from .base import AdditiveMetric, numbers

COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),  # nose, eyes, ears
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),  # shoulders, elbows, wrists
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),  # hips, knees, ankles
)
"""By how much annotators differ about each of COCO's 17 joints, as a share of the object's scale."""


@dataclass(frozen=True)
class KeypointMetric(AdditiveMetric):
    """A mean over what is labelled, in [0, 1]; nan where nothing is.

    Predictions are coordinates [N, J, 2] of J joints. References have a joint's true x and y first, then, if anything,
    its visibility. A joint is labelled if its visibility is above 0 and its true coordinates are finite. A prediction
    that is nan is as wrong as can be. Statistics: [N, 2], the sum of what is averaged, and of how many.
    """

    reference_forms: ClassVar[dict[int, str]]
    """What references may look like, by the size of their last dimension."""

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        predictions, references = super().read(predictions, references)
        if (
            predictions.dim() != 3
            or predictions.shape[2] != 2
            or references.shape[:-1] != predictions.shape[:-1]
            or references.shape[-1] not in self.reference_forms
        ):
            forms = " or ".join(self.reference_forms.values())
            raise ValueError(
                f"{self.name} wants predictions [N, J, 2] and references {forms}, but got {list(predictions.shape)} "
                f"and {list(references.shape)}."
            )
        return predictions.double(), references.double()

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class PCK(KeypointMetric):
    """Percentage of correct keypoints: share of the labelled joints that are predicted near enough.

    That is, at a distance of at most (not: less than) alpha times a reference length: by default as in Yang and Ramanan
    2013, and with two joints of the head as in PCKh (Andriluka et al. 2014). References are [N, J, 2], or [N, J, 3]
    with visibility. An example whose length is 0 or unknown does not count.

    Attributes:
        alpha: the largest distance that is right, in reference lengths.
        length: "extent", the larger side of the bounding box of an example's labelled joints; a number of pixels; or
            two joints, between which it is the true distance.
    """

    name: ClassVar[str] = "pck"
    reference_forms: ClassVar[dict[int, str]] = {2: "[N, J, 2]", 3: "[N, J, 3]"}

    alpha: float = 0.2
    length: Literal["extent"] | float | tuple[int, int] = "extent"

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"{self.name}: alpha is a share of the length, above 0, but got {self.alpha}.")
        is_number = isinstance(self.length, int | float) and self.length > 0
        is_pair = isinstance(self.length, tuple | list) and len(set(self.length)) == 2 and min(self.length) >= 0
        if not (self.length == "extent" or is_number or is_pair):
            raise ValueError(
                f"{self.name}: length is 'extent', a number of pixels above 0, or the indices of two joints, but got "
                f"{self.length!r}."
            )

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        labelled = _labelled(references)
        length = self.lengths(references[..., :2], labelled)[:, None]
        counts = labelled & (length > 0)
        hits = counts & (_squared_distances(predictions, references).sqrt() <= self.alpha * length)
        return torch.stack([hits.sum(1), counts.sum(1)], dim=-1).double()

    def lengths(self, true: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
        """Reference lengths [N] of true coordinates [N, J, 2]; nan or negative where unknown."""
        if self.length == "extent":
            inside = labelled[..., None]
            return (true.where(inside, -torch.inf).amax(1) - true.where(inside, torch.inf).amin(1)).amax(-1)
        if isinstance(self.length, int | float):
            return true.new_full(true.shape[:1], self.length)
        if max(self.length) >= true.shape[1]:
            raise ValueError(
                f"{self.name}: length is from joint to joint {self.length}, but there are {true.shape[1]}."
            )
        first, second = self.length
        length = _squared_distances(true[:, first], true[:, second]).sqrt()
        return length.where(labelled[:, first] & labelled[:, second], torch.nan)


@dataclass(frozen=True)
class OKS(KeypointMetric):
    """COCO's object keypoint similarity of predicted instances to the true ones they belong to, averaged.

    Of an instance it is the mean over labelled joints of exp(-d² / (2 area (2 sigma)²)), d being a joint's distance in
    pixels. An instance without labelled joints does not count. Equal to `computeOks` of pycocotools where it is about
    labelled joints (https://cocodataset.org/#keypoints-eval).

    References are a mapping: `keypoints` [N, J, 3], x, y and visibility, and `area` [N], that of the object in square
    pixels. Packed into one array they are [N, J, 4], with the area as the last number of each joint: what `read` gives.

    Attributes:
        sigmas: by how much annotators differ about each joint; `COCO_SIGMAS` where there are 17 and none are given.
    """

    name: ClassVar[str] = "oks"
    reference_forms: ClassVar[dict[int, str]] = {4: "{'keypoints': [N, J, 3], 'area': [N]}, or packed [N, J, 4]"}

    sigmas: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.sigmas is not None and not min(self.sigmas, default=0) > 0:
            raise ValueError(f"{self.name}: sigmas are numbers above 0, one per joint, but got {self.sigmas}.")

    def read(self, predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(references, Mapping):
            references = self._pack(references)
        predictions, references = super().read(predictions, references)
        if len(self._sigmas) != predictions.shape[1]:
            raise ValueError(
                f"{self.name} wants one sigma per joint, but there are {predictions.shape[1]} joints and "
                f"{len(self._sigmas)} sigmas{', those of COCO' if self.sigmas is None else ''}. Pass as many sigmas."
            )
        if not (references[..., 3] >= 0).all():
            raise ValueError(
                f"{self.name} wants areas in square pixels, 0 or more, but got {references[..., 3].min()}."
            )
        return predictions, references

    @property
    def _sigmas(self) -> Sequence[float]:
        return COCO_SIGMAS if self.sigmas is None else self.sigmas

    def _pack(self, references: Mapping[str, Any]) -> torch.Tensor:
        if not {"keypoints", "area"} <= set(references):
            raise ValueError(
                f"{self.name} wants references with keypoints [N, J, 3] and area [N], but got {sorted(references)}."
            )
        keypoints = numbers(references["keypoints"], self.name).double()
        area = numbers(references["area"], self.name).to(keypoints)
        if keypoints.dim() != 3 or keypoints.shape[2] != 3 or area.shape != keypoints.shape[:1]:
            raise ValueError(
                f"{self.name} wants keypoints [N, J, 3] and area [N], but got {list(keypoints.shape)} and "
                f"{list(area.shape)}."
            )
        return torch.cat([keypoints, area[:, None, None].expand(-1, keypoints.shape[1], 1)], dim=-1)

    def _statistics(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        labelled = _labelled(references)
        variances = (2 * references.new_tensor(self._sigmas)).square()
        # As in pycocotools: where the area is 0, only what is exactly right is similar.
        areas = references[..., 3] + torch.finfo(torch.float64).eps
        similarity = torch.exp(-_squared_distances(predictions, references) / (2 * areas * variances))
        of_labelled = similarity.nan_to_num(nan=0.0) * labelled
        means = of_labelled.sum(1) / labelled.sum(1).clamp(min=1)
        return torch.stack([means, labelled.any(1).double()], dim=-1)


def _labelled(references: torch.Tensor) -> torch.Tensor:
    """Which joints [N, J] count, of references [N, J, 2 or more]."""
    finite = references[..., :2].isfinite().all(-1)
    return finite & (references[..., 2] > 0) if references.shape[-1] > 2 else finite


def _squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances [...] of points [..., 2 or more], by their first two coordinates."""
    return (a[..., :2] - b[..., :2]).square().sum(-1)
