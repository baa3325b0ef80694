"""Soft precisions of n-grams: BLEU and shares of right tokens, made soft."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..base import Evidence, SurrogateNetwork
from ..layers import MonotoneSpline

RECORDED_REACH = 4
"""Recordings hold the margins of labels up to this many places before and after their own."""


class NgramNetwork(SurrogateNetwork):
    """-Σ_n w_n log P_n, with P_n a soft precision of n-grams: the soft form of BLEU.

    Of each token q = σ(g(m)), with m its margin and g an increasing spline, is a soft hit; that of n neighbouring
    tokens is the product of theirs; and P_n the mean of these over all n-grams of the group or, at the level of
    sentences, over those of each sentence and then over sentences. With a reach, an n-gram also counts where the model
    wrote it some places too early or too late, as it does in BLEU, times a learned share; but never more than once. All
    is computed of logarithms: where everything is still wrong, the gradient is as large as elsewhere.
    """

    architecture = "ngrams"
    tasks = ("tokens",)
    count_dims = 2
    gradient_penalty = 0.03

    def __init__(
        self,
        *,
        max_order: int = 4,
        reach: int = 0,
        level: str = "group",
        num_knots: int = 16,
        knot_range: float = 4.0,
        trust_region: bool = False,
    ):
        super().__init__()
        if max_order < 1 or not 0 <= reach <= RECORDED_REACH or level not in ("group", "sentence"):
            raise ValueError(
                f"'ngrams' wants max_order of 1 or more, a reach of 0 to {RECORDED_REACH} and the level 'group' or "
                f"'sentence', but got {max_order}, {reach} and {level!r}."
            )
        self.max_order, self.over_sentences = max_order, level == "sentence"
        # Half of the probability stays half, as in the network of counts.
        self.spline = MonotoneSpline(num_knots, knot_range, anchored=True, trust_region=trust_region)
        self.order_weights = nn.Parameter(torch.zeros(max_order))
        self.shift_weights = nn.Parameter(torch.zeros(2 * reach))

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
        grams: Any = sum(hits[..., first : first + windows, :] for first in range(n))
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
            named = zip(label_offsets(len(shares) // 2)[1:], shares, strict=True)
            found["shares of other places"] = ", ".join(f"{-offset:+d}: {share:.2f}" for offset, share in named)
        return found


def _log_mean(logs: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The logarithm of the mean over what counts in the last dimension; very low where nothing does."""
    return logs.masked_fill(~counts, -1e4).logsumexp(-1) - counts.sum(-1).clamp(min=1).log()


def label_offsets(reach: int) -> list[int]:
    """How far before each place the labels are whose margins are taken there: 0, -1, +1 and so on."""
    return [0, *(sign * distance for distance in range(1, reach + 1) for sign in (-1, 1))]
