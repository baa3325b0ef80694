"""Surrogates for keypoints, such as the joints of a body: from heatmaps [..., N, K, H, W] and points [..., N, K]."""

from collections.abc import Mapping
from typing import Any

import torch

from ..losses.base import Evidence
from ..losses.heatmaps import decode_heatmaps, labelled, squared_errors
from ..losses.learned.hits import DEFAULT_SCORES, HitNetwork
from ..losses.learned.paper_keypoints import PaperKeypointNetwork
from ..metrics import Metric, load_metric
from ..metrics.keypoints import OKS, PCK
from .base import Surrogate, output_tensor
from .config import SurrogateConfig


class SurrogateForKeypoints(Surrogate):
    """A learned loss for keypoints that are read from heatmaps, such as the joints of a body.

    Two architectures: `"hits"`, the soft form of PCK or OKS, and `"paper"`, that of Huang et al. 2022 (Relational
    Surrogate Loss Learning), which is not monotone: check its alignment.

    Models put out `heatmaps` [N, K, H, W] of K joints. Labels are [N, K, 3] float: x and y in pixels of the heatmap,
    whose centres are at integers, and visibility. A joint counts if that is above 0, and x and y, which may lie outside
    of the heatmap, are finite. For OKS the area of the object follows, in square pixels of the heatmap: [N, K, 4].

    Evidence: outputs [..., N, K, H, W]; labels [..., N, K, 3 or 4]; counts [..., N, K].

    Example:
        >>> from hf_reloss.losses.heatmaps import gaussian_targets
        >>> loss = SurrogateForKeypoints(SurrogateConfig(task="keypoints"))
        >>> body = torch.tensor([[[3.0, 3.0, 1.0], [12.0, 9.0, 1.0]]])
        >>> right, wrong = (gaussian_targets(body[..., :2] + off, 16, 16) for off in (0.0, 4.0))
        >>> loss({"heatmaps": right}, body) < loss({"heatmaps": wrong}, body)
        tensor(True)
    """

    task = "keypoints"
    networks = (HitNetwork, PaperKeypointNetwork)
    read_columns = ("heatmaps",)
    scored = ("decided", "labels")
    original_loss = "mean_squared_error"
    pipeline_tag = "keypoint-detection"

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if not labels.is_floating_point() or labels.dim() != 3:
            return False
        return isinstance(outputs, Mapping) and outputs.get("heatmaps") is not None

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        evidence = _read(outputs, labels)
        return {
            "heatmaps": evidence.outputs,
            "labels": evidence.labels,
            "decided": decode_heatmaps(evidence.outputs),
        }

    def example(self) -> tuple[str, str]:
        wide = self.config.architecture == "hits" and isinstance(self.network.metric, OKS)  # it reads the area, too
        height, width = (64, 48) if self.config.architecture == "hits" else (1, self.config.num_pixels)
        return f"torch.rand(8, 17, {height}, {width})", f"48 * torch.rand(8, 17, {4 if wide else 3})"

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        return _read(outputs, labels)

    def original_losses(self, evidence: Evidence) -> torch.Tensor:
        return squared_errors(evidence.outputs, evidence.labels[..., :2], self.config.sigma)

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "SurrogateForKeypoints":
        """A fresh surrogate whose structure fits a metric, or what `load_metric` takes: for PCK and OKS its soft form.

        Any other metric gets the soft form of PCK. Lengths that a metric has in pixels are in those of the heatmap.
        """
        metric = load_metric(metric)
        scores = {metric.name: metric.options} if isinstance(metric, PCK | OKS) else DEFAULT_SCORES
        return cls(SurrogateConfig(**{"task": cls.task, "scores": scores} | options))

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        return isinstance(metric, PCK | OKS)


def _read(outputs: Any, labels: torch.Tensor) -> Evidence:
    """The evidence of a model's outputs, or of what was recorded of them."""
    heatmaps = output_tensor(outputs, "heatmaps")
    given = None if labels is None else list(labels.shape)
    if heatmaps.dim() < 4 or given not in ([*heatmaps.shape[:-2], 3], [*heatmaps.shape[:-2], 4]):
        raise ValueError(
            "A surrogate for keypoints wants heatmaps [..., N, K, H, W] and labels [..., N, K, 3], x, y and visibility "
            f"of each joint, but got {list(heatmaps.shape)} and {given}."
        )
    if not labels.is_floating_point():
        raise ValueError(f"Labels are coordinates in pixels, floating-point numbers, but these are {labels.dtype}.")
    heatmaps = heatmaps.float()
    finite = heatmaps.isfinite()
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {finite.numel()} pixels of heatmaps are not finite: the model has diverged. "
            "Lower the learning rate, clip gradients, or train in a wider precision."
        )
    points, counts = labelled(labels)
    visibility = labels[..., 2:3].float().where(counts[..., None], 0.0)
    return Evidence(heatmaps, torch.cat([points, visibility, labels[..., 3:].float()], dim=-1), counts)
