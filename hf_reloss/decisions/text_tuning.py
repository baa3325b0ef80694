"""Tuning which of a beam's texts is written, by a metric on examples that the model was not trained on."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from ..metrics import Metric, load_metric
from ..metrics.base import take
from ..metrics.bootstrap import bootstrapped, interval
from ..metrics.loading import metric_of
from .base import Tuned
from .consensus import Consensus, chosen
from .fitting import FOLDS
from .tuning import FEWEST, SURE

SHARPNESSES = (0.3, 1.0, 3.0, 6.0)
"""What is tried; sharper still, the likeliest text is chosen."""

UNKNOWN_IS = "sacrebleu"
"""What texts are compared by where the metric is none that is known by name."""


class TunedTexts(Tuned[Consensus]):
    """What tuning which text is written has come to: `before` is of the likeliest text, `decided` [n] is which of the
    texts is chosen."""


def tune_text_decision(
    texts: Sequence[Sequence[str]],
    scores: torch.Tensor,
    references: Sequence[Any],
    metric: Metric | Any,
    *,
    seed: int = 0,
) -> TunedTexts:
    """Fits a `Consensus` by a metric, and keeps it only if it gains on examples that it was not fitted on.

    How sharp the weights are is chosen on four fifths of the examples and decides the other fifth, five times over. The
    rule is kept if it is better than the likeliest text in 84 % of a paired bootstrap's samples, a gain of one standard
    error, and fitted again on all examples. The rule is that of Kumar and Byrne 2004.

    Args:
        texts: `[n][K]`, what beam search found for each of n examples, the likeliest first.
        scores: [n, K], their scores by beam search (`sequences_scores` of transformers).
        references: [n], as the metric takes them.
        metric: what `load_metric` takes, of texts. They are compared with each other by it, too, or, if it is none
            that is known by name, by sacreBLEU.
        seed: of the parts and the bootstrap.

    Raises:
        ValueError: for fewer than 50 examples or 2 texts of each, other numbers of texts, scores or references
            than these, or a metric that scores no texts.
    """
    return tuned_texts(texts, scores, list(chain(*texts)), references, metric, seed)


def tuned_texts(
    texts: Sequence[Sequence[str]],
    scores: torch.Tensor,
    predictions: Any,
    references: Any,
    metric: Metric | Any,
    seed: int,
) -> TunedTexts:
    """As `tune_text_decision`, for a metric that reads something else than texts.

    Args:
        predictions: [n · K], in the form that the metric takes.
    """
    metric, number, width = load_metric(metric), len(texts), scores.shape[-1]
    _check(texts, scores, references)
    is_known = metric_of(metric.signature) is not None  # so that the rule can be saved
    rule = Consensus(metric if is_known else UNKNOWN_IS, width)
    risks = rule.risks(texts)
    ways = torch.stack([chosen(risks, scores, sharpness) for sharpness in SHARPNESSES])
    rows = width * torch.arange(number)
    repeated = take(references, np.repeat(np.arange(number), width))
    part = torch.randperm(number, generator=torch.Generator().manual_seed(seed)) % FOLDS
    sign = 1.0 if metric.higher_is_better else -1.0

    def best(index: torch.Tensor) -> int:
        found = metric.score_groups(predictions, repeated, (rows + ways)[:, index])
        return int((sign * found).nan_to_num(nan=-torch.inf).argmax())

    decided = torch.zeros(number, dtype=torch.long)
    for fold in range(FOLDS):
        of_fold = part == fold
        decided[of_fold] = ways[best((~of_fold).nonzero().flatten()), of_fold]
    taken = [take(predictions, (rows + choice).numpy()) for choice in (torch.zeros(number, dtype=torch.long), decided)]
    samples = sign * bootstrapped(metric, taken, references, number, seed)
    before, after = (float(metric.compute(each, references)) for each in taken)
    low, high = interval(sign * (samples[1] - samples[0]))
    rule.sharpness = SHARPNESSES[best(torch.arange(number))]
    sure = (samples[1] > samples[0]).double().mean() >= SURE
    return TunedTexts(rule if sure else None, before, after, low, high, number, metric.name, decided, rule)


def _check(texts: Sequence[Sequence[str]], scores: torch.Tensor, references: Sequence[Any]) -> None:
    widths = {len(each) for each in texts}
    if len(texts) < FEWEST:
        raise ValueError(f"{len(texts)} examples are too few to tune a decision on: {FEWEST} or more.")
    if widths != {scores.shape[-1]} or scores.shape != (len(texts), *widths) or len(references) != len(texts):
        raise ValueError(
            f"texts [n][K], scores [n, K] and references [n] are wanted, but there are {len(texts)} examples with "
            f"{sorted(widths)} texts, scores {list(scores.shape)} and {len(references)} references."
        )
