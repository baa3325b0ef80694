"""English to Romanian (RO-STS) with a small transformer from scratch: data, tokenizer and model.

There are 10,327 pairs of captions, headlines and sentences of forums, a third of Multi30k's. The base learns them in 30
epochs, about as many steps as Multi30k's takes for ten; compared runs go on from it.
"""

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import translation
from pairs import Pair
from task import STAGES, Base, base_folder, data_folder
from torch import nn
from transformers import DataCollatorForSeq2Seq, MarianMTModel, PreTrainedTokenizerFast

from hf_reloss import SurrogateForTokens, load_metric

LONGEST = 80
"""In tokens; what is longer is cut."""

HALVES = {"dev": slice(0, None, 2), "test": slice(1, None, 2)}
"""Of the 2,856 pairs of dev_rosts.jsonl.gz, those that anything is chosen on, and those that are reported."""


@functools.cache
def pairs(part: str) -> list[dict[str, str]]:
    """Sentence pairs with the fields en and ro."""
    file = "dev" if part in HALVES else part
    with gzip.open(data_folder() / "mt_en_ro" / f"{file}_rosts.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][HALVES.get(part, slice(None))]


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """4,000 byte-pair tokens of both languages, learned from the training sentences."""
    return translation.byte_pairs(pair[language] for pair in pairs("train") for language in ("en", "ro"))


def encoded(part: str) -> datasets.Dataset:
    """Token ids of English sentences and, as labels, of Romanian ones."""

    def ids(language: str) -> list[list[int]]:
        return tokenizer()([pair[language] for pair in pairs(part)], truncation=True, max_length=LONGEST)["input_ids"]

    return datasets.Dataset.from_dict({"input_ids": ids("en"), "labels": ids("ro")})


def references(part: str) -> list[str]:
    return [pair["ro"] for pair in pairs(part)]


def base() -> Path:
    """The folder of the base, which is trained if it is not there."""
    recipe = translation.RECIPE | {"num_train_epochs": 30, "learning_rate": 1e-3}
    options = {"data_collator": DataCollatorForSeq2Seq(tokenizer())}
    make = functools.partial(translation.make_autoregressive, tokenizer())
    return base_folder("romanian", Base(encoded("train"), make, recipe, options, translation.label_smoothing))


def written(model: nn.Module, data: datasets.Dataset, **options: Any) -> list[str]:
    """What a model generates."""
    return translation.written(model, data, tokenizer(), **options)


def pair() -> Pair:
    """BLEU of translations; the usual loss is label-smoothed."""
    load = functools.partial(MarianMTModel.from_pretrained, base() / f"stage_{STAGES[-1]}")
    return Pair(
        train=encoded("train"),
        development=encoded("dev"),
        test=None,
        make_model=load,
        recipe=translation.RECIPE | {"label_smoothing_factor": 0.1, "learning_rate": 2e-4},
        metric=load_metric("sacrebleu"),
        kind=SurrogateForTokens,
        options={"data_collator": DataCollatorForSeq2Seq(tokenizer(), load()), "processing_class": tokenizer()},
    )
