"""SARI, of texts that are made simpler: what was kept, taken out and added, beside references and the source."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .libraries import cut
from .text import TextMetric
from .translation import tokenizer_13a

LONGEST = 4
"""The longest n-grams."""

Ngrams = Counter[tuple[str, ...]]
"""How often each n-gram occurs."""


@dataclass(frozen=True)
class Sari(TextMetric):
    """Mean SARI of predictions (Xu et al. 2016), in [0, 100]; nan for no predictions.

    Of n-grams of orders 1 to 4, the mean of three: F1 of those that are kept of the source, precision of those that are
    taken out, F1 of those that are added; in each, n-grams of the source count once for each reference. Equal to
    evaluate's, which follows tensor2tensor: tokens 13a in lower case, and 1 where there is nothing to keep, take out or
    add. Each prediction is scored once, however many groups it is drawn into. Statistics: [N, 2], the score and 1.

    Args:
        sources: the text that each prediction was made of, in the order of the predictions. A run draws predictions at
            random and does not record these, so SARI is for predictions that are there in their order.
    """

    name: ClassVar[str] = "sari"
    libraries: ClassVar[tuple[str, ...]] = ("sacrebleu",)
    sources: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.sources, str):
            raise ValueError(f"{self.name}: sources is a list, of a text for each prediction: pass [{self.sources!r}].")
        object.__setattr__(self, "sources", tuple(self.sources))  # also of an array

    @property
    def signature(self) -> str:
        """As of others, with a hash of the sources in their place."""
        digest = hashlib.sha256(repr(self.sources).encode()).hexdigest()[:16]
        return super(Sari, dataclasses.replace(self, sources=(digest,))).signature

    def read(self, predictions: Any, references: Any) -> tuple[list[str], list[list[str]]]:
        predictions, references = super().read(predictions, references)
        if predictions and not self.sources:
            raise ValueError(
                f"{self.name} compares predictions with the texts that they were made of: pass sources=, one for each, "
                "in their order."
            )
        cut({"sources": self.sources}, len(predictions), self.name)
        return predictions, references

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        split = tokenizer_13a()

        def ngrams(text: str) -> list[Ngrams]:
            tokens = split(text.lower()) or [""]  # as evaluate has it: of no token there is one, which is empty
            return [
                Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))
                for order in range(1, LONGEST + 1)
            ]

        rows = []
        for source, prediction, given in zip(self.sources or ("",), predictions, references, strict=True):
            wanted = [ngrams(text) for text in given]
            orders = [
                _agreement(had, found, sum(each, Counter()), len(given))
                for had, found, *each in zip(ngrams(source), ngrams(prediction), *wanted, strict=True)
            ]
            rows.append((sum(orders) / LONGEST, 1))
        return rows

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return 100 * sums[..., 0] / sums[..., 1]


def _agreement(source: Ngrams, prediction: Ngrams, wanted: Ngrams, references: int) -> float:
    """How well the n-grams of one order were chosen, in [0, 1].

    Args:
        source, prediction: n-grams.
        wanted: those of all references together.
        references: how many there are.
    """
    had = Counter({ngram: references * times for ngram, times in source.items()})
    found = Counter({ngram: references * times for ngram, times in prediction.items()})
    kept, to_keep = had & found, had & wanted
    right = kept & wanted
    keeping = _f1(
        _share(sum(times / kept[ngram] for ngram, times in right.items()), len(kept)),
        _share(right.total(), to_keep.total()),
    )
    removed = had - found
    removing = _share(sum(times / removed[ngram] for ngram, times in (removed - wanted).items()), len(removed))
    added, to_add = prediction.keys() - source.keys(), wanted.keys() - source.keys()
    new = len(added & to_add)
    return (keeping + removing + _f1(_share(new, len(added)), _share(new, len(to_add)))) / 3


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
