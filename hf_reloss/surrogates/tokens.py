"""Surrogates for many labels per example: texts that are written token by token, and sentences that are tagged.

From logits [..., N, T, V] and labels [..., N, T] of encoder-decoders, non-autoregressive and causal language models and
taggers. What counts are the tokens of a sentence, without gaps: those with a label of -100 are taken out first.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from .base import Surrogate, counted, output_tensor
from .config import SurrogateConfig
from .layers import MonotoneSpline
from .network import Evidence, SurrogateNetwork

RECORDED_REACH = 4
"""Recordings hold the margins of labels up to so many places before and after their own."""

ABSENT = -100.0
"""The margin of a label that is not there, so low that it is no part of any hit."""


class NgramNetwork(SurrogateNetwork):
    """-Σ_n w_n log P_n, with P_n a soft precision of n-grams: the soft twin of BLEU.

    Of each token q = σ(g(m)), with m its margin and g an increasing spline, is a soft hit; that of n neighbouring
    tokens is the product of theirs; and P_n the mean of these over all n-grams of the group or, at the level of
    sentences, over those of each sentence and then over sentences. With a reach, an n-gram also counts where the model
    wrote it some places too early or too late, as it does in BLEU, times a learned share; but never more than once. All
    is computed of logarithms: where everything is still wrong, the gradient is as large as elsewhere.
    """

    architecture = "ngrams"
    count_dims = 2
    gradient_penalty = 0.03

    def __init__(self, config: SurrogateConfig):
        super().__init__()
        if config.max_order < 1 or not 0 <= config.reach <= RECORDED_REACH or config.level not in ("group", "sentence"):
            raise ValueError(
                f"'ngrams' wants max_order of 1 or more, a reach of 0 to {RECORDED_REACH} and the level 'group' or "
                f"'sentence', but got {config.max_order}, {config.reach} and {config.level!r}."
            )
        self.max_order, self.over_sentences = config.max_order, config.level == "sentence"
        # Half of the probability stays half, as in the network of counts.
        self.spline = MonotoneSpline(
            config.num_knots, config.knot_range, anchored=True, trust_region=config.trust_region
        )
        self.order_weights = nn.Parameter(torch.zeros(config.max_order))
        self.shift_weights = nn.Parameter(torch.zeros(2 * config.reach))

    def forward(self, evidence: Evidence) -> torch.Tensor:
        hits = F.logsigmoid(self.spline(evidence.outputs))
        weights = self.order_weights.softmax(-1)
        return sum(weight * self._of_order(n, hits, evidence.counts) for n, weight in enumerate(weights, start=1))

    def _of_order(self, n: int, hits: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """-log P_n, [...] of log soft hits [..., N, T, K]; 0 where a group has no n-gram."""
        windows = max(counts.shape[-1] - n + 1, 0)
        if windows == 0:
            return hits.sum((-3, -2, -1)) * 0.0
        inside = counts[..., n - 1 :]  # tokens stand without gaps, so where the last one is, all are
        grams = sum(hits[..., first : first + windows, :] for first in range(n))
        if len(self.shift_weights):
            grams = grams + F.pad(self._shares().log(), (1, 0))
        # What is written more than once matches once.
        grams = grams.logsumexp(-1).clamp(max=0.0) if grams.shape[-1] > 1 else grams.squeeze(-1)
        if self.over_sentences:
            grams, inside = _log_mean(grams, inside), inside.any(-1)
        else:
            grams, inside = grams.flatten(-2), inside.flatten(-2)
        return -_log_mean(grams, inside).where(inside.any(-1), 0.0)

    def _shares(self) -> torch.Tensor:
        """How much an n-gram counts at each other place; at the start nearly as much as at its own, as in BLEU."""
        return torch.sigmoid(3 + self.shift_weights)

    def gradient_norms(self, evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norms_of_start(evidence)

    def curve(self, points: torch.Tensor) -> torch.Tensor:
        """The loss -log q of a soft hit."""
        return F.softplus(-self.spline(points))

    def learned(self) -> dict[str, str]:
        orders = self.order_weights.softmax(-1).tolist()
        found = {"n-grams": ", ".join(f"{n}: {weight:.2f}" for n, weight in enumerate(orders, start=1))}
        if len(self.shift_weights):
            shares = self._shares().tolist()
            named = zip(_offsets(len(shares) // 2)[1:], shares, strict=True)
            found["shares of other places"] = ", ".join(f"{-offset:+d}: {share:.2f}" for offset, share in named)
        return found


def _log_mean(logs: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The logarithm of the mean over what counts in the last dimension; very low where nothing does."""
    return logs.masked_fill(~counts, -1e4).logsumexp(-1) - counts.sum(-1).clamp(min=1).log()


class PaperTokenNetwork(SurrogateNetwork):
    """The transformer of Huang et al. 2022 for translation: from p(label) of each token to |·| of each sentence."""

    architecture = "paper"
    count_dims = 2
    curve_of = None
    longest = 512

    def __init__(self, config: SurrogateConfig):
        super().__init__()
        width = config.hidden_size
        if width % 4:
            raise ValueError(f"'paper' has 4 heads, so hidden_size wants to be a multiple of 4, but is {width}.")
        self.logits_layer = nn.Sequential(nn.Linear(1, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.positions = nn.Parameter(0.02 * torch.randn(self.longest, width))
        self.block = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation=F.elu, batch_first=True)
            for _ in range(2)
        )
        self.loss_layer = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))

    def forward(self, evidence: Evidence) -> torch.Tensor:
        counts = evidence.counts
        probability = torch.sigmoid(evidence.outputs[..., :1]).flatten(0, -4 if counts.dim() > 2 else -3)
        places = torch.arange(counts.shape[-1], device=counts.device).clamp(max=self.longest - 1)
        hidden = self.logits_layer(probability).view(-1, counts.shape[-1], self.positions.shape[-1])
        hidden = hidden + self.positions[places]
        flat = counts.reshape(-1, counts.shape[-1])
        hidden_padding = ~flat & flat.any(-1, keepdim=True)  # a sentence of no tokens attends to its padding
        with sdpa_kernel(SDPBackend.MATH):  # which alone can be differentiated twice
            for block in self.block:
                hidden = block(hidden, src_key_padding_mask=hidden_padding)
        tokens = self.loss_layer(hidden).squeeze(-1).view(counts.shape) * counts
        number = counts.sum(-1)
        sentences = (tokens.sum(-1) / number.clamp(min=1)).abs()
        return sentences.sum(-1) / (number > 0).sum(-1).clamp(min=1)


class SurrogateForTokens(Surrogate):
    """A learned loss for models that predict tokens: translation, summarisation, language models, taggers.

    - `"ngrams"`, the soft twin of BLEU: soft precisions of n-grams, whose orders have learned weights. Of order 1 it is
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
    if metric.name.startswith("rouge"):
        return {"max_order": 1 if metric.name == "rouge1" else 2, "level": "sentence"}
    if metric.name in ("accuracy", "f1", "precision", "recall", "wer", "cer"):
        return {"max_order": 1, "level": "group"}
    if metric.name.startswith(("seqeval", "overall_")):  # as seqeval's keys are called in evaluate
        return {"max_order": 2, "level": "group"}
    return None


def next_token_labels(labels: torch.Tensor) -> torch.Tensor:
    """Labels [N, T] of a causal language model, moved so that each position has the token it is to predict."""
    return F.pad(labels[..., 1:], (0, 1), value=IGNORED_LABEL)


def _offsets(reach: int) -> list[int]:
    """How far before each place the labels are whose margins are taken there: 0, -1, +1 and so on."""
    return [0, *(sign * distance for distance in range(1, reach + 1) for sign in (-1, 1))]


def _margins(
    logits: torch.Tensor, labels: torch.Tensor, reach: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Margins [N, T, K] of labels at and near their places, labels and counts [N, T], without gaps; their old order."""
    labels, counts = counted(labels, logits.shape[-1])
    order = counts.int().argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(labels.shape[1], device=labels.device)
    with_gaps = bool((order != places).any())
    labels, counts = labels.gather(-1, order), counts.gather(-1, order)
    offsets = _offsets(reach)
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
