"""Metrics of text: what the libraries that define them count per prediction, and their scores of summed counts.

Options, defaults and scales are those of the modules of `evaluate`. Libraries are imported when a metric first counts.
"""

import abc
import functools
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from transformers.utils import logging

from .base import LATER, AdditiveMetric, Metric, need, same_length

logger = logging.get_logger(__name__)

Tokenizer = Callable[[str], Sequence[str]]

NO_LATIN = re.compile(r"[^a-zA-Z0-9]*[^\W_a-zA-Z0-9][^a-zA-Z0-9]*")
"""Texts with letters of which none is Latin."""


@dataclass(frozen=True)
class StringMetric(Metric):
    """A metric of strings.

    Predictions are N strings. References are N strings, or N sequences of strings: several references of a prediction,
    not necessarily the same number of each. They are grouped by prediction as in `evaluate`, not by stream as in
    sacrebleu.

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


@dataclass(frozen=True)
class TextMetric(StringMetric, AdditiveMetric):
    """A metric of strings that adds up, on the CPU. Predictions and references as of `StringMetric`."""

    def _statistics(self, predictions: list[str], references: list[list[str]]) -> torch.Tensor:
        # Where there are no predictions, an empty pair says how many statistics there are.
        rows = self._rows(predictions, references) if predictions else self._rows([""], [[""]])
        return torch.from_numpy(np.array(rows, dtype=np.float64))[: len(predictions)]

    @abc.abstractmethod
    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        """Statistics [N, K] of N predictions, at least one."""


def check_tokenizer(name: str, tokenizer: Any) -> None:
    """Raises ValueError for a tokenizer of a metric that is no function."""
    if not (tokenizer is None or callable(tokenizer)):
        raise ValueError(
            f"{name}: tokenizer is a function from a text to its tokens, such as str.split, but got {tokenizer!r}."
        )


@dataclass(frozen=True)
class Rouge(TextMetric):
    """Mean F-measure of predictions, in [0, 1], of several references the best; nan for no predictions.

    Equal to the mean of `rouge_score.rouge_scorer.RougeScorer.score_multi`, which is that of `evaluate` with
    use_aggregator=False: by default it resamples predictions at random, and its mean varies. Statistics: [N, 2], the
    F-measure and 1.

    Args:
        use_stemmer: compares stems of English words; of no effect beside a tokenizer.
        tokenizer: a function from a text to its tokens, such as `str.split` or a tokenizer's `tokenize`. By default
            tokens are runs of the letters a to z and digits, in lower case, so that of texts without Latin letters
            there is nothing left, and a warning says so.
    """

    libraries: ClassVar[tuple[str, ...]] = ("rouge-score",)
    use_stemmer: bool = False
    tokenizer: Tokenizer | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        check_tokenizer(self.name, self.tokenizer)

    @functools.cached_property
    def scorer(self) -> Any:
        scorer = need("rouge_score.rouge_scorer", "text")
        own = None if self.tokenizer is None else SimpleNamespace(tokenize=self.tokenizer)
        return scorer.RougeScorer([self.name], use_stemmer=self.use_stemmer, tokenizer=own)

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        return super().for_evaluate(predictions, references) | {"rouge_types": [self.name], "use_aggregator": False}

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        if self.tokenizer is None and any(NO_LATIN.fullmatch(text) for given in references for text in given):
            logger.warning_once(
                f"{self.name} reads the letters a to z and digits only, of which there is none in some references: "
                "these score 0 whatever is predicted. Pass tokenizer= a function that splits texts, such as str.split."
            )
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
    """Edits per unit of the references, a fraction: above 1 where more is inserted than there should be.

    One reference per prediction. Statistics: [N, 2], edits (substitutions, deletions and insertions), and units of the
    reference. Where references have none, the score is the number of insertions, as in jiwer; `evaluate` fails.
    """

    higher_is_better: ClassVar[bool] = False
    evaluate_nests: ClassVar[bool] = False
    libraries: ClassVar[tuple[str, ...]] = ("jiwer",)
    transform: ClassVar[str]
    """What of jiwer splits strings into units."""

    def _pairs(self, predictions: list[str], references: list[list[str]]) -> Iterable[tuple[list[str], list[str]]]:
        """The units of predictions and references, N of each."""
        split = getattr(need("jiwer", "text"), self.transform)
        return zip(split(predictions), split(self.one_each(references)), strict=True)

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        # jiwer counts with rapidfuzz as well, and lays out alignments, which nobody needs here.
        distance = need("rapidfuzz.distance.Levenshtein", "text").distance
        pairs = self._pairs(predictions, references)
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


@dataclass(frozen=True)
class AlignedErrorRate(ErrorRate):
    """A rate of words that are aligned. One reference per prediction.

    Statistics: [N, 4], words that are aligned with an equal one, edits, and words of the reference and of the
    prediction.
    """

    transform: ClassVar[str] = "wer_default"

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        # Of several alignments with as few edits, the counts depend on which: it has to be the one of jiwer.
        opcodes = need("rapidfuzz.distance.Levenshtein", "text").opcodes
        rows = []
        for prediction, reference in self._pairs(predictions, references):
            steps = [(code.tag == "equal", code) for code in opcodes(reference, prediction)]
            hits = sum(code.src_end - code.src_start for equal, code in steps if equal)
            edits = sum(
                max(code.src_end - code.src_start, code.dest_end - code.dest_start)
                for equal, code in steps
                if not equal
            )
            rows.append((hits, edits, len(reference), len(prediction)))
        return rows


@dataclass(frozen=True)
class MatchErrorRate(AlignedErrorRate):
    """Match error rate (Morris et al. 2004): the share of edits among all alignments, in [0, 1]. Equal to `jiwer.mer`.

    0 where neither side has a word.
    """

    name: ClassVar[str] = "mer"

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        hits, edits, _, _ = sums.unbind(-1)
        return edits / (hits + edits).clamp(min=1)


@dataclass(frozen=True)
class WordInformationLost(AlignedErrorRate):
    """Word information lost (Morris et al. 2004), in [0, 1]. Equal to `jiwer.wil`.

    1 less the product of the shares of words, of the references and of the predictions, that are aligned with an equal
    one; 0 where neither side has a word.
    """

    name: ClassVar[str] = "wil"

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        hits, _, wanted, predicted = sums.unbind(-1)
        preserved = (hits / wanted.clamp(min=1)) * (hits / predicted.clamp(min=1))
        return 1 - torch.where(wanted + predicted > 0, preserved, 1.0)
