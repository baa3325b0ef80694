"""METEOR: words that match a reference as they are, by their stems or as synonyms, and in how few pieces."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from .base import need
from .text import TextMetric, Tokenizer, check_tokenizer


@dataclass(frozen=True)
class Meteor(TextMetric):
    """Mean METEOR of predictions (Banerjee and Lavie 2005), in [0, 1], of several references the best.

    Equal to `nltk.translate.meteor_score.meteor_score` of each prediction, as evaluate's; nan for no predictions. Each
    is scored once, however many groups it is drawn into. Statistics: [N, 2], the score and 1.

    NLTK's data have to be there: `nltk.download("wordnet")` and `nltk.download("punkt_tab")`.

    Args:
        alpha: the weight of recall in their harmonic mean, 1 - alpha being that of precision.
        beta, gamma: a score is reduced by gamma (pieces / matches) ** beta, the pieces being runs of words that match
            in the same order.
        tokenizer: a function from a text to its words; by default `nltk.word_tokenize`, which wants the data punkt_tab.
        synonyms: whether words that share a synset of WordNet match, which wants the data wordnet.
    """

    name: ClassVar[str] = "meteor"
    libraries: ClassVar[tuple[str, ...]] = ("nltk",)
    alpha: float = 0.9
    beta: float = 3.0
    gamma: float = 0.5
    tokenizer: Tokenizer | None = None
    synonyms: bool = True

    def __post_init__(self) -> None:
        check_tokenizer(self.name, self.tokenizer)

    @functools.cached_property
    def _words(self) -> dict[str, Any]:
        """What tells words of one meaning, as NLTK takes it; each word is looked up once."""
        stem = need("nltk.stem.porter", "text").PorterStemmer().stem
        synsets = need("nltk.corpus", "text").wordnet.synsets if self.synonyms else lambda word: ()
        return {
            "stemmer": SimpleNamespace(stem=functools.cache(stem)),
            "wordnet": SimpleNamespace(synsets=functools.cache(synsets)),
        }

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        score = need("nltk.translate.meteor_score", "text").meteor_score
        split = self.tokenizer or need("nltk", "text").word_tokenize
        try:
            options = self._words | {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
            return [
                (score([split(text) for text in given], split(prediction), **options), 1)
                for prediction, given in zip(predictions, references, strict=True)
            ]
        except LookupError as error:
            raise LookupError(
                f"{self.name} wants data of NLTK, which are not on this machine: nltk.download('wordnet') and "
                "nltk.download('punkt_tab'). Without them it counts synonyms=False, tokenizer=str.split, for another "
                "score than others report."
            ) from error

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]
