"""The difference of bags of n-grams, a loss for non-autoregressive translation (Shao et al. 2020, arXiv:1911.09320)."""

import math

import torch

from hf_reloss.metrics.base import IGNORED_LABEL


def bag_of_ngrams_loss(logits: torch.Tensor, labels: torch.Tensor, n: int = 2) -> torch.Tensor:
    """BoN-L1: the L1 distance between a model's expected bag of n-grams and the reference's, as a share of the largest.

    Where tokens are independent of each other given the source, an n-gram g is expected
    BoN(g) = Σ_t Π_i p(y_{t+i} = g_i) times. Both bags hold as many n-grams, L - n + 1 of a sentence of L tokens, so
    that their distance is 2 (L - n + 1) - 2 Σ_g min(BoN(g), BoN_ref(g)), and only n-grams of the reference need be
    looked at. Divided by 2 (L - n + 1) it is between 0, for the reference's n-grams in whatever order, and 1.

    Args:
        logits: [B, T, V] of as many tokens as the reference has.
        labels: [B, T], -100 where there is no token.
        n: how many tokens are counted together; 2 in the paper.

    Returns:
        A scalar: the mean over the sentences of n tokens or more, 0 if there is none.
    """
    if n < 1:
        raise ValueError(f"n is how many tokens are counted together, 1 or more, but got {n}.")
    windows = labels.shape[1] - n + 1
    if windows < 1:
        return logits.sum() * 0.0

    def grams(matrices: torch.Tensor) -> torch.Tensor:
        """[B, W, W] of [B, T, T]: the products over the n places of two n-grams, that start at each pair of places."""
        return math.prod(matrices[:, i : i + windows, i : i + windows] for i in range(n))

    counts = labels != IGNORED_LABEL
    inside = counts.unfold(1, n, 1).all(-1)  # [B, W]
    tokens = labels.masked_fill(~counts, 0)
    wanted = tokens[:, None, :].expand(-1, labels.shape[1], -1)
    logits = logits.float()
    # At place t the probability of the reference's token s: all of the vocabulary that is needed.
    probabilities = (logits.gather(-1, wanted) - logits.logsumexp(-1, keepdim=True)).exp()
    expected = (grams(probabilities) * inside[:, :, None]).sum(1)
    same = grams(tokens[:, :, None] == tokens[:, None, :])
    times = (same * inside[:, :, None]).sum(1).clamp(min=1)
    # An n-gram that stands in the reference k times is met k times, each time for a kth.
    shared = (torch.minimum(expected, times) / times * inside).sum(1)
    number = inside.sum(1)
    losses = 1 - shared / number.clamp(min=1)
    return (losses * (number > 0)).sum() / (number > 0).sum().clamp(min=1)
