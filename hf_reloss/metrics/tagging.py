"""Metrics of entities that are tagged token by token, from `seqeval`."""

import dataclasses
import functools
import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from .base import IGNORED_LABEL, AdditiveMetric, need, same_length

SCHEMES = ("IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU")


@dataclass(frozen=True)
class Seqeval(AdditiveMetric):
    """F1 of entities, in [0, 1]: one is right if type, start and end are. All types and sentences count together.

    Predictions and references are N sentences, each a list of tags such as "B-PER"; or, given `label_names`, class
    indices [N, T] (integers) or logits [N, T, C] (floating point). A position whose reference is -100 is left out.
    Statistics: [N, 3], entities that are right, predicted ones, true ones; the score is 0 where there are none, as with
    seqeval's `zero_division`, though without its warning. Tags are read by seqeval, which warns of strange ones.

    Attributes:
        suffix: whether the prefix comes last, as in "PER-B".
        scheme: one of `SCHEMES`; without effect unless in strict mode.
        mode: None takes tags that break the scheme as conlleval.pl does, "strict" leaves their entities out.
        label_names: the tags that class indices stand for, in order: `list(model.config.id2label.values())`.
    """

    name: ClassVar[str] = "seqeval"
    evaluate_key: ClassVar[str] = "overall_f1"
    libraries: ClassVar[tuple[str, ...]] = ("seqeval",)

    suffix: bool = False
    scheme: str | None = None
    mode: str | None = None
    label_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.mode not in (None, "strict"):
            raise ValueError(f"{self.name}: mode is None or 'strict', but got {self.mode!r}.")
        if self.scheme not in (None, *SCHEMES):
            raise ValueError(f"{self.name}: scheme is one of {', '.join(SCHEMES)}, but got {self.scheme!r}.")
        if self.mode == "strict" and self.scheme is None:
            raise ValueError(
                f"{self.name} wants a scheme in strict mode: seqeval guesses it from all of the data, so that it could "
                f"be another one for another group. Pass one of {', '.join(SCHEMES)}."
            )

    def decide(self, outputs: Any) -> Any:
        is_logits = torch.is_tensor(outputs) and outputs.is_floating_point()
        is_logits = is_logits or (isinstance(outputs, np.ndarray) and outputs.dtype.kind == "f")
        return outputs.argmax(-1) if is_logits else outputs

    def read(self, predictions: Any, references: Any) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
        same_length(self.name, predictions, references)
        predictions, references = (
            [row.tolist() if hasattr(row, "tolist") else row for row in values]
            for values in (self.decide(predictions), references)
        )
        for row, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
            if any(isinstance(tags, str) or not isinstance(tags, Sequence) for tags in (predicted, true)):
                raise ValueError(
                    f"{self.name} wants a list of tags for each sentence, but sentence {row} has {predicted!r} "
                    f"predicted for {true!r}. Pass a list of sentences, or class indices [N, T] and label_names."
                )
            if len(predicted) != len(true):
                raise ValueError(
                    f"{self.name} wants one tag per token, but sentence {row} has {len(predicted)} predicted tags and "
                    f"{len(true)} true ones."
                )
        pairs = zip(predictions, references, strict=True)
        return [self._tags(*pair) for pair in pairs], [self._tags(true, true) for true in references]

    def check_against(self, module: Any, predictions: Any, references: Any) -> float:
        # The module reads tags only, and does not know label_names.
        of_tags = dataclasses.replace(self, label_names=None)
        return super(Seqeval, of_tags).check_against(module, *self.read(predictions, references))

    def _tags(self, given: Sequence[Any], true: Sequence[Any]) -> Sequence[str]:
        """The tags of one sentence, without those that do not count."""
        if {*map(type, given), *map(type, true)} <= {str}:
            return given
        return [
            tag if isinstance(tag, str) else self._name(tag)
            for tag, reference in zip(given, true, strict=True)
            if reference != IGNORED_LABEL
        ]

    def _name(self, given: Any) -> str:
        """The tag that a class index stands for."""
        if self.label_names is None:
            raise ValueError(
                f"{self.name} wants tags such as 'B-PER', but got {given!r}. Pass label_names, the tags that class "
                "indices stand for, in order."
            )
        is_number = isinstance(given, numbers.Real)
        if not is_number or given != int(given) or not 0 <= given < len(self.label_names):
            raise ValueError(
                f"{self.name} wants tags, or class indices from 0 to {len(self.label_names) - 1}, which have a name in "
                f"label_names, but got {given!r}."
            )
        return self.label_names[int(given)]

    def _statistics(self, predictions: list[Sequence[str]], references: list[Sequence[str]]) -> torch.Tensor:
        # Sentences that are tagged alike, such as those predicted right, are read once.
        entities = functools.cache(self._entities)
        counts = []
        for tags in zip(predictions, references, strict=True):
            predicted, true = (entities(tuple(sentence)) for sentence in tags)
            counts.append((len(predicted & true), len(predicted), len(true)))
        return torch.tensor(counts, dtype=torch.float64).reshape(-1, 3)

    def evaluated(self, predictions: Any, references: Any) -> dict[str, Any]:
        """As seqeval's module: scores of each type, of all of them together, and the share of right tags."""
        if type(self) is not Seqeval:
            return super().evaluated(predictions, references)
        counts: dict[str, np.ndarray] = {}
        right = number = 0
        place = 0 if self.mode is None else 1  # of the type
        for tags in zip(*self.read(predictions, references), strict=True):
            right += sum(map(operator.eq, *tags))
            number += len(tags[1])
            predicted, true = (self._entities(tuple(sentence)) for sentence in tags)
            for kind, found in enumerate((predicted & true, predicted, true)):
                for entity in found:
                    counts.setdefault(entity[place], np.zeros(3))[kind] += 1
        scores = {name: _scores(*counts[name]) | {"number": int(counts[name][2])} for name in sorted(counts)}
        overall = _scores(*sum(counts.values(), np.zeros(3)))
        accuracy = right / number if number else math.nan
        return scores | {f"overall_{key}": score for key, score in overall.items()} | {"overall_accuracy": accuracy}

    def _entities(self, tags: tuple[str, ...]) -> set[tuple[Any, ...]]:
        """The entities of a sentence, as tuples that are the same where type, start and end are."""
        if self.mode == "strict":
            assert self.scheme is not None
            schemes = need("seqeval.scheme", "tagging")
            found = schemes.Tokens(tags, getattr(schemes, self.scheme), self.suffix).entities
            return {entity.to_tuple() for entity in found}
        extract = need("seqeval.metrics.sequence_labeling", "tagging").get_entities
        return set(extract(list(tags), self.suffix))

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        right, predicted, true = sums.unbind(-1)
        return _share(2 * right, predicted + true)


@dataclass(frozen=True)
class SeqevalPrecision(Seqeval):
    """Share of the predicted entities that are right, counted and read as for `seqeval`."""

    name: ClassVar[str] = "seqeval_precision"
    evaluate_module: ClassVar[str] = "seqeval"
    evaluate_key: ClassVar[str] = "overall_precision"

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return _share(sums[..., 0], sums[..., 1])


@dataclass(frozen=True)
class SeqevalRecall(Seqeval):
    """Share of the true entities that are found, counted and read as for `seqeval`."""

    name: ClassVar[str] = "seqeval_recall"
    evaluate_module: ClassVar[str] = "seqeval"
    evaluate_key: ClassVar[str] = "overall_recall"

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return _share(sums[..., 0], sums[..., 2])


def _scores(right: float, predicted: float, true: float) -> dict[str, float]:
    """Precision, recall and F1 of counts, 0 of nothing."""
    parts = {"precision": (right, predicted), "recall": (right, true), "f1": (2 * right, predicted + true)}
    return {key: float(part / whole) if whole else 0.0 for key, (part, whole) in parts.items()}


def _share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """part / whole, 0 of nothing."""
    return torch.where(whole > 0, part / whole, 0.0)
