"""Surrogates for one label per example: from logits [..., N, C] and class indices [..., N]."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import nn

from ..metrics import Metric, load_metric
from ..metrics.classification import CountMetric
from .base import Surrogate, counted, output_tensor
from .config import SurrogateConfig
from .layers import MonotoneSpline, ScoreMixture, class_margins, label_margin, logit_scale
from .network import Evidence, SurrogateNetwork

GENERAL_SCORES: dict[str, dict[str, Any]] = {
    "recall": {"average": "micro"},  # which is accuracy
    "precision": {"average": "macro"},
    "f1": {"average": "macro"},
    "balanced_accuracy": {},
    "matthews_correlation": {},
}
"""What the surrogate of an unknown metric mixes."""


class MarginNetwork(SurrogateNetwork):
    """softplus(-g(m)) + κ‖z - z̄‖, with g an increasing spline that is learned."""

    architecture = "margin"
    gradient_penalty = 0.03

    def __init__(self, config: SurrogateConfig):
        super().__init__()
        self.pull = _checked_share(config.scale_weight)
        self.spline = MonotoneSpline(config.num_knots, config.knot_range, trust_region=config.trust_region)

    def losses(self, evidence: Evidence) -> torch.Tensor:
        of_margin = self.curve(label_margin(evidence.outputs, evidence.labels))
        return of_margin + self.pull * logit_scale(evidence.outputs)[..., 0]

    def curve(self, margin: torch.Tensor) -> torch.Tensor:
        return F.softplus(-self.spline(margin))

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        """Held to those of its start, where φ(m) = softplus(-m); in closed form.

        With φ the learned loss of the margin and u the unit vector along the centred logits, the gradient is
        φ'(m) ∇m + κ u, of which only φ' depends on the weights: nothing has to be differentiated twice.
        """
        with torch.no_grad():
            index = evidence.labels[..., None]
            margin = label_margin(evidence.outputs, evidence.labels)
            others = evidence.outputs.gather(-1, index) - margin[..., None]  # their log-sum-exp
            gradient = (evidence.outputs - others).clamp(max=0).exp().neg_().scatter_(-1, index, 1.0)  # ∇m
            centred = evidence.outputs - evidence.outputs.mean(-1, keepdim=True)
            along = (gradient * centred).sum(-1) / logit_scale(centred)[..., 0]
            across = (gradient.square_().sum(-1) - along.square()).clamp(min=0.0)

        def norms(slope: torch.Tensor) -> torch.Tensor:
            # Of two classes the gradient lies along the logits, and at rest it vanishes: the root is kept off 0.
            return ((slope * along + self.pull).square() + slope.square() * across + 1e-12).sqrt()

        slope = -torch.sigmoid(-self.spline(margin)) * self.spline.slope(margin)
        return norms(slope), norms(-torch.sigmoid(-margin))

    def canonical(self, evidence: Evidence) -> Evidence:
        return at_rest(evidence, self.pull)


class CountNetwork(SurrogateNetwork):
    """A `ScoreMixture` of metrics of soft counts, plus κ‖z - z̄‖. The soft counts have a learned spline in them."""

    architecture = "counts"
    gradient_penalty = 0.03

    def __init__(self, config: SurrogateConfig):
        super().__init__()
        self.pull = _checked_share(config.scale_weight)
        # Half of the probability stays half: with an offset, learning took soft hits to where all are small, in which
        # their ratios rank well, and a model that was trained on them lost all it had.
        self.spline = MonotoneSpline(
            config.num_knots, config.knot_range, anchored=True, trust_region=config.trust_region
        )
        # In the order of their names, in which a configuration is saved: the weights of the mixture go by it.
        self.metrics = [load_metric(name, **options) for name, options in sorted((config.scores or {}).items())]
        if not self.metrics:
            raise ValueError(
                "The architecture 'counts' wants scores: the metrics whose soft twins it mixes, such as "
                "{'f1': {'average': 'macro'}}; SurrogateForClassification.for_metric chooses them."
            )
        for metric in self.metrics:
            if not isinstance(metric, CountMetric):
                raise ValueError(f"scores are metrics of counts per class, as 'f1' is, but {metric.name!r} is not.")
        self.mixture = ScoreMixture(len(self.metrics))

    def forward(self, evidence: Evidence) -> torch.Tensor:
        counts = evidence.counts[..., None]
        soft = torch.sigmoid(self.spline(class_margins(evidence.outputs))) * counts
        due = F.one_hot(evidence.labels, soft.shape[-1]) * counts
        # A class that is not due takes no part: it has no right ones that could become more.
        # Of a ratio to next to nothing the second derivatives have no bound.
        predicted = (soft.sum(-2) + 1e-9) * (due.sum(-2) > 0)
        sums = torch.cat([(soft * due).sum(-2), predicted, due.sum(-2)], dim=-1)
        scores = []
        for metric in self.metrics:
            parts, weights = metric.parts(sums)
            defined = parts.isfinite()  # of one class alone, there is no recall beyond guessing
            parts = ((parts - metric.zero_point) / (1 - metric.zero_point)).clamp(min=0)
            scores.append((parts.masked_fill(~defined, 0.0), weights * defined))
        number = evidence.counts.sum(-1).clamp(min=1)
        pull = (logit_scale(evidence.outputs)[..., 0] * evidence.counts).sum(-1) / number
        return self.mixture(scores) + self.pull * pull

    def curve(self, margin: torch.Tensor) -> torch.Tensor:
        return F.softplus(-self.spline(margin))

    def adopt(self, version: Version) -> None:
        """Of more than one score, 0.1 saved the weights in the order in which they were given, and lost that order."""
        if version >= Version("0.2.0") or len(self.metrics) < 2:
            return
        if {metric.name: metric for metric in self.metrics} != {
            name: load_metric(name, **options) for name, options in GENERAL_SCORES.items()
        }:
            raise ValueError(
                f"It was saved by hf_reloss {version}, which lost the order of its {len(self.metrics)} scores "
                f"({', '.join(metric.name for metric in self.metrics)}), and with it which weight belongs to which: "
                "learn it again."
            )
        given = list(GENERAL_SCORES)
        with torch.no_grad():
            self.mixture.weights.copy_(self.mixture.weights[[given.index(metric.name) for metric in self.metrics]])

    def learned(self) -> dict[str, str]:
        weights = self.mixture.weights.softmax(-1).tolist()
        named = zip((metric.name for metric in self.metrics), weights, strict=True)
        return {"scores": ", ".join(f"{name} {weight:.2f}" for name, weight in named)}

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norms_of_start(evidence)

    def canonical(self, evidence: Evidence) -> Evidence:
        return at_rest(evidence, self.pull)


class PaperNetwork(SurrogateNetwork):
    """The authors' network from p(label), with sub-modules named as in their checkpoints."""

    architecture = "paper"

    def __init__(self, config: SurrogateConfig):
        super().__init__()
        width = config.hidden_size
        self.logits_fcs = nn.Sequential(nn.Linear(1, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.loss = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))

    def losses(self, evidence: Evidence) -> torch.Tensor:
        return self.curve(evidence.outputs.softmax(-1).gather(-1, evidence.labels[..., None]).squeeze(-1))

    curve_of = "p(label)"

    def curve(self, probability: torch.Tensor) -> torch.Tensor:
        return self.loss(self.logits_fcs(probability[..., None])).squeeze(-1).abs()


class SetNetwork(SurrogateNetwork):
    """A network of sets, which knows nothing of metrics (Grabocka et al. 2019, arXiv:1905.10108, equation 8).

    Of each class, the pairs of its probability and of whether it is due go through a network, are averaged over the
    group, and go through another; the mean over the classes that are due goes through a third. Of two classes the
    second, the positive one, says all. Its value is what the objective `"approximation"` makes of it: minus the metric.
    """

    architecture = "set"
    curve_of = None

    def __init__(self, config: SurrogateConfig):
        super().__init__()
        width = min(config.hidden_size, 32)
        self.of_examples = nn.Sequential(nn.Linear(2, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.of_classes = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.of_group = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):  # as it usually starts, groups hardly differ after six layers
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, evidence: Evidence) -> torch.Tensor:
        counts = evidence.counts[..., None]
        number, classes = evidence.outputs.shape[-2:]
        probabilities, due = evidence.outputs.softmax(-1), F.one_hot(evidence.labels, classes) * counts
        if classes > max(number, 2):  # as many examples have no more classes among them, and others do not count
            chosen = due.sum(-2, keepdim=True).topk(number, dim=-1).indices.expand(*due.shape[:-1], number)
            probabilities, due = probabilities.gather(-1, chosen), due.gather(-1, chosen)
        pairs = torch.stack([probabilities, due.to(probabilities)], dim=-1)
        counting = counts.sum(-2).clamp(min=1)[..., None]
        of_classes = self.of_classes((self.of_examples(pairs) * counts[..., None]).sum(-3) / counting)
        present = (due.sum(-2) > 0)[..., None]
        if classes == 2:
            present = torch.tensor([[False], [True]], device=due.device).expand_as(present)
        mean = (of_classes * present).sum(-2) / present.sum(-2).clamp(min=1)
        return self.of_group(mean).squeeze(-1) * evidence.counts.any(-1)


class SurrogateForClassification(Surrogate):
    """A learned loss for classification.

    Four architectures, beside the hand-made losses (`hf_reloss.losses`):

    - `"margin"`, the soft twin of accuracy: the mean over the group of softplus(-g(m)) + κ‖z - z̄‖, with g a strictly
      increasing spline and m the margin of the label's logit over the log-sum-exp of the others: a prediction further
      on the right side never costs more, whatever was learned. The second term holds what metrics of decisions cannot
      see, the scale of the logits z, which a model could otherwise grow without end to lower its loss. At its start the
      spline is the identity, and the surrogate is cross-entropy with that pull.
    - `"counts"`, the soft twin of metrics of counts per class, such as F1: each class's margin goes through such a
      spline and a sigmoid, at the start softmax probabilities; these are added up over the group to soft counts of
      right, predicted and due; and of these the metrics in `scores` are taken, on whose logarithms a score is learned
      (`ScoreMixture`). To this comes the same pull. Its value is a group's: the batch that it is given.
    - `"paper"`: the network of Huang et al. 2022 (Relational Surrogate Loss Learning) from p(label) to |·|. It is not
      monotone: check its alignment.
    - `"set"`: a network of sets, for the objective `"approximation"` of Grabocka et al. 2019. Nor is it monotone.

    The first two are learned on predictions of one scale, that at which a right prediction rests at the start of the
    first.

    Example:
        >>> loss = SurrogateForClassification(SurrogateConfig())
        >>> logits = torch.tensor([[4.0, 0.0, 0.0]])
        >>> loss(logits, torch.tensor([0])) < loss(logits, torch.tensor([1]))
        tensor(True)
    """

    task = "classification"
    read_columns = ("logits",)
    scored = ("logits", "labels")
    original_loss = "cross_entropy"
    networks = (MarginNetwork, CountNetwork, PaperNetwork, SetNetwork)

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if isinstance(outputs, Mapping) and outputs.get("logits") is None:
            return False
        return labels.dim() == 1

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"logits": output_tensor(outputs, "logits").float(), "labels": labels}

    def forward(self, outputs: Any, labels: torch.Tensor | None = None, *, reduction: str = "mean") -> torch.Tensor:
        if labels is not None and labels.dim() != 1:
            raise ValueError(
                "A surrogate for classification is a loss for one label per example, labels [N], but got labels "
                f"{list(labels.shape)}: a model that labels tokens needs a surrogate for its own task."
            )
        return super().forward(outputs, labels, reduction=reduction)

    def example(self) -> tuple[str, str]:
        return "torch.randn(32, 10)", "torch.randint(10, (32,))"

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        logits = output_tensor(outputs, "logits")
        if labels is None or logits.shape[:-1] != labels.shape:
            given = None if labels is None else list(labels.shape)
            raise ValueError(
                "A surrogate for classification scores one label per example: it wants logits [..., N, C] and labels "
                f"[..., N], but got {list(logits.shape)} and {given}."
            )
        if logits.shape[-1] < 2:
            raise ValueError(
                "The model puts out one logit, but a surrogate for classification wants two classes or more."
            )
        labels, counts = counted(labels, logits.shape[-1])
        logits = logits.float()
        if not logits.isfinite().all():
            raise ValueError(
                f"{int((~logits.isfinite()).sum())} of {logits.numel()} logits are not finite: the model has diverged. "
                "Lower the learning rate, clip gradients, or train in a wider precision."
            )
        return Evidence(logits, labels, counts)

    def original_losses(self, evidence: Evidence) -> torch.Tensor:
        losses = F.cross_entropy(evidence.outputs.flatten(0, -2), evidence.labels.flatten(), reduction="none")
        return losses.view(evidence.labels.shape)

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "SurrogateForClassification":
        """A fresh surrogate whose structure fits a metric, or what `load_metric` takes: if it can be, its soft twin.

        For accuracy that is the architecture `"margin"`; for metrics of counts per class (F1, Matthews correlation)
        `"counts"` of the metric itself; for any other one `"counts"` of a mixture, whose weights are to be learned.
        """
        metric = load_metric(metric)
        if metric.name in ("accuracy", "top_k_accuracy"):
            return cls(SurrogateConfig(**options))
        known = isinstance(metric, CountMetric)
        scores = {metric.name: metric.options} if known else GENERAL_SCORES
        return cls(SurrogateConfig(**{"architecture": "counts", "scores": scores} | options))

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        return metric.name in ("accuracy", "top_k_accuracy") or isinstance(metric, CountMetric)


def at_rest(evidence: Evidence, pull: float) -> Evidence:
    """Logits of mean 0 and of one norm, that of a right prediction where cross-entropy with the pull rests.

    There the label's logit is ahead of the others, which are alike, by that a at which the derivative vanishes:
    sigmoid(log(C - 1) - a) = κ √((C - 1) / C).
    """
    classes = evidence.outputs.shape[-1]
    spread = math.sqrt((classes - 1) / classes)  # the norm of centred logits (1, 0, ..., 0)
    lead = math.log(classes - 1) + math.log((1 - pull * spread) / (pull * spread))
    if lead <= 0:
        raise ValueError(
            f"scale_weight={pull} is a pull that takes the logits of {classes} classes to 0, where nothing can be "
            f"learned: it has to be below {spread:.3f}."
        )
    centred = evidence.outputs - evidence.outputs.mean(-1, keepdim=True)
    return evidence._replace(outputs=centred * (spread * lead / logit_scale(centred)))


def _checked_share(scale_weight: float) -> float:
    if not 0 < scale_weight < 1:
        raise ValueError(f"scale_weight is a share between 0 and 1, got {scale_weight}.")
    return scale_weight
