"""Predictions drawn into groups, which are what a metric scores and a surrogate is trained on."""

import datasets
import torch

from .metrics.base import Metric


class PredictionGroups(torch.utils.data.Dataset):
    """Groups of predictions with their scores.

    A batch of them is taken at once: `groups.__getitems__([i, j, ...])` is `{"logits": [m, N, C], "labels": [m, N],
    "score": [m]}`, the score such that higher is better.

    Args:
        logits: [n, C], the predictions.
        index: [m, N], which of them are in each group.
        labels: [m, N], their labels there.
        scores: [m].
    """

    def __init__(self, logits: torch.Tensor, index: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor):
        self.logits, self.index, self.labels, self.scores = logits, index, labels, scores

    def __len__(self) -> int:
        return len(self.index)

    def __getitems__(self, chosen: list[int]) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(chosen)
        # Not every accelerator has float64, in which metrics are computed.
        scores = self.scores[rows].float()
        return {"logits": self.logits[self.index[rows]], "labels": self.labels[rows], "score": scores}

    def __getitem__(self, chosen: int) -> dict[str, torch.Tensor]:
        return {name: column[0] for name, column in self.__getitems__([chosen]).items()}


def draw_groups(
    predictions: datasets.Dataset,
    metric: Metric,
    *,
    num_groups: int,
    group_size: int,
    corruption: float = 1.0,
    seed: int = 0,
) -> PredictionGroups:
    """Draws groups whose scores are spread from bad to good.

    Each group comes from a stretch of the training of its own, from a narrow one to all of it, and has a share of its
    labels of its own, between 0 and `corruption`, replaced by random classes.

    Args:
        predictions: with the columns `logits`, `labels`, `stage`, as `record_predictions` gives them.
        metric: scores the groups.
        num_groups: m.
        group_size: N, two or more.
        corruption: the largest share of labels that is replaced.
        seed: the same seed draws the same groups.

    Raises:
        ValueError: for a group size below 2, fewer predictions than that, labels out of range, or scores that are not
            finite or the same for all groups, from which nothing can be learned.
    """
    if group_size < 2:
        raise ValueError(
            f"group_size is {group_size}, but a metric is a number for a group: use 2 or more, better 32 to 256."
        )
    if not 0 <= corruption <= 1:
        raise ValueError(f"corruption is a share between 0 and 1, got {corruption}.")
    columns = predictions.with_format("torch")[:]
    logits, labels, order = columns["logits"], columns["labels"], columns["stage"].argsort(stable=True)
    classes = logits.shape[-1]
    if len(labels) < group_size:
        raise ValueError(
            f"{len(labels)} predictions are too few for groups of {group_size}, which would all be much the same: "
            "record more of them, or lower group_size."
        )
    if ((labels < 0) | (labels >= classes)).any():
        raise ValueError(f"Labels must be 0 to {classes - 1}, but the predictions hold some out of that range.")
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    width = uniform(num_groups, 1)
    start = uniform(num_groups, 1) * (1 - width)
    position = (start + width * uniform(num_groups, group_size)) * len(labels)
    index = order[position.long().clamp(max=len(labels) - 1)]
    corrupted = uniform(num_groups, group_size) < uniform(num_groups, 1) * corruption
    random_labels = torch.randint(classes, (num_groups, group_size), generator=generator)
    group_labels = torch.where(corrupted, random_labels, labels[index])
    drawn = torch.arange(index.numel()).view_as(index)
    scores = metric.score_groups(metric.decide(logits)[index].flatten(0, 1), group_labels.flatten(), drawn)
    if not scores.isfinite().all():
        raise ValueError(
            f"The metric {metric.name!r} is not finite for {int((~scores.isfinite()).sum())} of {num_groups} groups of "
            f"{group_size}: use larger groups, or a metric that is defined for each of them."
        )
    if (scores == scores[0]).all():
        raise ValueError(
            f"The metric {metric.name!r} is {float(scores[0]):.4g} for all {num_groups} groups of {group_size}, so "
            "there is nothing to rank. Check that it reads these predictions, use larger groups, or record predictions "
            "from earlier in training as well."
        )
    return PredictionGroups(logits, index, group_labels, scores if metric.higher_is_better else -scores)
