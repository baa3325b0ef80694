"""Metrics of text: what the libraries that define them count per prediction, and their scores of summed counts.

Options, defaults and scales are those of the modules of `evaluate`. Libraries are imported when a metric first counts.
"""

import abc
import functools
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from .base import AdditiveMetric, need, same_length


@dataclass(frozen=True)
class TextMetric(AdditiveMetric):
    """A metric of strings.

    Predictions are N strings. References are N strings, or N sequences of strings: several references of a prediction,
    not necessarily the same number of each. They are grouped by prediction as in `evaluate`, not by stream as in
    sacrebleu. Statistics are on the CPU.

    Attributes:
        evaluate_nests: whether its module of `evaluate` takes lists of references.
    """

    evaluate_nests: ClassVar[bool] = True

    def read(self, predictions: Any, references: Any) -> tuple[list[str], list[list[str]]]:
        """N predictions and the references of each, one or more. Raises what `compute` does."""
        predictions, references = self._strings(predictions), self._list(references)
        if {*map(type, references)} == {str}:
            references = [[given] for given in references]
        else:
            references = [self._strings([given] if isinstance(given, str) else given) for given in references]
        same_length(self.name, predictions, references)
        if [] in references:
            row = references.index([])
            raise ValueError(f"{self.name} wants one reference per prediction or more, but number {row} has none.")
        return predictions, references

    def _strings(self, values: Any) -> list[str]:
        values = self._list(values)
        if {*map(type, values)} == {str}:
            return values
        for value in values:
            if not isinstance(value, str):
                raise ValueError(
                    f"{self.name} wants strings, but got {type(value).__name__}. Decode token ids first, as with "
                    "tokenizer.batch_decode; join lists of words."
                )
        return values

    def _list(self, values: Any) -> list[Any]:
        if isinstance(values, str):
            raise ValueError(f"{self.name} wants a list of strings, but got one string: pass [{values!r}].")
        try:
            return list(values)
        except TypeError:  # a number, or None: refused as what is in a list
            return [values]

    def one_each(self, references: list[list[str]]) -> list[str]:
        """The references of predictions that have one each.

        Raises:
            ValueError: where there are several.
        """
        if any(len(given) > 1 for given in references):
            raise ValueError(f"{self.name} wants one reference per prediction, but got several: choose one of each.")
        return [reference for [reference] in references]

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        predictions, references = self.read(predictions, references)
        return {
            "predictions": predictions,
            "references": references if self.evaluate_nests else self.one_each(references),
        }

    def _statistics(self, predictions: list[str], references: list[list[str]]) -> torch.Tensor:
        # Where there are no predictions, an empty pair says how many statistics there are.
        rows = self._rows(predictions, references) if predictions else self._rows([""], [[""]])
        return torch.from_numpy(np.array(rows, dtype=np.float64))[: len(predictions)]

    @abc.abstractmethod
    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        """Statistics [N, K] of N predictions, at least one."""


@dataclass(frozen=True)
class Rouge(TextMetric):
    """Mean F-measure of predictions, in [0, 1], of several references the best; nan for no predictions.

    Equal to the mean of `rouge_score.rouge_scorer.RougeScorer.score_multi`, which is that of `evaluate` with
    use_aggregator=False: by default it resamples predictions at random, and its mean varies. Statistics: [N, 2], the
    F-measure and 1.

    Args:
        use_stemmer: compares stems of English words.
    """

    libraries: ClassVar[tuple[str, ...]] = ("rouge-score",)
    use_stemmer: bool = False

    @functools.cached_property
    def scorer(self) -> Any:
        return need("rouge_score.rouge_scorer", "text").RougeScorer([self.name], use_stemmer=self.use_stemmer)

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        return super().for_evaluate(predictions, references) | {"rouge_types": [self.name], "use_aggregator": False}

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        score, name = self.scorer.score, self.name
        return [
            (max([score(reference, prediction)[name].fmeasure for reference in given]), 1)
            for prediction, given in zip(predictions, references, strict=True)
        ]

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class Rouge1(Rouge):
    """ROUGE of words."""

    name: ClassVar[str] = "rouge1"
    evaluate_module: ClassVar[str] = "rouge"


@dataclass(frozen=True)
class Rouge2(Rouge):
    """ROUGE of pairs of words."""

    name: ClassVar[str] = "rouge2"
    evaluate_module: ClassVar[str] = "rouge"


@dataclass(frozen=True)
class RougeL(Rouge):
    """ROUGE of the longest common subsequence."""

    name: ClassVar[str] = "rougeL"
    evaluate_module: ClassVar[str] = "rouge"


@dataclass(frozen=True)
class RougeLsum(Rouge):
    """ROUGE of the longest common subsequences of sentences, which are on lines of their own."""

    name: ClassVar[str] = "rougeLsum"
    evaluate_module: ClassVar[str] = "rouge"


@dataclass(frozen=True)
class ExactMatch(TextMetric):
    """Share of the predictions that equal a reference, in [0, 1]; nan for no predictions.

    Equal to `evaluate`'s, which takes one reference each. Statistics: [N, 2], whether it matches and 1.

    Args:
        regexes_to_ignore: what they match is removed first, one after the other.
        ignore_case: compares in lower case.
        ignore_punctuation: removes ASCII punctuation.
        ignore_numbers: removes the digits 0 to 9.
    """

    name: ClassVar[str] = "exact_match"
    evaluate_nests: ClassVar[bool] = False

    regexes_to_ignore: Sequence[str] | None = None
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_numbers: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.regexes_to_ignore, str):
            raise ValueError(f"{self.name}: regexes_to_ignore is a list: pass [{self.regexes_to_ignore!r}].")

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        removed = string.punctuation * self.ignore_punctuation + string.digits * self.ignore_numbers
        table = str.maketrans("", "", removed)

        def normalized(text: str) -> str:
            for regex in self.regexes_to_ignore or ():
                text = re.sub(regex, "", text)
            return (text.lower() if self.ignore_case else text).translate(table)

        return [
            (normalized(prediction) in map(normalized, given), 1)
            for prediction, given in zip(predictions, references, strict=True)
        ]

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class ErrorRate(TextMetric):
    """Edits per unit of the references, a fraction: above 1 where more is inserted than was due.

    One reference per prediction. Statistics: [N, 2], edits (substitutions, deletions and insertions), and units of the
    reference. Where references have none, the score is the number of insertions, as in jiwer; `evaluate` fails.
    """

    higher_is_better: ClassVar[bool] = False
    evaluate_nests: ClassVar[bool] = False
    libraries: ClassVar[tuple[str, ...]] = ("jiwer",)
    transform: ClassVar[str]
    """What of jiwer splits strings into units."""

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        split = getattr(need("jiwer", "text"), self.transform)
        # jiwer counts with rapidfuzz as well, and lays out alignments, which nobody needs here.
        distance = need("rapidfuzz.distance.Levenshtein", "text").distance
        pairs = zip(split(predictions), split(self.one_each(references)), strict=True)
        return [(distance(reference, prediction), len(reference)) for prediction, reference in pairs]

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        edits, length = sums.unbind(-1)
        return edits / length.clamp(min=1)


@dataclass(frozen=True)
class WordErrorRate(ErrorRate):
    """Word error rate. Equal to `jiwer.wer`."""

    name: ClassVar[str] = "wer"
    transform: ClassVar[str] = "wer_default"


@dataclass(frozen=True)
class CharacterErrorRate(ErrorRate):
    """Character error rate, spaces between words included. Equal to `jiwer.cer`."""

    name: ClassVar[str] = "cer"
    transform: ClassVar[str] = "cer_default"
