"""Metrics of translations, which sacrebleu counts per prediction, and their scores of summed counts.

Options, defaults and scales are those of the modules of `evaluate`. sacrebleu is imported when a metric first counts.
"""

import abc
import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from .base import LATER, need
from .text import TextMetric, Tokenizer, check_tokenizer


@dataclass(frozen=True)
class SacrebleuMetric(TextMetric):
    """A metric that sacrebleu counts."""

    libraries: ClassVar[tuple[str, ...]] = ("sacrebleu",)

    @property
    @abc.abstractmethod
    def scorer(self) -> Any:
        """The metric of sacrebleu."""

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        # Streams, the first references of all and so on; None stands for a reference that there is not.
        streams = list(itertools.zip_longest(*references))
        return self.scorer._extract_corpus_statistics(predictions, streams)


@functools.cache
def tokenizer_13a() -> Tokenizer:
    """What splits a text into tokens as WMT's mteval-v13a does."""
    tokenize = need("sacrebleu", "text").BLEU().tokenizer
    return lambda text: tokenize(text).split()


def ngrams_of(tokens: Sequence[str], shortest: int, longest: int) -> "Counter[tuple[str, ...]]":
    """How often each run of `shortest` to `longest` tokens occurs."""
    tokens, ngrams = tuple(tokens), []
    for order in range(shortest, longest + 1):
        ngrams += [tokens[start : start + order] for start in range(len(tokens) - order + 1)]
    return Counter(ngrams)


@dataclass(frozen=True)
class Bleu(TextMetric):
    """BLEU of `evaluate`, in [0, 1]: that of TensorFlow NMT, of tokens 13a.

    The shortest reference's length counts. Without smoothing the score is 0 where any precision is. Where predictions
    have no token the score is 0, and nan where references have none either; `evaluate` fails if either has none.

    Statistics: [N, 2 + 2 max_order], tokens of the prediction and of its shortest reference, then matches and n-grams
    of each order.

    Args:
        max_order: the longest n-grams.
        smooth: adds 1 to the matches and to the n-grams of each order.
        tokenizer: a function from a text to its tokens, in place of 13a: `list`, of characters, for scripts without
            spaces.
    """

    name: ClassVar[str] = "bleu"
    libraries: ClassVar[tuple[str, ...]] = ("sacrebleu",)
    max_order: int = 4
    smooth: bool = False
    tokenizer: Tokenizer | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        check_tokenizer(self.name, self.tokenizer)

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        split, rows = self.tokenizer or tokenizer_13a(), []
        for prediction, given in zip(predictions, references, strict=True):
            tokens, texts = split(prediction), [split(text) for text in given]
            wanted = ngrams_of(texts[0], 1, self.max_order)
            for text in texts[1:]:
                wanted |= ngrams_of(text, 1, self.max_order)
            matches = [0] * self.max_order
            for ngram, times in ngrams_of(tokens, 1, self.max_order).items():
                if ngram in wanted:
                    matches[len(ngram) - 1] += min(times, wanted[ngram])
            number = [max(0, len(tokens) - shorter) for shorter in range(self.max_order)]
            rows.append([len(tokens), min(map(len, texts)), *matches, *number])
        return rows

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        matches, ngrams = sums[..., 2:].chunk(2, dim=-1)
        precision = (matches + 1) / (ngrams + 1) if self.smooth else matches / ngrams.clamp(min=1)
        return _brevity_penalty(sums) * precision.log().mean(-1).exp()


@dataclass(frozen=True)
class SacreBleu(SacrebleuMetric):
    """BLEU of sacrebleu, in [0, 100]; 0 where nothing matches.

    Equal to `sacrebleu.BLEU.corpus_score`. Statistics: [N, 10], tokens of the prediction and of the reference of
    closest length, then matches and n-grams of orders 1 to 4.

    Args:
        smooth_method: what an order without matches counts for: nothing ("none"), `smooth_value` matches ("floor"), 1/2
            of a match, the next such order 1/4, and so on ("exp"); or `smooth_value` is added to the matches and to the
            n-grams of orders 2 to 4 ("add-k").
        smooth_value: 0.1 for "floor" and 1 for "add-k" by default.
        force: no warning about predictions that look tokenized.
        lowercase: ignores case.
        tokenize: a tokenizer of sacrebleu; "13a" by default.
        use_effective_order: leaves out orders that predictions are too short for.
    """

    name: ClassVar[str] = "sacrebleu"
    evaluate_key: ClassVar[str] = "score"
    smooth_values: ClassVar[dict[str, float | None]] = {"none": None, "floor": 0.1, "add-k": 1.0, "exp": None}

    smooth_method: Literal["none", "floor", "add-k", "exp"] = "exp"
    smooth_value: float | None = None
    force: bool = False
    lowercase: bool = False
    tokenize: str | None = None
    use_effective_order: bool = False

    def __post_init__(self) -> None:
        if self.smooth_method not in self.smooth_values:
            known = ", ".join(self.smooth_values)
            raise ValueError(f"{self.name}: smooth_method is one of {known}, but got {self.smooth_method!r}.")

    @functools.cached_property
    def scorer(self) -> Any:
        sacrebleu = need("sacrebleu", "text")
        if self.tokenize not in {None, *sacrebleu.BLEU.TOKENIZERS}:
            known = ", ".join(sacrebleu.BLEU.TOKENIZERS)
            raise ValueError(f"{self.name}: tokenize is one of {known}, but got {self.tokenize!r}.")
        options = {key: value for key, value in self.options.items() if key != "use_effective_order"}
        return sacrebleu.BLEU(**options, effective_order=self.use_effective_order)

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        matches, ngrams = sums[..., 2:].chunk(2, dim=-1)
        any_match = (matches > 0).any(-1)
        usual = self.smooth_values[self.smooth_method] or 0.0
        value = usual if self.smooth_value is None else self.smooth_value
        if self.smooth_method == "add-k":
            added = value * (torch.arange(matches.shape[-1], device=sums.device) > 0).to(sums)
            matches, ngrams = matches + added, ngrams + added
        present = ngrams > 0
        missed = present & (matches == 0)
        if self.smooth_method == "exp":
            matches = torch.where(missed, 0.5 ** missed.cumsum(-1), matches)
        elif self.smooth_method == "floor":
            matches = torch.where(missed, value, matches)
        logs = torch.where(present, (matches / ngrams).log(), 0.0 if self.use_effective_order else -torch.inf)
        orders = present.sum(-1) if self.use_effective_order else present.shape[-1]
        return torch.where(any_match, 100 * _brevity_penalty(sums) * (logs.sum(-1) / orders).exp(), 0.0)


@dataclass(frozen=True)
class GoogleBleu(TextMetric):
    """GLEU (Wu et al. 2016, arXiv:1609.08144), of evaluate, in [0, 1]: the lesser of n-gram precision and recall.

    Matching n-grams of all orders, divided by those of the prediction or of its reference, whichever are more; of
    several references the one that gives most. Equal to `nltk.translate.gleu_score.corpus_gleu`, of tokens 13a; 0
    where there are no n-grams. Statistics: [N, 2], matches and n-grams.

    Args:
        tokenizer: a function from a text to its tokens, in place of 13a.
        min_len, max_len: the shortest and the longest n-grams.
    """

    name: ClassVar[str] = "google_bleu"
    libraries: ClassVar[tuple[str, ...]] = ("sacrebleu",)
    tokenizer: Tokenizer | None = None
    min_len: int = 1
    max_len: int = 4

    def __post_init__(self) -> None:
        check_tokenizer(self.name, self.tokenizer)
        if not 1 <= self.min_len <= self.max_len:
            raise ValueError(
                f"{self.name}: min_len is 1 or more, max_len that or more, but got {self.min_len} and {self.max_len}."
            )

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        split, rows = self.tokenizer or tokenizer_13a(), []
        for prediction, given in zip(predictions, references, strict=True):
            found = ngrams_of(split(prediction), self.min_len, self.max_len)
            ways = [(0, 0)]
            for text in given:
                wanted = ngrams_of(split(text), self.min_len, self.max_len)
                ways.append(((found & wanted).total(), max(found.total(), wanted.total())))
            # The first of equally good ones, as in NLTK, where those without n-grams are passed over.
            rows.append(max(ways, key=lambda way: (way[1] > 0, way[0] / max(1, way[1]))))
        return rows

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        matches, ngrams = sums.unbind(-1)
        return matches / ngrams.clamp(min=1)


def _brevity_penalty(sums: torch.Tensor) -> torch.Tensor:
    """Of the lengths of predictions and references, the first two statistics of BLEU."""
    return (1 - sums[..., 1] / sums[..., 0]).clamp(max=0).exp()


@dataclass(frozen=True)
class ChrF(SacrebleuMetric):
    """chrF, the F-score of character n-grams, in [0, 100]; with word_order=2 it is chrF++. 0 where nothing matches.

    Equal to `sacrebleu.CHRF.corpus_score`. Statistics: [N, 3 (char_order + word_order)], n-grams of the prediction, of
    its best reference, and matches, order by order.

    Args:
        char_order: the longest n-grams of characters.
        word_order: the longest n-grams of words.
        beta: the weight of recall.
        lowercase: ignores case.
        whitespace: counts whitespace as characters.
        eps_smoothing: averages the F-scores of all orders, as NLTK and Moses do (an epsilon of 1e-16 is 0 here);
            otherwise precision and recall are averaged over those that predictions and references are long enough for.
    """

    name: ClassVar[str] = "chrf"
    evaluate_key: ClassVar[str] = "score"

    char_order: int = 6
    word_order: int = 0
    beta: int = 2
    lowercase: bool = False
    whitespace: bool = False
    eps_smoothing: bool = False

    @functools.cached_property
    def scorer(self) -> Any:
        return need("sacrebleu", "text").CHRF(**self.options)

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        predicted, wanted, matches = sums.unflatten(-1, (-1, 3)).unbind(-1)
        # Both are 0 in orders that either side is too short for, as nothing matches there.
        precision, recall = matches / predicted.clamp(min=1), matches / wanted.clamp(min=1)
        if not self.eps_smoothing:
            orders = ((predicted > 0) & (wanted > 0)).sum(-1, keepdim=True).clamp(min=1)
            precision, recall = (ratio.sum(-1, keepdim=True) / orders for ratio in (precision, recall))
        weighted = self.beta**2 * precision + recall
        f_scores = torch.where(weighted > 0, (1 + self.beta**2) * precision * recall / weighted, 0.0)
        return 100 * f_scores.mean(-1)


@dataclass(frozen=True)
class TranslationEditRate(SacrebleuMetric):
    """Translation edit rate: edits, shifts of words among them, per 100 words of the references.

    Equal to `sacrebleu.TER.corpus_score`: 100 for predictions of references without a word, 0 where both have none.
    Statistics: [N, 2], the fewest edits to any reference, and the mean length of the references in words.

    Args:
        normalized: tokenizes first.
        ignore_punct: removes punctuation.
        support_zh_ja_chars: the two above know Chinese and Japanese as well.
        case_sensitive: does not ignore case.
    """

    name: ClassVar[str] = "ter"
    higher_is_better: ClassVar[bool] = False
    evaluate_key: ClassVar[str] = "score"

    normalized: bool = False
    ignore_punct: bool = False
    support_zh_ja_chars: bool = False
    case_sensitive: bool = False

    @functools.cached_property
    def scorer(self) -> Any:
        return need("sacrebleu", "text").TER(
            normalized=self.normalized,
            no_punct=self.ignore_punct,
            asian_support=self.support_zh_ja_chars,
            case_sensitive=self.case_sensitive,
        )

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        edits, words = sums.unbind(-1)
        return 100 * torch.where(words > 0, edits / words, (edits > 0).double())
