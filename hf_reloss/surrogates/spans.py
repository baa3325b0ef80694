"""Surrogates for answers that are spans of a text: from logits of their start and end, [..., N, L] each."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from .base import Surrogate, output_tensor
from .config import SurrogateConfig
from .layers import MonotoneSpline
from .network import Evidence, SurrogateNetwork

NEVER = -1e4
"""The logit of what is impossible. Finite, so that no gradient is NaN."""

LONGEST_ANSWER = 30
"""In tokens, of those that are recorded as a model's."""

RECORDED_POSITIONS = 8
"""How many positions recordings hold beside the right one, for starts and ends each."""


class OverlapNetwork(SurrogateNetwork):
    """The mean of softplus(-g(m)) over an answer's two boundaries, and κ times the scale of their logits.

    m is the margin of the expected credit of a boundary, g an increasing spline. A position's credit c as start is that
    of the span from there to the right end, as end that of the one from the right start: 1 for the right one, 0 for
    those that share nothing with the answer, between these F1^γ, with γ = 16 at the start and learned, or for exact
    match 0. With P the softmax of the logits, the expected credit C = Σ P c has the margin m = log C - log(1 - C). At
    the start, with g the identity, the loss is -log C: for exact match cross-entropy.

    The scale is the standard deviation of the logits of all positions that can be. The best span does not depend on it,
    and a model could make it grow without end to lower its loss. Of recordings, which do not hold it, it is left out.

    But for that scale, it never costs more to move probability to a boundary of more credit, whatever was learned.
    """

    architecture = "overlap"
    gradient_penalty = 0.03
    power = 16.0
    """γ at the start."""

    def __init__(self, config: SurrogateConfig):
        super().__init__()
        if config.credit not in ("f1", "exact"):
            raise ValueError(f"'overlap' wants the credit 'f1' or 'exact', but got {config.credit!r}.")
        self.pull = config.scale_weight
        self.spline = MonotoneSpline(config.num_knots, config.knot_range, trust_region=config.trust_region)
        self.log_power = nn.Parameter(torch.zeros(())) if config.credit == "f1" else None

    def losses(self, evidence: Evidence) -> torch.Tensor:
        logits = evidence.outputs
        recorded = evidence.labels.dim() > evidence.counts.dim() + 1
        places = evidence.labels[..., 1:] if recorded else torch.arange(logits.shape[-1], device=logits.device)[None]
        gold = evidence.labels[..., 0] if recorded else evidence.labels
        log_credit, log_rest = self._credits(boundary_f1(gold, places))
        losses = self.curve((logits + log_credit).logsumexp(-1) - (logits + log_rest).logsumexp(-1))
        if not recorded:
            losses = losses + self.pull * _scale(logits)
        return losses.mean(-1)

    def _credits(self, f1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log c and log(1 - c) of boundaries [...] with an F1 in [0, 1]."""
        right = f1 >= 1 - 1e-6
        some = (f1 > 0) & ~right
        log_credit, log_rest = (~right * NEVER).to(f1), right * torch.tensor(NEVER).to(f1)
        if self.log_power is None:
            return log_credit, log_rest
        log_power = (self.power * self.log_power.exp() * f1.where(some, 0.5).log()).clamp(max=-1e-6)
        return log_power.where(some, log_credit), (-torch.expm1(log_power)).log().where(some, log_rest)

    def curve(self, points: torch.Tensor) -> torch.Tensor:
        """The loss of margins of the expected credit."""
        return F.softplus(-self.spline(points))

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norms_of_start(evidence)


class SurrogateForSpans(Surrogate):
    """A learned loss for extractive question answering.

    One architecture, `"overlap"`: for SQuAD's F1 or, with the credit `"exact"`, for exact match. A question is one
    prediction with the start and the end of its answer, positions of tokens, as label; 0 and 0 where there is no
    answer, as in transformers (there the first token is the classifier's own). Positions beyond the text, cut off by
    truncation, and -100 do not count.

    Evidence: outputs [..., N, 2, L], logits of start and end, each less its largest one; labels [..., N, 2]; counts
    [..., N]. Logits of -inf or very low ones mark positions that cannot be. Recordings hold the right and the likeliest
    K positions only: outputs [..., N, 2, 2 + K], the last one being the log-sum-exp of all others; labels
    [..., N, 2, 3 + K], in which the places of these positions come after the right one, -1 for the others.

    Example:
        >>> loss = SurrogateForSpans(SurrogateConfig(task="spans"))
        >>> answer = torch.tensor([[2, 3]])
        >>> def loss_of(start, end):
        ...     at = 5.0 * torch.eye(8)
        ...     return loss({"start_logits": at[[start]], "end_logits": at[[end]]}, answer)
        >>> loss_of(2, 3) < loss_of(2, 4) < loss_of(5, 6)
        tensor(True)
    """

    task = "spans"
    networks = (OverlapNetwork,)
    read_columns = ("start_logits", "end_logits", "start_places", "end_places")
    scored = ("answer_ids", "gold_ids")
    original_loss = "cross_entropy"
    pipeline_tag = "question-answering"

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if labels.dim() != 2 or labels.shape[-1] != 2 or labels.is_floating_point():
            return False
        return isinstance(outputs, Mapping) and outputs.get("start_logits") is not None

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if inputs.get("input_ids") is None:
            raise ValueError(
                "Answers are scored as texts, so what is recorded wants the input_ids that the model was given, but it "
                f"was given {sorted(inputs)}."
            )
        evidence = _read(outputs, labels)
        true, counts = evidence.labels, evidence.counts[:, None]
        answers = best_spans(*evidence.outputs.unbind(1), LONGEST_ANSWER)[0]
        logits, places = _likeliest(evidence)
        return {
            "start_logits": logits[:, 0],
            "end_logits": logits[:, 1],
            "start_places": places[:, 0],
            "end_places": places[:, 1],
            "labels": true.masked_fill(~counts, IGNORED_LABEL),
            "answer_ids": _ids_of(answers, inputs["input_ids"]),
            "gold_ids": _ids_of(true, inputs["input_ids"]),
        }

    def example(self) -> tuple[str, str]:
        return '{"start_logits": torch.randn(8, 384), "end_logits": torch.randn(8, 384)}', "torch.tensor(8 * [[3, 7]])"

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        if not (isinstance(outputs, Mapping) and "start_places" in outputs):
            return _read(outputs, labels)
        counts = (labels != IGNORED_LABEL).all(-1)
        gold = labels.masked_fill(~counts[..., None], 0)[..., None]
        logits, places = (
            torch.stack([outputs[f"start_{name}"], outputs[f"end_{name}"]], dim=-2) for name in ("logits", "places")
        )
        return Evidence(logits.float(), torch.cat([gold, places], dim=-1), counts)

    def original_losses(self, evidence: Evidence) -> torch.Tensor:
        recorded = evidence.labels.dim() > evidence.counts.dim() + 1
        right = torch.zeros_like(evidence.labels[..., 0]) if recorded else evidence.labels
        return -evidence.outputs.log_softmax(-1).gather(-1, right[..., None]).squeeze(-1).mean(-1)

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "SurrogateForSpans":
        """A fresh surrogate whose structure fits a metric, or what `load_metric` takes.

        For exact match only right boundaries have credit; for F1, and any unknown metric, each has that of its overlap.
        """
        exact = "exact" in load_metric(metric).name
        return cls(SurrogateConfig(**{"task": cls.task, "credit": "exact" if exact else "f1"} | options))

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        return metric.name.rpartition("_")[2] in ("f1", "exact", "match")


def best_spans(start: torch.Tensor, end: torch.Tensor, max_answer_length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The spans of the highest score, start_s + end_e: their starts and ends [..., 2], and their scores [...].

    Args:
        start, end: logits [..., L]; -inf where none can start or end.
        max_answer_length: of the spans, in tokens.
    """
    scores = _banded(start, end, max_answer_length)
    best, index = scores.flatten(-2).max(-1)
    first = index.div(scores.shape[-1], rounding_mode="floor")
    return torch.stack([first, first + index % scores.shape[-1]], dim=-1), best


def boundary_f1(gold: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """F1 of the positions of spans of which one boundary is right with those of the right ones, [..., 2, L].

    Where there is no answer, which positions of 0 say, only these are right.

    Args:
        gold: [..., 2], first and last positions of the right spans.
        places: the other boundary, starts before ends: of a shape that broadcasts to [..., 2, L]; below 0 is none.
    """
    start, end = gold[..., :1, None], gold[..., 1:, None]
    size = torch.cat([end - places[..., :1, :], places[..., -1:, :] - start], dim=-2) + 1
    f1 = 2 * torch.minimum(size, end - start + 1).clamp(min=0) / (size.clamp(min=1) + end - start + 1)
    return torch.where(end == 0, places == 0, f1 * (places >= 0))


def _banded(start: torch.Tensor, end: torch.Tensor, max_answer_length: int) -> torch.Tensor:
    """Scores start_s + end_(s + k) of all spans of 1 to `max_answer_length` positions: [..., L, A], of logits [..., L].

    Spans that go beyond the text cannot be. A is no longer than the text.
    """
    length = min(max_answer_length, end.shape[-1])
    return start[..., None] + F.pad(end, (0, length - 1), value=2 * NEVER).unfold(-1, length, 1)


def _scale(logits: torch.Tensor) -> torch.Tensor:
    """Standard deviations [...] of logits [..., L], but for those of positions that cannot be."""
    possible = logits > NEVER / 2
    number = possible.sum(-1, keepdim=True).clamp(min=1)
    mean = logits.where(possible, 0.0).sum(-1, keepdim=True) / number
    return ((logits - mean).where(possible, 0.0).square().sum(-1) / number[..., 0] + 1e-12).sqrt()


def _likeliest(evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and places [n, 2, 2 + K] of the right positions, the likeliest others and, as place -1, all the rest."""
    gold = evidence.labels[..., None]
    of_gold, others = evidence.outputs.gather(-1, gold), evidence.outputs.scatter(-1, gold, -torch.inf)
    likeliest, places = others.topk(min(RECORDED_POSITIONS, others.shape[-1] - 1), dim=-1)
    rest = others.scatter(-1, places, -torch.inf).logsumexp(-1, keepdim=True).clamp(min=NEVER)
    return torch.cat([of_gold, likeliest, rest], dim=-1), torch.cat([gold, places, torch.full_like(gold, -1)], dim=-1)


def _read(outputs: Any, labels: torch.Tensor) -> Evidence:
    """The evidence of a model's outputs: logits [..., N, 2, L], labels [..., N, 2] and counts [..., N]."""
    start, end = output_tensor(outputs, "start_logits"), output_tensor(outputs, "end_logits", 1)
    given = None if labels is None else list(labels.shape)
    if start.shape != end.shape or given != [*start.shape[:-1], 2]:
        raise ValueError(
            "A surrogate for spans wants start_logits and end_logits [..., N, L] and labels [..., N, 2], start and end "
            f"of each answer, but got {list(start.shape)}, {list(end.shape)} and {given}."
        )
    if labels.is_floating_point():
        raise ValueError(f"The surrogate wants integer labels, positions of tokens, but these are {labels.dtype}.")
    labels = labels.long()
    counts = ((labels >= 0) & (labels < start.shape[-1])).all(-1)
    backwards = counts & (labels[..., 1] < labels[..., 0])
    if backwards.any():
        raise ValueError(
            f"{int(backwards.sum())} answers end before they start, such as {labels[backwards][0].tolist()}: labels "
            "are the positions of the first and the last token of each."
        )
    logits = torch.stack([start, end], dim=-2).float()
    wrong = logits.isnan() | (logits == torch.inf)
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {logits.numel()} logits are not finite: the model has diverged. Lower the learning "
            "rate, clip gradients, or train in a wider precision."
        )
    top = logits.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    return Evidence((logits - top).clamp(min=NEVER), labels.masked_fill(~counts[..., None], 0), counts)


def _ids_of(spans: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
    """The tokens [n, longest] of spans [n, 2] of `input_ids` [n, L]: -100 behind them, and where there is no answer."""
    width = int((spans[:, 1] - spans[:, 0]).max()) + 1 if len(spans) else 1
    places = spans[:, :1] + torch.arange(width, device=spans.device)
    there = (places <= spans[:, 1:]) & (spans[:, 1:] > 0)
    return input_ids.gather(1, places.clamp(max=input_ids.shape[1] - 1)).masked_fill(~there, IGNORED_LABEL)
