"""Rewards for trainers that sample from a model: a metric of each completion."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics import Metric
from ..metrics.sentences import metric_of_each, score_each
from ..metrics.text import StringMetric

BESIDE = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}
"""What TRL hands to a reward function that is no column of the data."""


class MetricReward:
    """A metric as a reward function, of each completion by itself. `metric_reward` makes one.

    Attributes:
        metric: the metric.
        references: the column that completions are compared with.
        __name__: under which a trainer logs it, such as `rougeL_reward`.
    """

    def __init__(self, metric: Metric, references: str):
        self.metric, self.references = metric, references
        self.__name__ = f"{metric.name}_reward"

    def __repr__(self) -> str:
        return f"metric_reward({self.metric.signature!r}, references={self.references!r})"

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """The reward of each completion, None where there is none: without a reference, or where the score is nan.

        Args:
            completions: n strings, or conversations, of which the last message is scored.
            columns: of the data, n entries each, and what else the trainer hands over.

        Raises:
            ValueError: without the column of references.
        """
        if self.references not in columns:
            raise ValueError(
                f"{self.__name__} compares completions with the column {self.references!r}, but the data have "
                f"{sorted(columns.keys() - BESIDE) or 'none that a reward function gets'}: pass "
                "metric_reward(..., references=) the one with the right answers. (Columns named prompt or completion "
                "are not handed over.)"
            )
        references = [stripped(reference) for reference in columns[self.references]]
        known = [place for place, given in enumerate(references) if is_comparable(self.metric, given)]
        texts = [text_of(completions[place]) for place in known]
        scores = score_each(self.metric, texts, [references[place] for place in known]).tolist()
        sign = 1.0 if self.metric.higher_is_better else -1.0
        rewards: list[float | None] = [None] * len(completions)
        for place, score in zip(known, scores, strict=True):
            rewards[place] = None if math.isnan(score) else sign * score
        return rewards


def metric_reward(metric: Metric | Any, *, references: str = "answer") -> MetricReward:
    """A reward function for TRL's `GRPOTrainer` and `RLOOTrainer`: the metric of each completion.

    More is better: an error rate comes back negated. BLEU is smoothed as for single sentences: `bleu` with
    `smooth=True`, `sacrebleu` with `use_effective_order=True`. White space around completions and references is left
    out.

    Args:
        metric: what `load_metric` takes, of texts: a name (`"rougeL"`), a module of `evaluate`, a function of two lists
            of strings, a `Metric`.
        references: the column of the data that holds what is right, a string or several. Where it is None, so is the
            reward, and trainers leave that completion out.

    Returns:
        A function `(completions=, **columns)` that gives a list with a float, or None, for each completion.

    Raises:
        ValueError: for an unknown metric, or one that scores no texts.

    Example:
        >>> reward = metric_reward("wer")
        >>> reward(completions=["one two", "one"], answer=["one two", "one two"])
        [-0.0, -0.5]
        >>> reward.__name__
        'wer_reward'
    """
    return MetricReward(metric_of_texts(metric), references)


def metric_of_texts(metric: Metric | Any) -> Metric:
    """A metric that is to score texts one by one.

    Args:
        metric: what `load_metric` takes.

    Raises:
        ValueError: for one that is not known, or that is known by a name and scores something else.
    """
    found = metric_of_each(metric)
    try:
        if dataclasses.is_dataclass(found):  # a function may want references of any form
            score_each(found, ["a text"], ["a text"])
    except ValueError as error:
        raise ValueError(
            f"Completions are texts, but {found.name!r} does not score these ({error}): choose a metric of texts, such "
            "as 'exact_match', 'squad_f1' or 'rougeL', or pass a function of two lists of strings."
        ) from None
    return found


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or the content of the last message of a conversation, of its parts that are
    text.

    Raises:
        ValueError: for what is neither.
    """
    content = completion
    if isinstance(completion, list | tuple) and (not completion or isinstance(completion[-1], Mapping)):
        content = completion[-1].get("content") if completion else None
        content = "" if content is None else content  # of a message that calls a tool
        if isinstance(content, list):
            content = "".join(part.get("text") or "" for part in content)
    if not isinstance(content, str):
        raise ValueError(
            "A completion is a string or a list of messages, {'role': ..., 'content': ...}, but this is "
            f"{type(completion).__name__}: {completion!r}"
        )
    return content.strip()


def is_comparable(metric: Metric, reference: Any) -> bool:
    """Whether there is something to compare a text with: of SQuAD v2, no answer is an answer, too."""
    return reference is not None and not (isinstance(metric, StringMetric) and reference in ([], ()))


def stripped(reference: Any) -> Any:
    """A reference, or each of several, without the white space around it."""
    if isinstance(reference, str):
        return reference.strip()
    return [stripped(each) for each in reference] if isinstance(reference, list | tuple) else reference
