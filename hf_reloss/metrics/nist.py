"""NIST, which weighs n-grams by how rare they are in the references."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from xml.sax.saxutils import unescape

from .base import GroupwiseMetric, need
from .text import StringMetric, Tokenizer, check_tokenizer

ENTITIES = {"&apos;": "'", "&quot;": '"', "&#124;": "|", "&#91;": "[", "&#93;": "]"}
"""What stands for characters in texts, beside those of XML."""


@dataclass(frozen=True)
class NistMt(StringMetric, GroupwiseMetric):
    """NIST (Doddington 2002): the information of the n-grams that match, per n-gram, for all orders; 0 and up.

    Equal to `nltk.translate.nist_score.corpus_nist`, as evaluate's, which fails where no prediction is as long as an
    order: that counts for 0 here. What an n-gram is worth is counted in all references of a group, so that the score is
    not a sum over predictions, and is called group by group. 0 where predictions or references have no tokens.

    Args:
        n: the longest n-grams.
        lowercase: ignores case, where the language is western.
        western_lang: splits off punctuation, as in languages of the West.
        tokenizer: a function from a text to its tokens, in place of NIST's, which the two above are of.
    """

    name: ClassVar[str] = "nist_mt"
    libraries: ClassVar[tuple[str, ...]] = ("nltk", "sacrebleu")
    n: int = 5
    lowercase: bool = False
    western_lang: bool = True
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        check_tokenizer(self.name, self.tokenizer)
        if self.n < 1:
            raise ValueError(f"{self.name}: n is the length of the longest n-grams, 1 or more, but got {self.n}.")

    def read(self, predictions: Any, references: Any) -> tuple[Any, Any]:
        """The tokens of predictions and references, which are split once. Raises what `compute` does."""
        predictions, references = super().read(predictions, references)
        split = self.tokenizer or self._tokens
        return [split(text) for text in predictions], [[split(text) for text in given] for given in references]

    def for_evaluate(self, predictions: Any, references: Any) -> dict[str, Any]:
        predictions, references = super().read(predictions, references)
        return {"predictions": predictions, "references": references}

    def score_one(self, predictions: Any, references: Any) -> float:
        longest = max(map(len, predictions), default=0)
        if longest == 0 or not any(text for given in references for text in given):
            return 0.0 if len(predictions) else math.nan
        corpus_nist = need("nltk.translate.nist_score", "text").corpus_nist
        try:
            return float(corpus_nist(references, predictions, n=min(self.n, longest)))
        except ZeroDivisionError:  # of the references that match best, none has a token
            return 0.0

    def _tokens(self, text: str) -> Sequence[str]:
        text = unescape(text.replace("<skipped>", ""), ENTITIES).replace("\u2028", " ")
        if not self.western_lang:
            return text.split()
        split = need("sacrebleu.tokenizers.tokenizer_re", "text").TokenizerRegexp()  # the expressions of mteval
        return split(f" {text.lower() if self.lowercase else text} ").split()
