"""Predictions drawn into groups, which are what a metric scores and a surrogate is trained on."""

import random

import datasets
import numpy as np
import pyarrow
import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object

from ..metrics.adapters import EvaluationMetrics
from ..metrics.base import IGNORED_LABEL, AdditiveMetric, Metric, add_up
from ..metrics.credits import minds_confusions
from ..surrogates.auto import AutoSurrogate
from ..surrogates.base import Surrogate
from .dataset import REFERENCE, STATISTICS, TEXTS, statistics_column

MOST_SAMPLED = 2**18
"""How many predictions of a recording are read at most."""

MAPPED = 0.5
"""The share of groups in which each label is replaced by one class only, of metrics that may mind which one it is."""

MOST_VALUES = 2**22
"""How many labels, or values that models put out, of groups are laid out at a time."""

FEWEST_GROUPS = 16
"""With fewer groups for which the metric is defined there is no rank correlation to speak of."""


class PredictionGroups(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Groups of predictions with their scores.

    A batch of them is taken at once: `groups.__getitems__([i, j, ...])` holds, for m groups of N predictions, each
    column [m, N, ...], and `"score"` [m], such that higher is better.

    Args:
        columns: of the predictions, [n, ...] each: the evidence that was recorded, and labels.
        index: [m, N], which of them are in each group.
        scores: [m].
        labels: [m, N], labels of the groups that are not the predictions' own.
    """

    def __init__(
        self,
        columns: dict[str, torch.Tensor],
        index: torch.Tensor,
        scores: torch.Tensor,
        labels: torch.Tensor | None = None,
    ):
        self.columns, self.index, self.scores, self.labels = columns, index, scores, labels

    def __len__(self) -> int:
        return len(self.index)

    def where(self, kept: torch.Tensor) -> "PredictionGroups":
        """Some of the groups, by `kept` [m] bool."""
        labels = None if self.labels is None else self.labels[kept]
        return PredictionGroups(self.columns, self.index[kept], self.scores[kept], labels)

    def __getitems__(self, chosen: list[int]) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(chosen)
        taken = {name: column[self.index[rows]] for name, column in self.columns.items()}
        if self.labels is not None:
            taken["labels"] = self.labels[rows]
        # Not every accelerator has float64, in which metrics are computed.
        return taken | {"score": self.scores[rows].float()}

    def __getitem__(self, chosen: int) -> dict[str, torch.Tensor]:
        return {name: column[0] for name, column in self.__getitems__([chosen]).items()}


def sampled(predictions: datasets.Dataset, seed: int = 0) -> datasets.Dataset:
    """The predictions or, of more than 262,144, a random sample of that size: as many as groups have by default.

    Nothing else is read from a recording that lies on disk, and each process reads its part of the sample, in which
    all have the same in the end. So all have to call it.

    Args:
        predictions: as `record_predictions` gives them, the same in all processes.
        seed: the same seed draws the same sample, however many processes there are.
    """
    if len(predictions) <= MOST_SAMPLED:
        return predictions
    processes = PartialState()
    chosen = sorted(random.Random(seed).sample(range(len(predictions)), MOST_SAMPLED))
    own = np.array_split(chosen, processes.num_processes)[processes.process_index]
    parts = gather_object([predictions.select(own).with_format("arrow")[:]])
    return datasets.Dataset(pyarrow.concat_tables(parts), info=predictions.info)


def draw_groups(
    predictions: datasets.Dataset,
    metric: Metric,
    *,
    num_groups: int,
    group_size: int,
    corruption: float = 1.0,
    seed: int = 0,
) -> PredictionGroups:
    """Draws groups whose scores are spread from bad to good; those for which the metric is undefined are left out.

    Each group comes from a stretch of the training of its own, from a narrow one to all of it. Where predictions have
    one label each, it has a share of its labels of its own, between 0 and `corruption`, replaced by random classes; of
    metrics that may mind one confusion more than another, in half of the groups by one class for each label. Where
    they have a row of labels each, a share of these is replaced by those of other predictions.
    Otherwise the metric's statistics are added up if they were recorded; if not, it scores texts or, of class indices,
    arrays [N, T] in which -100 stands where nothing counts, as a Trainer's compute_metrics gets them.

    Args:
        predictions: as `record_predictions` gives them.
        metric: scores the groups.
        num_groups: m, at most.
        group_size: N, two or more.
        corruption: the largest share of labels that is replaced.
        seed: the same seed draws the same groups.

    Raises:
        ValueError: for a group size below 2, fewer predictions than that, labels out of range, or scores that are
            defined for hardly any group or the same for all, from which nothing can be learned.
    """
    if group_size < 2:
        raise ValueError(
            f"group_size is {group_size}, but a metric is a number for a group: use 2 or more, better 32 to 256."
        )
    if not 0 <= corruption <= 1:
        raise ValueError(f"corruption is a share between 0 and 1, got {corruption}.")
    if len(predictions) < group_size:
        raise ValueError(
            f"{len(predictions)} predictions are too few for groups of {group_size}, which would all be much the same: "
            "record more of them, or lower group_size."
        )
    generator = torch.Generator().manual_seed(seed)
    stage = predictions.with_format("torch")["stage"][:]
    width = torch.rand(num_groups, 1, generator=generator)
    start = torch.rand(num_groups, 1, generator=generator) * (1 - width)
    position = (start + width * torch.rand(num_groups, group_size, generator=generator)) * len(stage)
    index = stage.argsort(stable=True)[position.long().clamp(max=len(stage) - 1)]
    kind = AutoSurrogate.reading_columns(predictions.column_names)
    if kind is not None and (kind.scores_logits or (kind.swaps_labels and not isinstance(metric, EvaluationMetrics))):
        metric = metric.informed(kind.metric_options)
        groups = _corrupted(predictions, metric, index, corruption, generator, kind)
    else:
        groups = _as_recorded(predictions, metric, index, kind)
    groups = groups.where(groups.scores.isfinite())
    scores = groups.scores
    if len(groups) < min(FEWEST_GROUPS, num_groups):
        raise ValueError(
            f"The metric {metric.name!r} is defined for {len(groups)} of {num_groups} groups of {group_size} only: use "
            "larger groups, or a metric that is defined for most of them."
        )
    if (scores == scores[0]).all():
        raise ValueError(
            f"The metric {metric.name!r} is {float(scores[0]):.4g} for all {len(groups)} groups of {group_size}, so "
            "there is nothing to rank. Check that it reads these predictions, use larger groups, or record predictions "
            "from earlier in training as well."
        )
    if not metric.higher_is_better:
        groups.scores = -scores
    return groups


def _corrupted(
    predictions: datasets.Dataset,
    metric: Metric,
    index: torch.Tensor,
    corruption: float,
    generator: torch.Generator,
    kind: type[Surrogate],
) -> PredictionGroups:
    """Groups of predictions with a label each, or a row of labels, some of which are replaced."""
    columns = predictions.with_format("torch")[:]
    logits, labels = (columns[name] for name in kind.scored)
    share = torch.rand(index.shape, generator=generator), torch.rand(len(index), 1, generator=generator)
    is_replaced = share[0] < share[1] * corruption
    if labels.dim() > 1 or kind.swaps_labels:
        others = torch.randint(len(labels), index.shape, generator=generator)
        own, labels = labels[index], labels[torch.where(is_replaced, others, index)]
        # What does not count is the prediction's own: the documents of two queries need not be as many.
        labels = torch.where(own == IGNORED_LABEL, own, labels.clamp(min=0))
        return PredictionGroups(
            {kind.scored[0]: logits}, index, _scores(metric, columns, logits, labels, index), labels
        )
    classes = logits.shape[-1]
    if ((labels < 0) | (labels >= classes)).any():
        raise ValueError(f"Labels must be 0 to {classes - 1}, but the predictions hold some out of that range.")
    # A last class that is never a label, such as handing over to a person, is a decision alone.
    known = max(2, int(labels.max()) + 1)
    random_labels = torch.randint(known, index.shape, generator=generator)
    if minds_confusions(metric):
        maps = torch.randint(known, (len(index), known), generator=generator)
        is_mapped = torch.rand(len(index), 1, generator=generator) < MAPPED
        random_labels = torch.where(is_mapped, maps.gather(1, labels[index]), random_labels)
    labels = torch.where(is_replaced, random_labels, labels[index])
    return PredictionGroups({kind.scored[0]: logits}, index, _scores(metric, columns, logits, labels, index), labels)


def _scores(
    metric: Metric, columns: dict[str, torch.Tensor], logits: torch.Tensor, labels: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """Scores [m] of groups index [m, N] of logits [n, ...], with labels of their own, [m, N] or [m, N, L]."""
    if isinstance(metric, EvaluationMetrics):
        return metric.score_relabelled(*metric.columns(columns), index, labels)
    # Of rows of labels a metric decides itself, by their shape: a function gets logits of the same.
    decided = metric.decide(logits) if labels.dim() == 2 else logits
    of_group = max(labels[0].numel(), index.shape[1] * decided[0].numel())
    at_once = max(1, MOST_VALUES // of_group)
    parts = []
    for rows, own in zip(index.split(at_once), labels.split(at_once), strict=True):
        drawn = torch.arange(rows.numel()).view_as(rows)
        parts.append(metric.score_groups(decided[rows].flatten(0, 1), own.flatten(0, 1), drawn))
    return torch.cat(parts)


def _as_recorded(
    predictions: datasets.Dataset, metric: Metric, index: torch.Tensor, kind: type[Surrogate] | None
) -> PredictionGroups:
    """Groups of predictions of which it was recorded what the metric scores."""
    recorded, names = statistics_column(metric), predictions.column_names
    texts = next((name for name in TEXTS if name in names), None)
    read = {
        name: _column(predictions, name)
        for name in names
        if name not in (*TEXTS, REFERENCE, "stage") and not name.startswith(STATISTICS)
    }
    evaluated = {name: read.pop(name) for name in list(read) if name.startswith(EvaluationMetrics.prefixes)}
    scored, reference = ("", "labels") if kind is None else kind.scored
    compared = {name: read[name] for name in (scored, reference) if name in read}
    if isinstance(metric, EvaluationMetrics):
        scores = metric.score_groups(*metric.columns(evaluated), index)
    elif isinstance(metric, AdditiveMetric) and recorded in names:
        statistics = torch.tensor(predictions[recorded][:], dtype=torch.float64)
        scores = metric.score(add_up(statistics, index))
    elif texts:
        scores = metric.score_groups(predictions[texts][:], predictions[REFERENCE][:], index)
    elif len(compared) == 2:
        scores = metric.score_groups(compared[scored], compared[reference], index)
    else:
        raise ValueError(
            f"Nothing was recorded that the metric {metric.name!r} could score: there are the columns "
            f"{', '.join(names)}. Record predictions with record_predictions(..., metric={metric.name!r}), and the "
            "tokenizer of texts as processing_class."
        )
    kept = {"labels", *(read if kind is None else kind.read_columns)}
    return PredictionGroups({name: column for name, column in read.items() if name in kept}, index, scores)


def _column(predictions: datasets.Dataset, name: str) -> torch.Tensor:
    """A column [n, ...], in which rows of different length are padded with -100."""
    column = predictions.with_format("torch")[name][:]
    if torch.is_tensor(column):
        return column
    longest = max(len(row) for row in column)
    row = next((row for row in column if len(row)), column[0])
    padded = row.new_full((len(column), longest, *row.shape[1:]), IGNORED_LABEL)
    for place, row in zip(padded, column, strict=True):
        place[: len(row)] = row.view(len(row), *place.shape[1:])
    return padded
