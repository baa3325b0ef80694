"""Surrogates for many labels per example: texts that are written token by token, and sentences that are tagged.

From logits [..., N, T, V] and labels [..., N, T] of encoder-decoders, non-autoregressive and causal language models and
taggers. What counts are the tokens of a sentence, without gaps: those with a label of -100 are taken out first.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ..losses.base import Evidence
from ..losses.learned.ngrams import RECORDED_REACH, NgramNetwork, label_offsets
from ..losses.learned.paper_tokens import PaperTokenNetwork
from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from .base import Surrogate, class_indices, output_tensor
from .config import SurrogateConfig

ABSENT = -100.0
"""The margin of a label that is not there, so low that it is no part of any hit."""


class SurrogateForTokens(Surrogate):
    """A learned loss for models that predict tokens: translation, summarisation, language models, taggers.

    - `"ngrams"`, the soft form of BLEU: soft precisions of n-grams, whose orders have learned weights. Of order 1 it is
      a soft share of right tokens. It is monotone in every margin by construction.
    - `"paper"`: the transformer of Huang et al. 2022. It is not monotone: check its alignment.

    Evidence: margins [..., N, T, K] of each label over all other classes, at its own place and, with a reach, at those
    around it: 1 place later, 1 earlier, 2 later and so on. Nothing else of the vocabulary's width is made. Of a causal
    language model, pass labels that are shifted: `next_token_labels(labels)`.

    Example:
        >>> loss = SurrogateForTokens(SurrogateConfig(task="tokens"))
        >>> labels = torch.tensor([[3, 1, 4, 1, 5]])
        >>> right = 5.0 * F.one_hot(labels, 8)
        >>> loss(right, labels) < loss(right.flip(1), labels)
        tensor(True)
    """

    task = "tokens"
    networks = (NgramNetwork, PaperTokenNetwork)
    read_columns = ("margins",)
    scored = ("decided", "labels")
    original_loss = "cross_entropy"
    has_parts = True
    keeps_labels_from_model = True

    @classmethod
    def reads(cls, outputs: Any, labels: torch.Tensor) -> bool:
        if labels.dim() != 2 or labels.is_floating_point():
            return False
        if isinstance(outputs, Mapping) and outputs.get("logits") is None:
            return False
        return output_tensor(outputs, "logits").shape[:-1] == labels.shape

    @classmethod
    def recorded(cls, outputs: Any, labels: torch.Tensor, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        logits = output_tensor(outputs, "logits")
        margins, true, counts, order = _margins(logits, labels, RECORDED_REACH)
        decided = logits.argmax(-1).gather(-1, order)
        kept = {"labels": true, "decided": decided}
        return {"margins": margins} | {name: ids.masked_fill(~counts, IGNORED_LABEL) for name, ids in kept.items()}

    def example(self) -> tuple[str, str]:
        return "torch.randn(8, 20, 1000)", "torch.randint(1000, (8, 20))"

    def evidence(self, outputs: Any, labels: torch.Tensor) -> Evidence:
        width = 2 * self.config.reach + 1 if self.config.architecture == "ngrams" else 1
        if isinstance(outputs, Mapping) and outputs.get("margins") is not None:
            counts = labels != IGNORED_LABEL
            margins = outputs["margins"].float()[..., :width]
            return Evidence(margins, labels.masked_fill(~counts, 0), counts)
        logits = output_tensor(outputs, "logits")
        if labels is None or logits.dim() != 3 or logits.shape[:-1] != labels.shape:
            given = None if labels is None else list(labels.shape)
            raise ValueError(
                f"A surrogate for tokens wants logits [N, T, V] and labels [N, T], but got {list(logits.shape)} and "
                f"{given}."
            )
        margins, true, counts, _ = _margins(logits, labels, width // 2)
        if not margins.isfinite().all():
            raise ValueError(
                f"{int((~margins.isfinite()).any(-1).sum())} of {labels.numel()} tokens have logits that are not "
                "finite: the model has diverged. Lower the learning rate, clip gradients or train in a wider precision."
            )
        return Evidence(margins, true, counts)

    def original_losses(self, evidence: Evidence) -> torch.Tensor:
        return F.softplus(-evidence.outputs[..., 0])  # cross-entropy, as a function of the margin

    @classmethod
    def for_metric(cls, metric: Metric | Any, **options: Any) -> "SurrogateForTokens":
        """A fresh surrogate whose structure fits a metric, or what `load_metric` takes.

        For BLEU n-grams of the group up to its order; for ROUGE short ones of each sentence; for shares of right tokens
        single ones; for tags short ones of the group. An unknown metric gets n-grams up to order 4. A model that writes
        all tokens at once wants `reach=4`; one that is given those before must not be paid for the next but one.
        """
        metric = load_metric(metric)
        structure = _structure(metric) or {"max_order": 4, "level": "group"}
        return cls(SurrogateConfig(task=cls.task, **structure | options))

    @classmethod
    def has_soft_metric(cls, metric: Metric) -> bool:
        return _structure(metric) is not None


def _structure(metric: Metric) -> dict[str, Any] | None:
    """The n-grams whose soft precision is the soft form of a metric, as options; None if there are none for it."""
    if metric.name in ("bleu", "sacrebleu"):
        return {"max_order": getattr(metric, "max_order", 4), "level": "group"}
    if metric.name == "google_bleu":
        return {"max_order": metric.options["max_len"], "level": "group"}
    if metric.name == "meteor":
        return {"max_order": 1, "level": "sentence"}
    if metric.name.startswith("rouge"):
        return {"max_order": 1 if metric.name == "rouge1" else 2, "level": "sentence"}
    if metric.name in ("accuracy", "f1", "precision", "recall", "wer", "cer", "mer", "wil"):
        return {"max_order": 1, "level": "group"}
    if metric.name.startswith(("seqeval", "overall_")):  # as seqeval's keys are called in evaluate
        return {"max_order": 2, "level": "group"}
    return None


def next_token_labels(labels: torch.Tensor) -> torch.Tensor:
    """Labels [N, T] of a causal language model, moved so that each position has the token it is to predict."""
    return F.pad(labels[..., 1:], (0, 1), value=IGNORED_LABEL)


def _margins(
    logits: torch.Tensor, labels: torch.Tensor, reach: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Margins [N, T, K] of labels at and near their places, labels and counts [N, T], without gaps; their old order."""
    labels, counts = class_indices(labels, logits.shape[-1])
    order = counts.int().argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(labels.shape[1], device=labels.device)
    with_gaps = bool((order != places).any())
    labels, counts = labels.gather(-1, order), counts.gather(-1, order)
    offsets = label_offsets(reach)
    beside = torch.stack([(places + offset).expand_as(labels) for offset in offsets], dim=-1)
    there = (beside >= 0) & (beside < counts.sum(-1)[:, None, None]) & counts[..., None]
    ids = labels.gather(-1, beside.clamp(0, max(labels.shape[1] - 1, 0)).flatten(1)).view_as(beside)
    rows = (order + labels.shape[1] * torch.arange(len(labels), device=order.device)[:, None]).flatten()
    log_p = _LabelLogProbabilities.apply(
        logits.reshape(-1, logits.shape[-1]), rows if with_gaps else None, ids.reshape(-1, ids.shape[-1])
    ).view(ids.shape)
    log_p = log_p.clamp(max=-1e-6)  # beyond, float32 cannot tell the rest of the probability
    margins = (log_p - (-torch.expm1(log_p)).log()).masked_fill(~there, ABSENT)
    # From the labels around a place to the places around a label; what goes over the ends is absent.
    margins = torch.stack([margins[..., k].roll(offset, 1) for k, offset in enumerate(offsets)], dim=-1)
    return margins, labels, counts, order


class _LabelLogProbabilities(torch.autograd.Function):
    """log softmax of chosen classes [R, K], from logits [R, V], chunk by chunk.

    Cross-entropy, fused with its softmax: no tensor of the vocabulary's width is kept beyond the logits, and none is
    made but their gradient. Its own gradient cannot be differentiated again, nor need it be: surrogates are penalised
    at the margins.
    """

    elements = 2**21  # of a chunk, which stays in a processor's cache

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, rows: torch.Tensor | None, ids: torch.Tensor) -> torch.Tensor:
        result = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
        totals = torch.empty(len(ids), 1, dtype=torch.float32, device=ids.device)
        for chunk in _LabelLogProbabilities._chunks(logits):
            scores = logits[chunk if rows is None else rows[chunk]].float()
            totals[chunk] = scores.logsumexp(-1, keepdim=True)
            result[chunk] = scores.gather(-1, ids[chunk]) - totals[chunk]
        ctx.save_for_backward(logits, ids, totals, rows)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, ids, totals, rows = ctx.saved_tensors
        result = torch.empty_like(logits)
        for chunk in _LabelLogProbabilities._chunks(logits):
            place = chunk if rows is None else rows[chunk]
            scores = (logits[place].float() - totals[chunk]).exp_().mul_(-gradient[chunk].sum(-1, keepdim=True))
            result[place] = scores.scatter_add_(-1, ids[chunk], gradient[chunk]).to(result.dtype)
        return result, None, None

    @staticmethod
    def _chunks(logits: torch.Tensor) -> list[slice]:
        step = max(1, _LabelLogProbabilities.elements // logits.shape[-1])
        return [slice(first, first + step) for first in range(0, len(logits), step)]
