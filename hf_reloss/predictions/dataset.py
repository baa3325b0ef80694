"""Predictions: what a model put out for its examples, as a `datasets.Dataset`.

The columns are `stage` (float32: the share of its training that the model had behind it, 0 to 1), `labels`, and the
evidence that a surrogate of the model's task reads, with what a metric scores:

| task | evidence | labels | what a metric scores |
|---|---|---|---|
| classification | `logits`, float32 [C] | int64 | `logits` |
| multilabel | `label_logits`, float32 [L] | int64 [L] | `label_logits` |
| regression | `values`, float32 | float32 | `values` |
| embeddings | `embeddings`, float32 [D] | int64 | `embeddings` |
| tokens, T of them count | `margins`, float32 [T, 9] | int64 [T] | texts, or `decided`, int64 [T] |
| spans | `start_logits`, `end_logits`, float32 [10], of `start_places`, `end_places`, int64 [10] | int64 [2] | texts |
| keypoints | `heatmaps`, float32 [K, H, W] | float32 [K, 3] | `decided`, float32 [K, 2] |
| segmentation, S pixels | `pixel_logits`, float32 [S, C] | int64 [S] | `decided`, `map`, int16 [4096] or all pixels |

Margins are those of each token's label over all other classes, at its own place and, behind that, at those before and
after. Logits of spans are those of the right and the 8 likeliest places, and the log-sum-exp of all others. Texts are
in the columns `generated`, `teacher_forced` or, of spans, `answered`, and in `reference`. An additive metric's
statistics (float64 [K]) can be had too, in a column that its signature names, so that nothing is decoded or counted for
groups.

Such a data set is saved, loaded, concatenated and pushed as any other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import nn

from ..metrics import AdditiveMetric, Metric
from ..metrics.adapters import EvaluationMetrics
from ..metrics.base import IGNORED_LABEL
from ..metrics.classification import ClassMetric
from ..surrogates.base import Surrogate
from ..surrogates.classification import SurrogateForClassification
from .models import DESCRIPTION, tokenizer_of, writes_text

GENERATED, TEACHER_FORCED, ANSWERED, REFERENCE = "generated", "teacher_forced", "answered", "reference"
STATISTICS = "statistics of "
"""How the name of a column with a metric's statistics begins."""

TEXTS = (GENERATED, TEACHER_FORCED, ANSWERED)
"""Columns of texts that a metric scores."""


def statistics_column(metric: Metric) -> str:
    """The name of the column with a metric's statistics."""
    return f"{STATISTICS}{metric.signature}"


def recorded_models(predictions: datasets.Dataset) -> list[str]:
    """The models whose predictions were recorded: the class of each and, if it has one, the id of its checkpoint."""
    lines = (predictions.info.description or "").splitlines()
    return [line.removeprefix(DESCRIPTION) for line in lines if line.startswith(DESCRIPTION)]


def scored(kind: type[Surrogate], columns: Mapping[str, torch.Tensor], tokenizer: Any = None) -> tuple[Any, Any]:
    """What a metric compares of recorded columns: predictions and references, as tensors or, of token ids, texts.

    Args:
        kind: the surrogate that recorded them.
        columns: [n, ...] each.
        tokenizer: decodes token ids; None to leave them.
    """
    predictions, references = (columns[name] for name in kind.scored)
    if tokenizer is None:
        return predictions, references
    return decoded(predictions, tokenizer), decoded(references, tokenizer)


def text_decoder(
    model: nn.Module, kind: type[Surrogate], metric: Metric, processing_class: Any, data_collator: Any = None
) -> Any:
    """What decodes the token ids that a surrogate of a kind records of a model, or None if the metric compares classes.

    Args:
        model: whose predictions are recorded.
        kind: the surrogate that records them.
        metric: that is to score them.
        processing_class, data_collator: of a Trainer.
    """
    reads_text = kind.answers or (kind.has_parts and writes_text(model))
    if not reads_text or isinstance(metric, ClassMetric | EvaluationMetrics):
        return None
    return tokenizer_of(processing_class, data_collator)


def decoded(ids: torch.Tensor, tokenizer: Any, **options: Any) -> list[str]:
    """Texts of token ids [n, T], of which negative ones are padding; options are the tokenizer's own for decoding."""
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if padding is None:  # there is nothing that could be left out in decoding
        return [tokenizer.decode(row[row >= 0], skip_special_tokens=True, **options) for row in ids]
    return tokenizer.batch_decode(ids.masked_fill(ids < 0, padding), skip_special_tokens=True, **options)


def recorded_dataset(
    kind: type[Surrogate],
    columns: Mapping[str, torch.Tensor],
    *,
    tokenizer: Any = None,
    written: str = TEACHER_FORCED,
    metric: Metric | None = None,
    description: str = "",
) -> datasets.Dataset:
    """A data set of predictions from what a surrogate's `recorded` kept, and `stage`.

    Args:
        kind: the surrogate that recorded them.
        columns: [n, ...] each; predictions whose labels are all -100 are left out.
        tokenizer: decodes ids to texts, which are stored in their place.
        written: the column of texts that a model wrote; those that answer with a span have their own.
        metric: whose statistics are stored too, if it is additive.
        description: whose predictions they are, as `described` has it.
    """
    labels = columns["labels"]
    rows = (labels != IGNORED_LABEL).flatten(1).any(1) if labels.dim() > 1 else labels != IGNORED_LABEL
    columns = {name: column[rows] for name, column in columns.items()}
    # What ids stand for is stored as text.
    left_out = {name for name in kind.scored if name != "labels"} if tokenizer is not None else set()
    counts = columns["labels"] != IGNORED_LABEL if kind.has_parts else None
    stored, features = {}, {}
    for name, column in columns.items():
        if name not in left_out:
            ragged = counts is not None and column.dim() > 1 and not name.startswith(EvaluationMetrics.prefixes)
            stored[name], features[name] = _stored(column, counts if ragged else None)
    compared = scored(kind, columns, tokenizer)
    if tokenizer is not None:
        texts = dict(zip((ANSWERED if kind.answers else written, REFERENCE), compared, strict=True))
        stored |= texts
        features |= dict.fromkeys(texts, datasets.Value("string"))
    if isinstance(metric, AdditiveMetric) and not (
        kind.scores_logits or kind.swaps_labels
    ):  # groups of which get other labels
        name, statistics = statistics_column(metric), metric.statistics(*compared).cpu().numpy()
        stored[name], features[name] = statistics, datasets.List(datasets.Value("float64"), statistics.shape[-1])
    info = datasets.DatasetInfo(description=description, features=datasets.Features(features))
    return datasets.Dataset.from_dict(stored, info=info)


def _stored(column: torch.Tensor, counts: torch.Tensor | None) -> tuple[Any, Any]:
    """A column [n, ...] as data and its feature; of ragged ones, the rows of what counts [n, T]."""
    value = datasets.Value("float32" if column.is_floating_point() else str(column.dtype).removeprefix("torch."))
    shape = column.shape[1:]
    if counts is not None:
        inner = value if len(shape) == 1 else datasets.List(value, shape[1])
        width = counts.shape[1]
        return [row[:width][chosen].numpy() for row, chosen in zip(column, counts, strict=True)], datasets.List(inner)
    if len(shape) < 2:
        return column.numpy(), value if not shape else datasets.List(value, shape[0])
    array = {2: datasets.Array2D, 3: datasets.Array3D, 4: datasets.Array4D}[len(shape)]
    return list(column.numpy()), array(tuple(shape), value.dtype)


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors [n, ...] one after the other, with dimensions after the first padded to the longest, with -100."""
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]

    def padded(part: torch.Tensor) -> torch.Tensor:
        missing = [long - size for long, size in zip(longest, part.shape[1:], strict=True)]
        return (
            F.pad(part, [pad for size in reversed(missing) for pad in (0, size)], value=-100) if any(missing) else part
        )

    return torch.cat([padded(part) for part in parts])


def predictions_dataset(
    logits: torch.Tensor, labels: torch.Tensor, stage: torch.Tensor, description: str = ""
) -> datasets.Dataset:
    """A data set of a classifier's predictions: logits [n, C], labels [n], -100 to be left out, and stages [n]."""
    columns = {"logits": logits.float(), "labels": labels, "stage": stage.float()}
    return recorded_dataset(SurrogateForClassification, columns, description=description)


def part_of(dataset: Any, rows: list[int]) -> Any:
    """Some examples of a map-style data set; of one of `datasets`, a data set of that kind."""
    return dataset.select(rows) if hasattr(dataset, "select") else torch.utils.data.Subset(dataset, rows)
