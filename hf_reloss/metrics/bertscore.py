"""BERTScore: how near each token of a text comes to one of its reference, by an encoder's embeddings."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from .text import TextMetric

LONGEST = 512
"""Tokens of a text that are read, where the tokenizer does not say how many its model takes."""


@dataclass(frozen=True)
class BertScore(TextMetric):
    """Mean F1 of BERTScore (Zhang et al. 2020, arXiv:1904.09675), of several references the best; nan for no texts.

    Each token of the prediction goes with the token of the reference of the highest cosine, which makes precision, and
    the other way round, which makes recall: as bert_score without idf and without a baseline, where special tokens are
    found, but do not count. 0 where a text has no tokens. A pair of texts is scored once, in batches of about one
    length, however many groups it is drawn into. Statistics: [N, 2], the score and 1.

    Args:
        model: any encoder of transformers (of an encoder-decoder, that half), a folder or a name on the Hub.
        num_layers: the layer of the embeddings; by default the last one.
        batch_size: how many pairs of texts are read at a time.
        device: of the encoder; by default a GPU if there is one.
    """

    name: ClassVar[str] = "bertscore"
    evaluate_key: ClassVar[str] = "f1"
    libraries: ClassVar[tuple[str, ...]] = ("transformers",)
    place: ClassVar[int] = 2
    """Of the score among precision, recall and F1."""

    model: str = ""
    num_layers: int | None = None
    batch_size: int = 64
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError(
                f"{self.name} wants an encoder: pass model=, a folder or a name on the Hub, such as "
                "model='microsoft/deberta-v3-base'."
            )

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        pairs = {(text, other) for text, given in zip(predictions, references, strict=True) for other in given}
        found = dict.fromkeys(pairs, 0.0)
        ordered = sorted(filter(_have_words, pairs), key=lambda pair: (len(pair[0]) + len(pair[1]), pair))
        starts: Any = range(0, len(ordered), self.batch_size)
        if len(starts) >= 16 and logging.is_progress_bar_enabled():
            starts = tqdm(starts, f"scoring {self.name}", leave=False, unit="batch")
        for start in starts:
            batch = ordered[start : start + self.batch_size]
            found |= zip(batch, self._of_pairs(batch)[self.place].tolist(), strict=True)
        return [
            (max(found[text, other] for other in given), 1)
            for text, given in zip(predictions, references, strict=True)
        ]  # fmt: skip

    def _of_pairs(self, pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Precision, recall and F1 [n] float64 of n pairs of a prediction and a reference."""
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        of_predictions, of_references = (
            _embedded(texts, self.model, self.num_layers, device) for texts in zip(*pairs, strict=True)
        )
        cosines = of_predictions.vectors @ of_references.vectors.transpose(-1, -2)
        cosines = cosines.masked_fill(~of_references.exist[:, None, :], -torch.inf)
        precision = of_predictions.mean(cosines.amax(-1))
        cosines = cosines.masked_fill(~of_predictions.exist[:, :, None], -torch.inf)
        recall = of_references.mean(cosines.amax(-2))
        either = of_predictions.counts.any(-1) & of_references.counts.any(-1)
        precision, recall = (torch.where(either, score, 0.0) for score in (precision, recall))
        both = precision + recall
        return precision, recall, torch.where(both != 0, 2 * precision * recall / both, 0.0)

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class BertScorePrecision(BertScore):
    """Mean precision of BERTScore. As of `BertScore` otherwise."""

    name: ClassVar[str] = "bertscore_precision"
    evaluate_module: ClassVar[str] = "bertscore"
    evaluate_key: ClassVar[str] = "precision"
    place: ClassVar[int] = 0


@dataclass(frozen=True)
class BertScoreRecall(BertScore):
    """Mean recall of BERTScore. As of `BertScore` otherwise."""

    name: ClassVar[str] = "bertscore_recall"
    evaluate_module: ClassVar[str] = "bertscore"
    evaluate_key: ClassVar[str] = "recall"
    place: ClassVar[int] = 1


@dataclass(frozen=True)
class _Embedded:
    """Texts: unit vectors [n, T, D] of their tokens, which of them exist and which of these count, [n, T] bool."""

    vectors: torch.Tensor
    exist: torch.Tensor
    counts: torch.Tensor

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean [n] float64 of values [n, T] of the tokens that count."""
        total = values.double().masked_fill(~self.counts, 0.0).sum(-1)
        return total / self.counts.sum(-1).clamp(min=1)


def _have_words(texts: tuple[str, str]) -> bool:
    return all(text.strip() for text in texts)


@torch.no_grad()
def _embedded(texts: Sequence[str], model: str, layer: int | None, device: str) -> _Embedded:
    encoder, tokenizer = _encoder(model, device)
    longest = tokenizer.model_max_length if tokenizer.model_max_length < 1e6 else LONGEST
    read = tokenizer(
        [text.strip() for text in texts],
        padding=True,
        truncation=True,
        max_length=longest,
        return_tensors="pt",
        return_special_tokens_mask=True,
    )
    special = read.pop("special_tokens_mask").bool().to(device)
    exist = read["attention_mask"].bool().to(device)
    states = encoder(**read.to(device), output_hidden_states=True).hidden_states
    if layer is not None and not 0 <= layer < len(states):
        raise ValueError(f"num_layers is a layer of {model}, 0 to {len(states) - 1}, but got {layer}.")
    vectors = F.normalize(states[-1 if layer is None else layer].float(), dim=-1)
    return _Embedded(vectors, exist, exist & ~special)


@functools.lru_cache(maxsize=2)
def _encoder(model: str, device: str) -> tuple[Any, Any]:
    """An encoder and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    loaded = AutoModel.from_pretrained(model)
    if loaded.config.is_encoder_decoder:
        loaded = loaded.get_encoder()
    return loaded.to(device).eval(), tokenizer
