"""One-sentence summaries of abstracts (SciTLDR-A) with a small transformer from scratch: data, tokenizer and model.

There are 1,992 abstracts with summaries and no model that was pretrained on text, so the base first learns to copy: of
every end of an abstract, the sentence that says most of the rest. Then it learns the summaries themselves, on
label-smoothed cross-entropy, for ten epochs. Compared runs go on from it.
"""

import collections
import functools
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import translation
from pairs import Pair
from task import STAGES, Base, base_folder, data_folder
from torch import nn
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from hf_reloss import SurrogateForTokens, load_metric

LONGEST_SOURCE, LONGEST_SUMMARY = 256, 60
"""In tokens; what is longer is cut."""

RECIPE = translation.RECIPE | {"per_device_train_batch_size": 32}


HALVES = {"dev": slice(0, 310), "test": slice(310, None)}
"""Of the 619 papers of dev.jsonl.gz, those that anything is chosen on, and those that are reported."""


@functools.cache
def papers(part: str) -> list[dict[str, Any]]:
    """Abstracts, as the sentences `source`, with their reference `summaries`; one of each in the training data."""
    file = "dev" if part in HALVES else part
    with gzip.open(data_folder() / "scitldr_a" / f"{file}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][HALVES.get(part, slice(None))]


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """4,000 byte-pair tokens, learned from the training data."""
    return translation.byte_pairs(text for paper in papers("train") for text in (*paper["source"], *paper["summaries"]))


def _encoded(sources: list[str], targets: list[str]) -> datasets.Dataset:
    ids = tokenizer()(sources, truncation=True, max_length=LONGEST_SOURCE)["input_ids"]
    labels = tokenizer()(targets, truncation=True, max_length=LONGEST_SUMMARY)["input_ids"]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})


def encoded(part: str) -> datasets.Dataset:
    """Token ids of abstracts and, as labels, of their first summaries."""
    return _encoded(
        [" ".join(paper["source"]) for paper in papers(part)], [paper["summaries"][0] for paper in papers(part)]
    )


def references(part: str) -> list[list[str]]:
    return [paper["summaries"] for paper in papers(part)]


def copying() -> datasets.Dataset:
    """Of the training abstracts, from each of their sentences on, the sentence that says most of the others; and each
    sentence by itself."""
    rests = [paper["source"][first:] for paper in papers("train") for first in range(len(paper["source"]))]
    sentences = [rest[0] for rest in rests]
    return _encoded([" ".join(rest) for rest in rests] + sentences, [_most_telling(rest) for rest in rests] + sentences)


def _most_telling(sentences: list[str]) -> str:
    """Of some sentences the one with the highest F1 of its words against those of all others."""
    words = [collections.Counter(sentence.lower().split()) for sentence in sentences]
    everything = sum(words, collections.Counter())

    def score(place: int) -> float:
        others = everything - words[place]
        return 2 * (words[place] & others).total() / max(words[place].total() + others.total(), 1)

    return sentences[max(range(len(sentences)), key=score)]


def make_model() -> T5ForConditionalGeneration:
    """A transformer of 2 + 2 layers that is ready to copy.

    Each head of the decoder looks for its token in the source and passes on what is found there, and one head of the
    encoder adds to each token the one before it (after Trockman and Kolter 2023, Mimetic Initialization of
    Self-Attention Layers, arXiv:2305.09828). From common random weights copying is not learned in as many steps.
    """
    config = T5Config(
        vocab_size=len(tokenizer()), d_model=160, d_kv=40, d_ff=480, num_layers=2, num_decoder_layers=2, num_heads=4,
        dropout_rate=0.1, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0,
    )  # fmt: skip
    model, same, part = T5ForConditionalGeneration(config), torch.eye(160), torch.eye(40, 160)
    with torch.no_grad():
        for block in model.decoder.block:
            found = block.layer[1].EncDecAttention
            for weights, scale in ((found.q, 0.3), (found.k, 0.3), (found.v, 1.0), (found.o, 1.0)):
                weights.weight.copy_(scale * same)
        first = model.encoder.block[0].layer[0].SelfAttention
        first.relative_attention_bias.weight.zero_()
        first.relative_attention_bias.weight[1, 0] = 6.0  # of one place before, for the first head
        first.v.weight[:40], first.o.weight[:, :40] = part, 2 * part.T
    return model


def base() -> Path:
    """The folder of the base, which is trained if it is not there."""
    copies = _base("scitldr_copies", copying(), make_model, {"num_train_epochs": 2, "learning_rate": 2e-3})
    load = functools.partial(T5ForConditionalGeneration.from_pretrained, copies / f"stage_{STAGES[-1]}")
    return _base("scitldr", encoded("train"), load, {"num_train_epochs": 10, "learning_rate": 1e-3})


def _base(name: str, train: datasets.Dataset, make: Callable[[], nn.Module], recipe: dict[str, Any]) -> Path:
    options = {"data_collator": DataCollatorForSeq2Seq(tokenizer())}
    return base_folder(name, Base(train, make, RECIPE | recipe, options, translation.label_smoothing))


def written(model: nn.Module, data: datasets.Dataset, **options: Any) -> list[str]:
    """What a model generates."""
    return translation.written(model, data, tokenizer(), **options)


def pair() -> Pair:
    """ROUGE-L of summaries; the usual loss is label-smoothed."""
    load = functools.partial(T5ForConditionalGeneration.from_pretrained, base() / f"stage_{STAGES[-1]}")
    return Pair(
        train=encoded("train"),
        development=encoded("dev"),
        test=None,
        make_model=load,
        recipe=RECIPE | {"label_smoothing_factor": 0.1, "learning_rate": 5e-4},
        metric=load_metric("rougeL"),
        kind=SurrogateForTokens,
        options={"data_collator": DataCollatorForSeq2Seq(tokenizer(), load()), "processing_class": tokenizer()},
    )
