"""Ranks and rank correlation, hard and differentiable.

The differentiable ranks are those of a relaxed sorting network (Petersen et al. 2021, "Differentiable Sorting Networks
for Scalable Sorting and Ranking Supervision", and 2022, "Monotonic Differentiable Sorting Networks"), as the package
`diffsort` defines them. That package multiplies dense permutation matrices; here a network is a list of pairings, its
swap weights are kept, and the layers are applied in reverse to the vector 0..n-1: the same ranks, without the matrix.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

DISTRIBUTIONS = ("logistic", "logistic_phi", "gaussian", "reciprocal", "cauchy", "optimal")
_EPS = 1e-10  # diffsort's guard against division by zero
_PHI = 0.25  # diffsort's default exponent of `logistic_phi` (art_lambda)


def hard_rank(values: torch.Tensor) -> torch.Tensor:
    """Ranks along the last dimension, ties sharing the average of their ranks.

    Args:
        values: [..., n], integers or floating point, without nan.

    Returns:
        [..., n] ranks 0..n-1 of the smallest to the largest value, float64 for float64 input and float32 otherwise;
        without a gradient. Equal to `scipy.stats.rankdata(values, axis=-1) - 1`.
    """
    values = values.detach().contiguous()
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - 1).to(torch.float64 if values.dtype == torch.float64 else torch.float32) / 2


def soft_rank(
    values: torch.Tensor,
    method: str = "diffsort",
    steepness: float = 10.0,
    distribution: str = "cauchy",
    network: str = "bitonic",
) -> torch.Tensor:
    """Differentiable ranks along the last dimension.

    Both methods depend on the scale of the values: the wider they are spread, the closer the ranks come to the hard
    ones. `standardize` them first where their scale is arbitrary, as that of losses is.

    Args:
        values: [..., n] with n >= 2, floating point, on any device.
        method: `"diffsort"`, the ranks of a relaxed sorting network, in O(n log² n) for the bitonic one; or
            `"pairwise"`, the sum over the others of sigmoid(steepness · difference), in O(n²).
        steepness: inverse temperature of a comparison.
        distribution: of `"diffsort"`: the cumulative distribution that a comparison of two values follows:
            `"logistic"`, `"logistic_phi"`, `"gaussian"`, `"reciprocal"`, `"cauchy"` or `"optimal"`.
        network: of `"diffsort"`: `"bitonic"` or `"odd_even"`.

    Returns:
        [..., n] ranks in 0..n-1, float64 for float64 input and float32 otherwise (half precision cannot tell rank 256
        from 257). `"diffsort"` equals `diffsort.DiffSortNet(network, n, ...)`'s permutation matrix times 0..n-1. Its
        gradient is exact, and differentiable once.

    Note:
        diffsort's bitonic network is exact for powers of two. For a few other sizes, 22 and 38 among them, it leaves
        some orders of values not fully sorted; the ranks here follow it. Use `network="odd_even"` there.

    Raises:
        ValueError: for fewer than two values, integers, or an unknown method, distribution or network.
    """
    if not values.is_floating_point():
        raise ValueError(f"soft_rank wants floating-point values, but these are {values.dtype}: call .float() first.")
    if values.dim() == 0 or values.shape[-1] < 2:
        raise ValueError(f"soft_rank wants two values or more along the last dimension, got {list(values.shape)}.")
    values = values if values.dtype == torch.float64 else values.float()
    if method == "pairwise":
        # A value against itself counts sigmoid(0) = 1/2, which is taken off again.
        return (1 - probability_above(values, values, steepness)).sum(-1) - 0.5
    if method != "diffsort":
        raise ValueError(f"Unknown method {method!r}: choose 'diffsort' or 'pairwise'.")
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"Unknown distribution {distribution!r}: choose one of {', '.join(DISTRIBUTIONS)}.")
    partner, role = _wiring(network, values.shape[-1], values.device, values.dtype)
    return _SortingNetworkRank.apply(values, partner, role, float(steepness), distribution)


def probability_above(values: torch.Tensor, others: torch.Tensor, steepness: float = 1.0) -> torch.Tensor:
    """The probability [..., n, m] that each of m others is above each of n values: the sigmoid of their difference.

    Args:
        values: [..., n].
        others: [..., m].
        steepness: that the differences are multiplied by.
    """
    return torch.sigmoid(steepness * (others[..., None, :] - values[..., :, None]))


def standardize(values: torch.Tensor) -> torch.Tensor:
    """Values [..., n] shifted and scaled to mean 0 and standard deviation 1 along the last dimension."""
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True).sqrt() + torch.finfo(values.dtype).tiny)


def spearman(
    x: torch.Tensor, y: torch.Tensor, rank: Callable[[torch.Tensor], torch.Tensor] = hard_rank
) -> torch.Tensor:
    """Spearman's rank correlation of x and y along the last dimension.

    Args:
        x: [..., n].
        y: [..., n], ranked hard (average ranks for ties).
        rank: ranks x. With `soft_rank` the correlation has a gradient with respect to x.

    Returns:
        [...] in [-1, 1]; nan where x or y is constant, which has no correlation.

    Example:
        >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0]))
        tensor(0.5000)
    """
    if x.shape != y.shape:
        raise ValueError(f"spearman wants two tensors of one shape, got {list(x.shape)} and {list(y.shape)}.")
    ranks_x = rank(x)
    ranks_y = hard_rank(y).to(ranks_x.dtype)
    centred_x = ranks_x - ranks_x.mean(-1, keepdim=True)
    centred_y = ranks_y - ranks_y.mean(-1, keepdim=True)
    return (centred_x * centred_y).sum(-1) / (centred_x.norm(dim=-1) * centred_y.norm(dim=-1))


class _SortingNetworkRank(torch.autograd.Function):
    """Ranks by a relaxed sorting network, with the backward pass written out.

    In layer l each wire w is paired with `partner[l, w]`, itself when it is not compared. Where d = x[partner] - x,
    both wires of a pair move towards each other by the same share, the probability that they are in the wrong order:
    x' = x + share · d. `role` is +1 where a wire keeps the smaller value, -1 where it keeps the larger. A layer is a
    symmetric matrix, so ranks are had by applying the layers, last to first, to 0..n-1.
    """

    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, partner: torch.Tensor, role: torch.Tensor, steepness: float, distribution: str
    ) -> torch.Tensor:
        depth, n = partner.shape
        x = values.reshape(-1, n)
        gap = x.new_empty(depth, *x.shape)
        share, rank_gap = torch.empty_like(gap), torch.empty_like(gap)
        pairs, gaps, shares = partner.unbind(), gap.unbind(), share.unbind()
        for pair, sign, d, moved in zip(pairs, role.unbind(), gaps, shares, strict=True):
            torch.sub(x.index_select(1, pair), x, out=d)
            moved.copy_(_swap_share(d * sign, steepness, distribution))
            x = torch.addcmul(x, moved, d)
        rank = torch.arange(n, dtype=x.dtype, device=x.device).expand_as(x)
        for pair, d, moved in zip(reversed(pairs), reversed(rank_gap.unbind()), reversed(shares), strict=True):
            torch.sub(rank.index_select(1, pair), rank, out=d)
            rank = torch.addcmul(rank, moved, d)
        ctx.save_for_backward(partner, role, gap, share, rank_gap)
        ctx.steepness, ctx.distribution = steepness, distribution
        return rank.reshape(values.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        partner, role, gap, share, rank_gap = ctx.saved_tensors
        pairs, shares = partner.unbind(), share.unbind()
        grad = grad_output.reshape(-1, partner.shape[1])
        grad_share = torch.empty_like(gap)
        for pair, moved, kept in zip(pairs, shares, grad_share.unbind(), strict=True):  # the ranks: first layer to last
            kept.copy_(grad)
            grad = torch.addcmul(grad, moved, grad.index_select(1, pair) - grad)
        grad_share.mul_(rank_gap)
        slope = _swap_slope(gap * role[:, None], ctx.steepness, ctx.distribution).mul_(role[:, None])
        grad = torch.zeros_like(grad)
        layers = list(zip(pairs, shares, gap.unbind(), slope.unbind(), grad_share.unbind(), strict=True))
        for pair, moved, d, steep, from_rank in reversed(layers):  # the values: last layer to first
            # d depends on both wires of a pair, as x[partner] - x; the layer itself mixes them.
            through = torch.addcmul(from_rank, grad, d).mul_(steep).addcmul_(grad, moved)
            grad = grad + through.index_select(1, pair) - through
        return grad.reshape(grad_output.shape), None, None, None, None


def _swap_share(d: torch.Tensor, steepness: float, distribution: str) -> torch.Tensor:
    """Probability that a pair is in the wrong order, F(-steepness · d): d = value above minus value below."""
    if distribution == "logistic":
        return torch.sigmoid(d * -steepness)
    if distribution == "logistic_phi":
        return torch.sigmoid(d * -steepness / (d.abs() + _EPS).pow(_PHI))
    if distribution == "gaussian":
        return 0.5 - 0.5 * torch.erf(d * (steepness / math.sqrt(2)))
    v = d * steepness
    if distribution == "reciprocal":
        return 0.5 - 0.5 * v / (2 + v.abs())
    if distribution == "cauchy":
        return 0.5 - torch.atan(v) / math.pi
    tail = (v.sign() * (v.abs() > 0.25)) * (0.25 - 1 / 16 / (v.abs() + _EPS))
    return 0.5 - v.clamp(-0.25, 0.25) - tail


def _swap_slope(d: torch.Tensor, steepness: float, distribution: str) -> torch.Tensor:
    """Derivative of `_swap_share` with respect to d."""
    if distribution in ("logistic", "logistic_phi"):
        share = _swap_share(d, steepness, distribution)
        slope = -steepness * share * (1 - share)
        if distribution == "logistic":
            return slope
        width = d.abs() + _EPS
        return slope * width.pow(-_PHI) * (1 - _PHI * d.abs() / width)
    v = d * steepness
    if distribution == "gaussian":
        return torch.exp(-0.5 * v.square()) * (-steepness / math.sqrt(2 * math.pi))
    if distribution == "reciprocal":
        return -steepness / (2 + v.abs()).square()
    if distribution == "cauchy":
        return (-steepness / math.pi) / (1 + v.square())
    return -steepness * torch.where(v.abs() > 0.25, 1 / 16 / (v.abs() + _EPS).square(), 1.0)


@functools.lru_cache(maxsize=64)
def _wiring(network: str, n: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A sorting network of n wires as (partner [depth, n] int64, role [depth, n])."""
    if network == "bitonic":
        layers = _bitonic_layers(n)
    elif network == "odd_even":
        layers = [[(low, low + 1) for low in range(layer % 2, n - 1, 2)] for layer in range(n)]
    else:
        raise ValueError(f"Unknown sorting network {network!r}: choose 'bitonic' or 'odd_even'.")
    with torch.inference_mode(False):  # what is kept here serves training too, whoever asks first
        partner = torch.arange(n).repeat(len(layers), 1)
        role = torch.zeros(len(layers), n)
        for layer, pairs in enumerate(layers):
            if pairs:
                low, high = torch.tensor(pairs).unbind(1)
                partner[layer, low], partner[layer, high] = high, low
                role[layer, low], role[layer, high] = 1.0, -1.0
        return partner.to(device), role.to(device, dtype)


def _bitonic_layers(n: int) -> list[list[tuple[int, int]]]:
    """Pairs (wire of the smaller value, wire of the larger) per layer, as diffsort orders them.

    Where n is no power of two the network of the next one is built and its top wires are taken away, with the
    comparisons that they were part of.
    """
    blocks = math.ceil(math.log2(n))
    missing = 2**blocks - n
    layers = []
    for block in range(blocks):
        for step in range(block, -1, -1):
            pairs = []
            for wire in range(2**blocks):
                other = wire + 2**step
                if wire & 2**step or wire < missing:
                    continue
                descending = wire >> (block + 1) & 1
                pair = (other - missing, wire - missing) if descending else (wire - missing, other - missing)
                pairs.append(pair)
            layers.append(pairs)
    return layers
