"""Surrogates for keypoints, such as the joints of a body: from heatmaps [..., N, K, H, W] and points [..., N, K]."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..metrics import Metric, load_metric
from ..metrics.keypoints import COCO_SIGMAS, OKS, PCK
from .base import Surrogate, output_tensor
from .config import SurrogateConfig
from .heatmaps import LITTLE, decode_heatmaps, gaussian_targets, labelled, squared_distances, squared_errors
from .layers import MonotoneSpline
from .network import Evidence, SurrogateNetwork

DEFAULT_SCORES: dict[str, dict[str, Any]] = {"pck": {"alpha": 0.2}}
"""The metric whose twin the surrogate of an unknown one is."""


class HitNetwork(SurrogateNetwork):
    """softplus(-g(m)) + κ E, with m the margin of a joint's hits and g an increasing spline: PCK or OKS, made soft.

    Softmax p of β times the heatmap, β = 10, is where the joint may be: it reads heatmaps whose peak is 1, as those are
    that were trained on squared errors. Where a hit would be is a distribution, too: each pixel's share w of the credit
    k(d / r) of all pixels, with d its distance from the true point and r that up to which the metric calls the joint
    right, or of OKS that at which similarity is exp(-1/2). Credit falls from 1, at the start for OKS as the similarity
    itself, for PCK as a smooth step within r; how fast it falls in each stretch of distances is learned. Of their
    divergence D = Σ w log(w / p) the margin is m = -D - log(1 - exp(-D)); at the start g is the identity, and the loss
    of a margin is D.

    What costs least in expectation, where the true point is uncertain, is the expected credit of each pixel: the
    heatmap's highest place is then the one of which the metric expects most. (-log Σ p k, the expected credit's, costs
    least where p is sharper than what is known, and its highest place need not be the best.)

    E is half the sum of squared errors against the Gaussian that heatmaps usually are trained on. It holds what no
    metric of the best place can see: level and scale of the heatmaps, and a peak's form, from which parts of pixels are
    read.

    It never costs more if the nearer of two pixels gets the larger one of their two values, whatever was learned.
    """

    architecture = "hits"
    count_dims = 2
    gradient_penalty = 0.03
    sharpness = 10.0
    """β."""
    least_radius = 0.7
    """In pixels of the heatmap: between pixels there is nothing nearer."""
    reach = 3.0
    """Beyond so many radii credit falls no more."""
    stretches = 24
    """Of distances, in which the fall of credit is learned."""
    steepness = 8.0
    """Of the smooth step: its logit falls by so much in one radius."""
    middle = 0.75
    """Of the smooth step, in radii: what is barely a hit is easily none."""

    def __init__(self, config: SurrogateConfig):
        super().__init__()
        name, options = next(iter((config.scores or DEFAULT_SCORES).items()))
        self.metric = load_metric(name, **options)
        if not isinstance(self.metric, PCK | OKS):
            raise ValueError(f"'hits' wants as scores one of 'pck' and 'oks' with its options, but got {name!r}.")
        self.sigma, self.anchor = config.sigma, config.anchor
        self.log_falls = nn.Parameter(torch.zeros(self.stretches))
        self.spline = MonotoneSpline(config.num_knots, config.knot_range, trust_region=config.trust_region)

    def losses(self, evidence: Evidence) -> torch.Tensor:
        points = evidence.labels[..., :2]
        size = evidence.outputs.shape[-2:]
        radii = self.radii(evidence.labels, evidence.counts).clamp(min=self.least_radius)
        credit = self.credit(squared_distances(points, *size).sqrt() / radii[..., None, None]).flatten(-2)
        due = credit / credit.sum(-1, keepdim=True).clamp(min=LITTLE)  # nearly nothing for joints that are far outside
        log_probability = (self.sharpness * evidence.outputs).flatten(-2).log_softmax(-1)
        score = (due * log_probability + torch.special.entr(due)).sum(-1).clamp(max=-1e-6)
        losses = self.curve(score - torch.log(-torch.expm1(score)))
        if not self.anchor:
            return losses
        return losses + self.anchor / 2 * math.prod(size) * squared_errors(evidence.outputs, points, self.sigma)

    def radii(self, labels: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """The distances [..., N, K] that count as one; 0 or below where the metric knows none.

        Args:
            labels, counts: as in the evidence.
        """
        if isinstance(self.metric, OKS):
            if labels.shape[-1] != 4:
                raise ValueError(
                    "The twin of OKS wants labels [..., N, K, 4], with the area of the object, in square pixels of the "
                    f"heatmap, behind x, y and visibility, but got {list(labels.shape)}."
                )
            sigmas = labels.new_tensor(COCO_SIGMAS if self.metric.sigmas is None else self.metric.sigmas)
            if len(sigmas) != labels.shape[-2]:
                raise ValueError(
                    f"The twin of OKS has {len(sigmas)} sigmas, but there are {labels.shape[-2]} joints: pass one each."
                )
            return 2 * sigmas * labels[..., 3].clamp(min=0).sqrt()
        lengths = self.metric.lengths(labels[..., :2].flatten(0, -3), counts.flatten(0, -2)).view(counts.shape[:-1])
        return (self.metric.alpha * lengths.nan_to_num(nan=0.0, neginf=0.0))[..., None].expand(counts.shape)

    def credit(self, distances: torch.Tensor) -> torch.Tensor:
        """k [...] of distances [...] in radii: 1 at 0, straight between its knots."""
        knots = torch.linspace(0, self.reach, self.stretches + 1, device=distances.device)
        smooth_step = F.softplus(self.steepness * (knots - self.middle))
        costs = knots.square() / 2 if isinstance(self.metric, OKS) else smooth_step
        values = torch.cat([knots[:1], (costs.diff() * self.log_falls.exp()).cumsum(0)]).neg().exp()
        place = (distances * (self.stretches / self.reach)).clamp(max=self.stretches - 1e-4)
        before = place.long()
        return torch.lerp(values[before], values[before + 1], place - before)

    def curve(self, points: torch.Tensor) -> torch.Tensor:
        """The loss of margins of hits."""
        return F.softplus(-self.spline(points))

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norms_of_start(evidence)

    def canonical(self, evidence: Evidence) -> Evidence:
        """Heatmaps with a peak of 1."""
        peaks = evidence.outputs.amax((-2, -1), keepdim=True)
        return evidence._replace(outputs=evidence.outputs / peaks.where(peaks > 1e-3, 1.0))


class PaperNetwork(SurrogateNetwork):
    """The authors' network, with sub-modules named as in their checkpoints: a · E, with an attention weight a.

    E is a joint's mean squared error. From its squared error at each pixel come 8 features, and a in (0, 1).
    """

    architecture = "paper"
    count_dims = 2
    curve_of = None
    width = 8

    def __init__(self, config: SurrogateConfig):
        super().__init__()
        self.pixels, self.sigma = config.num_pixels, config.sigma
        self.logits_fcs = nn.Sequential(
            nn.Linear(self.pixels, self.width), nn.ELU(), nn.Linear(self.width, 1), nn.Sigmoid()
        )

    def losses(self, evidence: Evidence) -> torch.Tensor:
        size = evidence.outputs.shape[-2:]
        if math.prod(size) != self.pixels:
            raise ValueError(
                f"The architecture 'paper' was made for heatmaps of {self.pixels} pixels, but these have "
                f"{size[0]}×{size[1]}: set num_pixels={math.prod(size)} and learn it anew."
            )
        errors = (evidence.outputs - gaussian_targets(evidence.labels[..., :2], *size, self.sigma)).square().flatten(-2)
        return errors.mean(-1) * self.logits_fcs(errors).squeeze(-1)


class SurrogateForKeypoints(Surrogate):
    """A learned loss for keypoints that are read from heatmaps, such as the joints of a body.

    Two architectures: `"hits"`, the soft twin of PCK or OKS, and `"paper"`, that of Huang et al. 2022 (Relational
    Surrogate Loss Learning), which is not monotone: check its alignment.

    Models put out `heatmaps` [N, K, H, W] of K joints. Labels are [N, K, 3] float: x and y in pixels of the heatmap,
    whose centres are at integers, and visibility. A joint counts if that is above 0, and x and y, which may lie outside
    of the heatmap, are finite. For OKS the area of the object follows, in square pixels of the heatmap: [N, K, 4].

    Evidence: outputs [..., N, K, H, W]; labels [..., N, K, 3 or 4]; counts [..., N, K].

    Example:
        >>> from hf_reloss.surrogates.heatmaps import gaussian_targets
        >>> loss = SurrogateForKeypoints(SurrogateConfig(task="keypoints"))
        >>> body = torch.tensor([[[3.0, 3.0, 1.0], [12.0, 9.0, 1.0]]])
        >>> right, wrong = (gaussian_targets(body[..., :2] + off, 16, 16) for off in (0.0, 4.0))
        >>> loss({"heatmaps": right}, body) < loss({"heatmaps": wrong}, body)
        tensor(True)
    """

    task = "keypoints"
    networks = (HitNetwork, PaperNetwork)
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
        """A fresh surrogate whose structure fits a metric, or what `load_metric` takes: for PCK and OKS its soft twin.

        Any other metric gets the twin of PCK. Lengths that a metric has in pixels are in those of the heatmap.
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
