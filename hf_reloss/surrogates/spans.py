"""Surrogates for answers that are spans of a text: from logits of their start and end, [..., N, L] each."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ..losses.base import Evidence
from ..losses.learned.overlap import NEVER, OverlapNetwork
from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from .base import Surrogate, output_tensor
from .config import SurrogateConfig

LONGEST_ANSWER = 30
"""In tokens, of those that are recorded as a model's."""

RECORDED_POSITIONS = 8
"""How many positions recordings hold beside the right one, for starts and ends each."""


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
    answers = True
    # SQuAD's; where all questions have an answer, those of its second version are the same.
    metric_words: ClassVar[Mapping[str, str]] = {
        "f1": "squad_v2_f1",
        "exact_match": "squad_v2_exact",
        "exact": "squad_v2_exact",
    }
    pipeline_tag = "question-answering"

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if labels.dim() != 2 or labels.shape[-1] != 2 or labels.is_floating_point():
            return False
        if isinstance(outputs, Mapping):
            return outputs.get("start_logits") is not None
        if not isinstance(outputs, tuple):
            return False
        tensors = [tensor for tensor in outputs if torch.is_tensor(tensor) and tensor.dim() > 0]
        return len(tensors) > 1 and all(each.dim() == 2 and len(each) == len(labels) for each in tensors[:2])

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        if inputs.get("input_ids") is None:
            raise ValueError(
                "Answers are scored as texts, so what is recorded wants the input_ids that the model was given, but it "
                f"was given {sorted(inputs)}."
            )
        evidence = _read(outputs, labels)
        true, counts = evidence.labels, evidence.counts[:, None]
        start, end = evidence.outputs.unbind(1)
        answers = best_spans(start, end, LONGEST_ANSWER)[0]
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


def _banded(start: torch.Tensor, end: torch.Tensor, max_answer_length: int) -> torch.Tensor:
    """Scores start_s + end_(s + k) of all spans of 1 to `max_answer_length` positions: [..., L, A], of logits [..., L].

    Spans that go beyond the text cannot be. A is no longer than the text.
    """
    length = min(max_answer_length, end.shape[-1])
    return start[..., None] + F.pad(end, (0, length - 1), value=2 * NEVER).unfold(-1, length, 1)


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
