"""What losses over pairs of examples share: a class's probability matters for pairs with an example of that class."""

import torch

from ..base import Evidence


def label_probabilities(evidence: Evidence) -> torch.Tensor:
    """[..., N, N]: in row i the probabilities, for all examples, of the class of example i.

    Of evidence with logits [..., N, C]. Nothing of that width is made but their gradient.
    """
    logits, labels = evidence.outputs, evidence.labels
    index = labels[..., None, :].expand(*labels.shape, labels.shape[-1])
    return (logits.gather(-1, index) - logits.logsumexp(-1, keepdim=True)).exp().transpose(-1, -2)


def same_class(evidence: Evidence) -> torch.Tensor:
    """[..., N, N] bool: pairs of examples of one class, both of which count."""
    counts, labels = evidence.counts, evidence.labels
    return (labels[..., :, None] == labels[..., None, :]) & counts[..., :, None] & counts[..., None, :]


def mean_over_classes(
    values: torch.Tensor, divisors: torch.Tensor, counts: torch.Tensor, class_sizes: torch.Tensor
) -> torch.Tensor:
    """The mean [...], over the classes that there are, of sums over their examples; 0 if there is none.

    Args:
        values: [..., N], of each example.
        divisors: [..., N] int, of its class's sum: the number of examples, or of pairs, over which that is a mean.
        counts: [..., N] bool, which examples count.
        class_sizes: [..., N] int, examples of its class.
    """
    counts = counts & (divisors > 0)
    classes = (counts / class_sizes.clamp(min=1)).sum(-1)  # an n-th for each of the n examples of one
    sums = (values / divisors.clamp(min=1)).masked_fill(~counts, 0.0).sum(-1)
    return sums / classes.clamp(min=1)
