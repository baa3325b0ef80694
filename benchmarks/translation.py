"""Multi30k, English to German and back, with small transformers: data, tokenizer, models, and how they are scored.

A base is trained from scratch on label-smoothed cross-entropy; compared runs go on from it for equal numbers of steps,
on the loss that they are about. The validation examples are the data's own.
"""

import functools
import gzip
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from task import STAGES, Base, Task, base_folder, data_folder, recorded_stages
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import DataCollatorForSeq2Seq, MarianConfig, MarianMTModel, PreTrainedTokenizerFast

from hf_reloss import SurrogateForTokens, load_metric, record_predictions

sys.path.append(str(Path(__file__).parents[1] / "trainers"))
from bag_of_ngrams import bag_of_ngrams_loss  # the programs' own loss and model
from nat import NatConfig, NatForTranslation, token_cross_entropy

SIZES = {"d_model": 160, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.1, "pad_token_id": 0, "eos_token_id": 2}

GREEDY = {"num_beams": 1, "max_length": 80}

RECIPE = {
    "per_device_train_batch_size": 64,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "train_sampling_strategy": "group_by_length",
}


@functools.cache
def pairs(part: str) -> list[dict[str, str]]:
    """Sentence pairs with the fields en and de."""
    with gzip.open(data_folder() / "multi30k_en_de" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """4,000 byte-pair tokens of both languages, learned from the training sentences."""
    return byte_pairs(pair[language] for pair in pairs("train") for language in ("en", "de"))


def byte_pairs(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of 4,000 byte-pair tokens, learned from texts."""
    tokens = Tokenizer(models.BPE(unk_token="<unk>"))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "<unk>", "</s>"]
    tokens.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4000, special_tokens=special, show_progress=False))
    tokens.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def encoded(part: str, target: str = "de") -> datasets.Dataset:
    """Token ids of the sentences of one language and, as labels, of those of the other, `target`."""

    def ids(language: str) -> list[list[int]]:
        return tokenizer()([pair[language] for pair in pairs(part)], truncation=True, max_length=80)["input_ids"]

    source = "de" if target == "en" else "en"
    return datasets.Dataset.from_dict({"input_ids": ids(source), "labels": ids(target)})


def references(part: str, target: str = "de") -> list[str]:
    return [pair[target] for pair in pairs(part)]


def make_nat() -> NatForTranslation:
    return NatForTranslation(
        NatConfig(vocab_size=len(tokenizer()), ffn_dim=480, num_attention_heads=4, max_position_embeddings=96, **SIZES)
    )


def make_autoregressive(tokens: PreTrainedTokenizerFast | None = None) -> MarianMTModel:
    """An encoder-decoder for the words of a tokenizer, by default that of Multi30k."""
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    feed_forward = dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 480)
    config: dict[str, Any] = SIZES | heads | feed_forward
    return MarianMTModel(
        MarianConfig(
            vocab_size=len(tokens or tokenizer()), max_position_embeddings=128, decoder_start_token_id=0,
            bos_token_id=None, forced_eos_token_id=None, scale_embedding=True, num_beams=1, **config,
        )
    )  # fmt: skip


def label_smoothing(outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy with 0.1 of the probability spread over all tokens, what translators are usually trained on."""
    return F.cross_entropy(outputs["logits"].flatten(0, 1), inputs["labels"].flatten(), label_smoothing=0.1)


def smoothed_nat(folder: Path) -> NatForTranslation:
    """A trained model; its own loss is label-smoothed."""
    model = NatForTranslation.from_pretrained(folder)
    model.token_loss = functools.partial(token_cross_entropy, label_smoothing=0.1)
    return model


def bag_of_ngrams(outputs: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """BoN-L1 (Shao et al. 2020)."""
    return bag_of_ngrams_loss(outputs["logits"], inputs["labels"])


def written(
    model: nn.Module, data: datasets.Dataset, tokens: PreTrainedTokenizerFast | None = None, **options: Any
) -> list[str]:
    """What a model generates, with a tokenizer of its own or that of Multi30k."""
    model.eval()
    tokens = tokens or tokenizer()
    collator = DataCollatorForSeq2Seq(tokens)
    order = sorted(range(len(data)), key=lambda row: len(data[row]["input_ids"]))
    texts = [""] * len(data)
    for first in range(0, len(order), 100):
        rows = order[first : first + 100]
        batch = collator([{"input_ids": data[row]["input_ids"]} for row in rows]).to(model.device)
        ids = model.generate(**batch, **options)
        for row, text in zip(rows, tokens.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[row] = text
    return texts


def score(model: nn.Module, part: str, target: str, metric: str, **options: Any) -> float:
    """A metric, in points, of what a model generates for a part of the data."""
    found = load_metric(metric).compute(written(model, encoded(part, target), **options), references(part, target))
    return found if metric == "sacrebleu" else 100 * found


def base(name: str, target: str) -> Path:
    make, epochs = (make_nat, 12) if name.endswith("nat") else (make_autoregressive, 10)
    return _base(name, target, make, epochs)


def long_base() -> Path:
    """A base from English to German that goes on from the autoregressive one for 20 more epochs."""
    first = base("multi30k_autoregressive", "de") / f"stage_{STAGES[-1]}"
    return _base("multi30k_autoregressive_long", "de", lambda: MarianMTModel.from_pretrained(first), 20)


def _base(name: str, target: str, make: Callable[[], nn.Module], epochs: int) -> Path:
    recipe = RECIPE | {"num_train_epochs": epochs, "learning_rate": 1e-3}
    options = {"data_collator": DataCollatorForSeq2Seq(tokenizer())}
    return base_folder(name, Base(encoded("train", target), make, recipe, options, label_smoothing))


def _task(
    name: str,
    kind: type[nn.Module],
    split: str,
    *,
    decoding: dict[str, dict[str, Any]],
    target: str = "de",
    metric: str = "sacrebleu",
    **options: Any,
) -> Task:
    """A task that goes on from a base.

    Args:
        name: its own, and that of its base.
        kind: of the model.
        decoding: what is reported, the metric by how sentences are generated.
        target: the language that it writes.
        metric: what it is trained for.
        options: of `Task`.
    """
    part = "test2016" if split == "test" else "dev"
    collator = DataCollatorForSeq2Seq(tokenizer())
    train = encoded("train", target)

    def record() -> datasets.Dataset:
        recorded = functools.partial(
            record_predictions, dataset=train, metric=metric, data_collator=collator, processing_class=tokenizer(),
            max_predictions=2_000,
        )  # fmt: skip
        return recorded_stages(base(name, target), kind.from_pretrained, recorded)

    return Task(
        train=train,
        evaluation=encoded(part, target),
        make_model=lambda: kind.from_pretrained(base(name, target) / "stage_1.0"),
        # For label smoothing, on validation, one seed: better than 1e-3 (not autoregressive) and 2e-4 (the other).
        recipe=RECIPE | {"max_steps": 400, "learning_rate": 5e-4},
        trainer_options={"data_collator": collator, "processing_class": tokenizer()},
        writing={"generation_max_length": GREEDY["max_length"]},
        metric=load_metric(metric),
        kind=SurrogateForTokens,
        score=lambda model: {name: score(model, part, target, metric, **how) for name, how in decoding.items()},
        record=record,
        learning={"group_size": 32},
        original="label_smoothing",
        **options,
    )


def multi30k_nat(split: str) -> Task:
    """A non-autoregressive transformer of 2 + 2 layers, which predicts its lengths."""
    return _task(
        "multi30k_nat",
        NatForTranslation,
        split,
        decoding={"bleu": {}},
        structure={"reach": 4},
        baselines={"label_smoothing": label_smoothing, "bag_of_ngrams": bag_of_ngrams},
        losses=("label_smoothing", "bag_of_ngrams", "bag_of_ngrams_reloss", "reloss", "unlearned", "transferred"),
        card="bleu",
    )


def multi30k_autoregressive(split: str) -> Task:
    """An encoder-decoder of 2 + 2 layers, which is scored greedily and with a beam of 4."""
    return _task(
        "multi30k_autoregressive",
        MarianMTModel,
        split,
        decoding={"bleu": GREEDY, "bleu_beam": GREEDY | {"num_beams": 4}},
        baselines={"label_smoothing": label_smoothing},
        losses=("label_smoothing", "reloss", "unlearned", "label_smoothing_reloss", "label_smoothing_unlearned"),
    )


def multi30k_de_en(split: str) -> Task:
    """An encoder-decoder of 2 + 2 layers from German to English, for ROUGE-L, which is made for English."""
    return _task(
        "multi30k_de_en",
        MarianMTModel,
        split,
        decoding={"rougeL": GREEDY},
        target="en",
        metric="rougeL",
        baselines={"label_smoothing": label_smoothing},
        losses=("label_smoothing", "label_smoothing_reloss", "label_smoothing_unlearned"),
    )


def multi30k_de_en_nat(split: str) -> Task:
    """A non-autoregressive transformer of 2 + 2 layers from German to English, for ROUGE-L."""
    return _task(
        "multi30k_de_en_nat",
        NatForTranslation,
        split,
        decoding={"rougeL": {}},
        target="en",
        metric="rougeL",
        structure={"reach": 4},
        baselines={"label_smoothing": label_smoothing},
        losses=("label_smoothing", "transferred", "unlearned"),
        card="rougeL",
    )


TASKS = (multi30k_nat, multi30k_autoregressive, multi30k_de_en, multi30k_de_en_nat)
