"""Pairs of data and metric of other tasks than classes, for benchmarks/promise.py: tags, answers, joints, texts."""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pose
import question_answering
import torch
import torch.nn.functional as F
import translation
from intents import read_lines
from pairs import Pair
from torch import nn
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    MarianMTModel,
    Trainer,
)

from hf_reloss import SurrogateForTokens, load_metric
from hf_reloss.losses.heatmaps import decode_heatmaps, labelled, squared_errors
from hf_reloss.surrogates.keypoints import SurrogateForKeypoints
from hf_reloss.surrogates.spans import SurrogateForSpans

LAYERS = 3
"""Of MiniLM, the lower half."""


def _slots(row: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The words of a sentence and their tags, from what stands in it as "[slot : its words]"."""
    words: list[str] = []
    tags: list[str] = []
    for slot, inside, outside in re.findall(r"\[\s*(\w+)\s*:\s*([^\]]*)\]|([^\[\]]+)", row["annotated"]):
        found = (inside or outside).split()
        words += found
        tags += [f"{'I' if i else 'B'}-{slot}" if slot else "O" for i in range(len(found))]
    return words, tags


def hwu64_slots() -> Pair:
    """HWU64, 54 kinds of slots in 2,000 sentences, tagged by the lower half of MiniLM; F1 of seqeval."""
    rows = {name: [_slots(row) for row in read_lines("hwu64", name)] for name in ("train", "test")}
    names = ["O", *sorted({tag for part in rows.values() for _, tags in part for tag in tags} - {"O"})]
    tokenizer = question_answering.tokenizer()

    def encoded(part: list[tuple[list[str], list[str]]]) -> datasets.Dataset:
        read = tokenizer([words for words, _ in part], is_split_into_words=True, truncation=True, max_length=48)
        labels = []
        for i, (_, tags) in enumerate(part):
            places = read.word_ids(i)
            begins = [place is not None and place != places[token - 1] for token, place in enumerate(places)]
            labels.append(
                [names.index(tags[place]) if first else -100 for place, first in zip(places, begins, strict=True)]
            )
        return datasets.Dataset.from_dict(dict(read) | {"labels": labels})

    metric, test = load_metric("seqeval", label_names=names), encoded(rows["test"])

    def score(trainer: Trainer) -> float:
        found = trainer.predict(test)
        return 100 * metric.compute(*_tags(np.asarray(found.predictions), np.asarray(found.label_ids), names))

    return Pair(
        train=encoded(rows["train"][:2_000]),
        development=encoded(rows["train"][2_000:3_000]),
        test=test,
        make_model=lambda: AutoModelForTokenClassification.from_pretrained(
            question_answering.checkpoint(), num_labels=len(names), num_hidden_layers=LAYERS, dtype=torch.float32
        ),
        recipe={
            "num_train_epochs": 3,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 100,
            "learning_rate": 5e-4,
            "warmup_steps": 0.1,
            "weight_decay": 0.01,
        },
        metric=metric,
        field_loss=_class_weights,
        kind=SurrogateForTokens,
        options={"processing_class": tokenizer, "data_collator": DataCollatorForTokenClassification(tokenizer)},
        score=score,
    )


def _class_weights(pair: Pair) -> Callable[..., torch.Tensor]:
    """Cross-entropy in which all tags of the training data weigh the same."""
    counts = torch.bincount(torch.cat([torch.tensor(row) for row in pair.train["labels"]]).clamp(min=-1) + 1)[1:]
    weights = counts.sum() / ((counts > 0).sum() * counts.clamp(min=1))

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits, every = outputs["logits"].flatten(0, 1), labels.flatten()
        known = torch.cat([weights, weights.new_ones(logits.shape[-1] - len(weights))]).to(logits)
        counted = every.clamp(min=0)
        losses = F.cross_entropy(logits, counted, reduction="none") * known[counted]
        return losses[every >= 0].mean()

    return loss


def _tags(logits: np.ndarray, labels: np.ndarray, names: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Tags that a model chose, and right ones, of the words of each sentence."""
    kept = labels != -100
    decided, right = (
        [[names[tag] for tag in row[keep]] for row, keep in zip(tags, kept, strict=True)]
        for tags in (logits.argmax(-1), labels)
    )
    return decided, right


def squad_f1() -> Pair:
    """SQuAD v1.1: 2,400 questions with short contexts, the lower half of MiniLM, two epochs."""
    train = question_answering.features("base", 128)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:2_400]
    return Pair(
        train=train.select(sorted(chosen.tolist())),
        development=question_answering.features("validation", 160),
        test=None,
        make_model=question_answering.small_model,
        recipe=question_answering.RECIPE
        | {"num_train_epochs": 2, "learning_rate": 3e-4, "bf16": False, "per_device_eval_batch_size": 50},
        metric=load_metric("squad_f1"),
        field_loss=None,  # Trainer hands compute_loss_func no positions of answers
        kind=SurrogateForSpans,
        options={"processing_class": question_answering.tokenizer(), "data_collator": question_answering.collator()},
        score=lambda trainer: question_answering.score(trainer.model, "test")["squad_f1"],
    )


def lsp_pck() -> Pair:
    """Leeds Sports Pose: 2,000 images of 64×64, a small network from scratch; PCK within a tenth."""
    everything, test = pose.bodies("train"), pose.bodies("dev")
    train, development = (
        pose.Bodies(everything.images[part], everything.labels[part], mirrored=part.start == 0)
        for part in (slice(0, 2_000), slice(4_000, 5_000))
    )
    metric = load_metric("pck", alpha=0.1)

    def score(trainer: Trainer) -> float:
        found = trainer.predict(test)
        heatmaps, labels = (torch.from_numpy(np.asarray(part)) for part in (found.predictions, found.label_ids))
        return 100 * metric.compute(decode_heatmaps(heatmaps), labels)

    return Pair(
        train=train,
        development=development,
        test=test,
        make_model=pose.make_model,
        recipe=pose.RECIPE,
        metric=metric,
        field_loss=_hardest_joints,
        kind=SurrogateForKeypoints,
        score=score,
    )


def _hardest_joints(pair: Pair) -> Callable[..., torch.Tensor]:
    """The squared errors of each body's seven worst joints (online hard keypoint mining, Chen et al. 2018)."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        points, counts = labelled(labels)
        errors = squared_errors(outputs["heatmaps"].float(), points, 1.0).masked_fill(~counts, 0.0)
        return errors.topk(7, dim=-1).values.mean()

    return loss


def _translation(
    make_model: Callable[[], nn.Module], decoding: dict[str, Any], *, recipe: dict[str, Any], **options: Any
) -> Pair:
    """Multi30k, English to German, from a model that has been trained on label-smoothed cross-entropy."""
    collator = DataCollatorForSeq2Seq(translation.tokenizer(), make_model())  # which makes decoder_input_ids
    return Pair(
        train=translation.encoded("train", "de"),
        development=translation.encoded("dev", "de"),
        test=None,
        make_model=make_model,
        recipe=translation.RECIPE | {"max_steps": 300, "per_device_eval_batch_size": 100} | recipe,
        metric=load_metric("sacrebleu"),
        kind=SurrogateForTokens,
        options={"data_collator": collator, "processing_class": translation.tokenizer()},
        score=lambda trainer: translation.score(trainer.model, "test2016", "de", "sacrebleu", **decoding),
        **options,
    )


def multi30k_nat() -> Pair:
    """BLEU of a non-autoregressive transformer of 2 + 2 layers; its usual loss is label-smoothed."""
    base = translation.base("multi30k_nat", "de")

    make_model = functools.partial(translation.smoothed_nat, base / "stage_1.0")
    return _translation(make_model, {}, recipe={"learning_rate": 1e-3}, field_loss=_bag_of_ngrams)


def _bag_of_ngrams(pair: Pair) -> Callable[..., torch.Tensor]:
    """BoN-L1 (Shao et al. 2020), with the model's own loss of lengths."""

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return translation.bag_of_ngrams(outputs, {"labels": labels}) + outputs["auxiliary_loss"]

    return loss


def multi30k_autoregressive() -> Pair:
    """BLEU, with a beam of 4, of an encoder-decoder of 2 + 2 layers; its usual loss is label-smoothed."""
    return _autoregressive(translation.base("multi30k_autoregressive", "de"), learning_rate=5e-4)


def multi30k_trained_longer() -> Pair:
    """The same, trained three times as long before; the learning rate was chosen on development data."""
    return _autoregressive(translation.long_base(), learning_rate=2e-4)


def _autoregressive(base: Path, learning_rate: float) -> Pair:
    return _translation(
        lambda: MarianMTModel.from_pretrained(base / "stage_1.0"),
        translation.GREEDY | {"num_beams": 4},
        recipe={"label_smoothing_factor": 0.1, "learning_rate": learning_rate},
        field_loss=None,
        share=0.5,
    )


TASK_PAIRS: dict[str, Callable[[], Pair]] = {
    made.__name__: made for made in (hwu64_slots, squad_f1, lsp_pck, multi30k_nat, multi30k_autoregressive)
}
"""All of these, by name."""
