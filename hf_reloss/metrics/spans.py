"""Metrics of answers that are spans of text: SQuAD v1.1 and v2.0, CMRC 2018. All are shares of 100, averaged."""

import abc
import difflib
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .base import AdditiveMetric, need, same_length


@dataclass(frozen=True)
class SpanMetric(AdditiveMetric):
    """An average over questions of how well the predicted answer matches the gold answer that it matches best, 0-100.

    Predictions are N strings, or N mappings with `prediction_text`, as for `evaluate`. References are the gold answers:
    for each question a string, a sequence of strings, or a mapping with `answers` or `text`, as in the datasets. They
    are paired by position; where both have an `id`, it must be the same. Statistics: [N, 2], the match in [0, 1] and 1.
    A subclass defines `match`.
    """

    @abc.abstractmethod
    def match(self, prediction: str, answer: str) -> float:
        """How well a prediction matches one gold answer, in [0, 1]."""

    def read(self, predictions: Any, references: Any) -> tuple[list[Any], list[list[str]]]:
        same_length(self.name, predictions, references)
        for prediction, reference in zip(predictions, references, strict=True):
            ids = [given["id"] for given in (prediction, reference) if isinstance(given, Mapping) and "id" in given]
            if len(set(ids)) > 1:
                raise ValueError(
                    f"{self.name} pairs predictions and references by position, but got a prediction for question "
                    f"{ids[0]!r} where the reference is for {ids[1]!r}. Put them in the same order."
                )
        return [self._read_prediction(given) for given in predictions], [self._read_answers(r) for r in references]

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        predictions, references = self.read(predictions, references)
        return {
            "predictions": [{"id": str(row), "prediction_text": text} for row, text in enumerate(predictions)],
            "references": [
                {"id": str(row), "answers": {"text": answers, "answer_start": [0] * len(answers)}}
                for row, answers in enumerate(references)
            ],
        }

    def _read_prediction(self, given: Any) -> Any:
        text = given.get("prediction_text") if isinstance(given, Mapping) else given
        if not isinstance(text, str):
            raise ValueError(
                f"{self.name} wants predictions that are strings, or mappings with the string prediction_text, but got "
                f"{given!r}. Take the text between a model's start and end positions first."
            )
        return text

    def _read_answers(self, given: Any) -> list[str]:
        answers = given
        for key in ("answers", "text"):
            if isinstance(answers, Mapping) and key in answers:
                answers = answers[key]
        answers = [answers] if isinstance(answers, str) else answers
        is_list = isinstance(answers, Iterable) and not isinstance(answers, Mapping)
        if not is_list or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(
                f"{self.name} wants the gold answers of a question as a string, a sequence of strings or "
                f"{{'answers': {{'text': [...]}}}}, but got {given!r}."
            )
        return list(answers)

    def _statistics(self, predictions: list[Any], references: list[list[str]]) -> torch.Tensor:
        values = [self._best(*pair) for pair in zip(predictions, references, strict=True)]
        matches = torch.tensor(values, dtype=torch.float64)
        return torch.stack([matches, torch.ones_like(matches)], dim=-1)

    def _best(self, prediction: Any, answers: list[str]) -> float:
        if not answers:
            raise ValueError(
                f"{self.name} wants at least one gold answer per question, but the one predicted as {prediction!r} has "
                "none. Leave such questions out, or use squad_v2_exact or squad_v2_f1."
            )
        return max(self.match(prediction, answer) for answer in answers)

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return 100 * sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class SquadExactMatch(SpanMetric):
    """Share of the answers that are the same as a gold answer, but for case, punctuation, articles and white space.

    Equal to the official script for SQuAD v1.1 (Rajpurkar et al. 2016, arXiv:1606.05250).
    """

    name: ClassVar[str] = "squad_exact_match"
    evaluate_module: ClassVar[str] = "squad"
    evaluate_key: ClassVar[str] = "exact_match"

    def match(self, prediction: str, answer: str) -> float:
        return float(normalize(prediction) == normalize(answer))


@dataclass(frozen=True)
class SquadF1(SpanMetric):
    """F1 of the words of an answer, normalised as for `squad_exact_match`: a bag, without their order.

    Equal to the official script for SQuAD v1.1 (Rajpurkar et al. 2016, arXiv:1606.05250).
    """

    name: ClassVar[str] = "squad_f1"
    evaluate_module: ClassVar[str] = "squad"
    evaluate_key: ClassVar[str] = "f1"

    def match(self, prediction: str, answer: str) -> float:
        predicted, gold = normalize(prediction).split(), normalize(answer).split()
        return _f1((Counter(predicted) & Counter(gold)).total(), len(predicted), len(gold))


@dataclass(frozen=True)
class SquadV2Metric(SpanMetric):
    """A metric of questions that may have no answer: there an empty prediction is right, and no other.

    References may be empty. Predictions may have a `no_answer_probability`: above `no_answer_threshold` the question is
    taken to have no answer, whatever the text. `None` as a prediction says the same. Equal to the official script for
    SQuAD v2.0 (Rajpurkar et al. 2018, arXiv:1806.03822), whose threshold of 1 leaves probabilities without effect.
    """

    no_answer_threshold: float = 1.0

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        keywords = super().for_evaluate(predictions, references)
        for prediction in keywords["predictions"]:
            prediction["no_answer_probability"] = float("inf") if prediction["prediction_text"] is None else 0.0
            prediction["prediction_text"] = prediction["prediction_text"] or ""
        return keywords

    def _read_prediction(self, given: Any) -> str | None:
        says_none = isinstance(given, Mapping) and given.get("no_answer_probability", 0.0) > self.no_answer_threshold
        return None if given is None or says_none else super()._read_prediction(given)

    def _best(self, prediction: str | None, answers: list[str]) -> float:
        # Here an answer counts even if nothing is left of it, as of "the"; from here on it does not.
        if prediction is None:
            return float(not answers)
        answers = [answer for answer in answers if normalize(answer)]
        return super()._best(prediction, answers) if answers else float(not normalize(prediction))


@dataclass(frozen=True)
class SquadV2Exact(SquadV2Metric, SquadExactMatch):
    """`squad_exact_match` for questions that may have no answer."""

    name: ClassVar[str] = "squad_v2_exact"
    evaluate_module: ClassVar[str] = "squad_v2"
    evaluate_key: ClassVar[str] = "exact"


@dataclass(frozen=True)
class SquadV2F1(SquadV2Metric, SquadF1):
    """`squad_f1` for questions that may have no answer."""

    name: ClassVar[str] = "squad_v2_f1"
    evaluate_module: ClassVar[str] = "squad_v2"
    evaluate_key: ClassVar[str] = "f1"


@dataclass(frozen=True)
class CmrcExactMatch(SpanMetric):
    """Share of the answers that are the same as a gold answer, but for case, punctuation and outer white space.

    For Chinese; equal to cmrc2018_evaluate.py (Cui et al. 2019, arXiv:1810.07366).
    """

    name: ClassVar[str] = "cmrc_exact_match"

    def match(self, prediction: str, answer: str) -> float:
        return float(remove_punctuation(prediction) == remove_punctuation(answer))


@dataclass(frozen=True)
class CmrcF1(SpanMetric):
    """F1 from the longest run of tokens that an answer shares with a gold answer.

    Tokens are Chinese characters, and between them the words of `nltk.word_tokenize`. As cmrc2018_evaluate.py (Cui et
    al. 2019, arXiv:1810.07366), except that it lets nltk split sentences first, for which data must be downloaded.
    Without it, a full stop inside a stretch of Latin text stays with its word.
    """

    name: ClassVar[str] = "cmrc_f1"
    libraries: ClassVar[tuple[str, ...]] = ("nltk",)

    def match(self, prediction: str, answer: str) -> float:
        predicted, gold = segments(prediction), segments(answer)
        shared = difflib.SequenceMatcher(None, predicted, gold, autojunk=False).find_longest_match().size
        return _f1(shared, len(predicted), len(gold))


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

# The script's list also has the ellipsis "……", but tests single characters, so it stays. ASCII commas, full stops and
# brackets are not in the list.
_NO_CMRC_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHINESE_CHARACTER = re.compile("([\u4e00-\u9fa5])")


def normalize(text: str) -> str:
    """Text as SQuAD compares it: lower case, without ASCII punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def remove_punctuation(text: str) -> str:
    """Text as CMRC 2018 compares it: lower case, without outer white space, then without its punctuation."""
    return text.lower().strip().translate(_NO_CMRC_PUNCTUATION)


def segments(text: str) -> list[str]:
    """Tokens as CMRC 2018 counts them, without punctuation: Chinese characters, and the words between them."""
    words = need("nltk", "text").word_tokenize
    # What is split at is kept: every other part is a Chinese character.
    parts = _CHINESE_CHARACTER.split(remove_punctuation(text))
    return [token for i, part in enumerate(parts) for token in ([part] if i % 2 else words(part, preserve_line=True))]


def _f1(shared: int, predicted: int, gold: int) -> float:
    """Harmonic mean of precision and recall, from numbers of tokens; 0 where no token is shared, even of none."""
    return 2 * shared / (predicted + gold) if shared else 0.0
