"""A metric of each text by itself, where usually it is one of many together."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils import logging

from ..progress import without_bars
from .base import Metric
from .loading import load_metric

logger = logging.get_logger(__name__)

SMOOTHED = {"smooth": True, "use_effective_order": True}
"""Options of BLEU, of evaluate and of sacrebleu: a sentence seldom has a match of each order."""

PROBE, ANOTHER = "a b c d e f g h", "i j k l m n o p"
"""What a metric's scale is read from: a text against itself and against one with nothing in common."""


def metric_of_each(metric: Metric | Any) -> Metric:
    """A metric that is to score each text by itself: BLEU is smoothed, where it was left as it is.

    Args:
        metric: what `load_metric` takes.
    """
    return load_metric(metric).informed(SMOOTHED)


def score_each(metric: Metric, predictions: Sequence[Any], references: Sequence[Any]) -> torch.Tensor:
    """Scores [n] float64 of n predictions, each by itself, in one call; nan where there is none.

    Args:
        metric: of texts; one that is additive counts all of them at once.
        predictions, references: n each, as `Metric.compute` takes them.
    """
    if not len(predictions):
        return torch.zeros(0, dtype=torch.float64)
    with without_bars():
        return metric.score_groups(predictions, references, torch.arange(len(predictions))[:, None])


class Risk:
    """The risk of texts, of each alone: 0 for a perfect one, 1 for one of score 0.

    That is 1 - metric, which is divided by a perfect text's score first (100 of a metric in points); an error rate is a
    risk already. BLEU of one sentence is smoothed: `bleu` with `smooth=True`, `sacrebleu` with
    `use_effective_order=True`.

    Args:
        metric: what `load_metric` takes.
        scorer: what scores them, for errors.

    Raises:
        ValueError: for an unknown metric, or one that cannot score texts.
    """

    def __init__(self, metric: Metric | Any, scorer: str = "surrogate='minimum_risk'"):
        self.metric = metric = metric_of_each(metric)
        try:
            perfect, wrong = score_each(metric, [PROBE, ANOTHER], [PROBE, PROBE]).tolist()
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"{scorer} scores texts one by one, but the metric {metric.name!r} cannot ({error!r}): "
                "choose one of texts, such as 'bleu', 'chrf' or 'rougeL', or a function of two lists of strings."
            ) from error
        self.best, self.scale, self._has_said = perfect, perfect or 1.0, False
        if not metric.higher_is_better:
            self.scale = -100.0 if wrong > 1 else -1.0

    def __call__(self, texts: Sequence[str], references: Sequence[str]) -> torch.Tensor:
        """[n] float32, of n texts; equal pairs are scored once, and what has no score counts as wrong."""
        pairs = list(zip(texts, references, strict=True))
        places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
        scores = self._scores(*map(list, zip(*places, strict=True)))
        risks = ((self.best - scores) / self.scale).float()
        return risks.masked_fill(~risks.isfinite(), 1.0)[[places[pair] for pair in pairs]]

    def _scores(self, texts: list[str], references: list[str]) -> torch.Tensor:
        """Scores [n] float64; nan for what the metric raises an error on, which is said once."""
        try:
            scores = score_each(self.metric, texts, references)
        except Exception as error:
            scores = torch.tensor([self._score(*pair) for pair in zip(texts, references, strict=True)]).double()
            self._say_once(f"raised {error!r}")
        if not scores.isfinite().all():
            self._say_once(f"has no score for {texts[int(scores.isfinite().long().argmin())]!r}")
        return scores

    def _score(self, text: str, reference: str) -> float:
        try:
            return float(score_each(self.metric, [text], [reference]))
        except Exception:
            return math.nan

    def _say_once(self, what: str) -> None:
        if not self._has_said:
            logger.warning(f"The metric {self.metric.name!r} {what}: such texts count as wrong, and the run goes on.")
        self._has_said = True
