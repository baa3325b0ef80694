"""Tensors of all processes, with their gradients."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .losses.base import Evidence


def gathered(values: torch.Tensor) -> torch.Tensor:
    """Values [m, ...] of all processes, one after the other; of the same shape in each.

    The gradient of each is the sum of those in all processes. Where all compute the same loss of it, DDP's mean over
    processes makes it that of one process.
    """
    return values if _processes() == 1 else _Gathered.apply(values)


def gathered_evidence(evidence: Evidence) -> Evidence:
    """The evidence of all processes as one group, padded to the largest with what does not count."""
    if _processes() == 1:
        return evidence
    sizes = torch.tensor([*evidence.outputs.shape, *evidence.labels.shape], device=evidence.outputs.device)
    largest = sizes.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    largest = largest.tolist()
    of_outputs, of_labels = largest[: evidence.outputs.dim()], largest[evidence.outputs.dim() :]
    return Evidence(
        gathered(_padded(evidence.outputs, of_outputs)),
        gathered(_padded(evidence.labels, of_labels)),
        gathered(_padded(evidence.counts, of_outputs[: evidence.counts.dim()]).to(torch.uint8)).bool(),
    )


def _padded(tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    missing = [size - has for size, has in zip(sizes, tensor.shape, strict=True)]
    return F.pad(tensor, [pad for size in reversed(missing) for pad in (0, size)]) if any(missing) else tensor


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name until torch 2.13


class _Gathered(torch.autograd.Function):
    """All processes' values [m, ...], one after the other.

    It waits for each collective: torch's functional ones, which do not, corrupted gloo's memory now and then.
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        found = values.new_empty(dist.get_world_size() * len(values), *values.shape[1:])
        _all_gather(found, values.contiguous())
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
