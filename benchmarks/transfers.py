"""Tasks of several labels, and of grades: those that surrogates of hub_cards/ are learned from, and others to try them on.

Learned from is what MiniLM makes of texts (label_pairs.py, regression_pairs.py); tried on are networks that know nothing
of a text but which words are in it, and other labels: the kinds of slots in HWU64's sentences.
"""

import dataclasses
import functools
import re
from typing import Any

import torch
from intents import Rows, read_lines
from label_pairs import LabelHead, goemotions_macro_f1
from pairs import Pair, intent_rows
from regression_pairs import NumberHead, sick_kappa_of_scores
from sklearn.feature_extraction.text import TfidfVectorizer
from task import Task

WORDS = 2_000
"""How many words are known, the commonest of the training texts."""

PARTS = ("train", "dev", "test")

TRIED = ("unlearned", "transferred")


def task_of(pair: Pair, split: str, usual: str, **options: Any) -> Task:
    """A task of a pair, whose usual loss, the model's own, has a name; losses of groups take over after half of it."""
    metric = pair.metric
    return Task(
        train=pair.train,
        evaluation=pair.test if split == "test" else pair.development,
        make_model=pair.make_model,
        recipe={"per_device_eval_batch_size": 500} | pair.recipe,
        metric=metric,
        kind=pair.kind,
        # Several labels for each example are floats, for the usual loss.
        measures={metric.name: lambda outputs, labels: metric.compute(outputs, labels.long() if labels.dim() == 2 else labels)},
        original=usual,
        baselines={usual: lambda outputs, inputs: outputs["loss"]},
        warmup=0.5,
        **options,
    )


def with_features(pair: Pair, features: list[torch.Tensor], **changed: Any) -> Pair:
    """A pair with other features [n, width] of its examples: of train, development and test."""
    parts = (pair.train, pair.development, pair.test)
    rows = [Rows(of_part, part.labels) for of_part, part in zip(features, parts, strict=True)]
    return dataclasses.replace(pair, train=rows[0], development=rows[1], test=rows[2], **changed)


def words_in(texts: list[list[str]]) -> list[torch.Tensor]:
    """Which words are in each text of some parts, [n, WORDS] each: tf-idf as of the first part, about 1 where not 0."""
    counted = TfidfVectorizer(max_features=WORDS, token_pattern=r"\w+").fit(texts[0])
    return [4 * torch.from_numpy(counted.transform(part).toarray()).float() for part in texts]


def goemotions(split: str) -> Task:
    """GoEmotions, 28 emotions of 8,000 comments, on frozen MiniLM; macro-F1."""
    return task_of(goemotions_macro_f1(), split, "binary_cross_entropy")


def goemotions_words(split: str) -> Task:
    """The same, of which words are in a comment."""
    pair = goemotions_macro_f1()
    lengths = (len(pair.train), len(pair.development), len(pair.test))
    texts = [[row["text"] for row in read_lines("goemotions", part)[:n]] for part, n in zip(PARTS, lengths, strict=True)]
    model = functools.partial(LabelHead, 28, width=WORDS)
    pair = with_features(pair, words_in(texts), make_model=model, recipe=pair.recipe | {"learning_rate": 4e-3})
    return task_of(pair, split, "binary_cross_entropy", card="multilabel-f1", losses=("binary_cross_entropy", *TRIED))


def hwu64_slot_kinds(split: str) -> Task:
    """HWU64: which of 54 kinds of slots, as date or artist_name, a sentence has, on frozen MiniLM; macro-F1."""
    train, test = read_lines("hwu64", "train"), read_lines("hwu64", "test")
    parts = ([row for i, row in enumerate(train) if i % 8], train[::8], test)
    found = [[set(re.findall(r"\[\s*(\w+)\s*:", row["annotated"])) for row in part] for part in parts]
    kinds = sorted(set().union(*found[0], *found[1]))
    rows = [
        Rows(part.embeddings, torch.tensor([[float(kind in of_row) for kind in kinds] for of_row in of_part]))
        for part, of_part in zip(intent_rows("hwu64")[0], found, strict=True)
    ]
    pair = dataclasses.replace(
        goemotions_macro_f1(), train=rows[0], development=rows[1], test=rows[2],
        make_model=functools.partial(LabelHead, len(kinds)),
    )  # fmt: skip
    pair.recipe = pair.recipe | {"learning_rate": 3.2e-2}
    return task_of(pair, split, "binary_cross_entropy", card="multilabel-f1", losses=("binary_cross_entropy", *TRIED))


def sick_grades(split: str) -> Task:
    """SICK: how related two sentences are, 0 to 4, on frozen MiniLM; kappa with quadratic weights of rounded scores."""
    return task_of(sick_kappa_of_scores(), split, "mean_squared_error")


def sick_words(split: str) -> Task:
    """The same, of which words are in both sentences, and which in one."""
    pair = sick_kappa_of_scores()
    rows = [read_lines("sick", part) for part in PARTS]
    counted = words_in([[row[f"sentence{i}"] for row in part for i in (1, 2)] for part in rows])
    features = [torch.cat([(part[::2] - part[1::2]).abs(), part[::2] * part[1::2]], dim=-1) for part in counted]
    model = functools.partial(NumberHead, 1, width=2 * WORDS)
    pair = with_features(pair, features, make_model=model, recipe=pair.recipe | {"learning_rate": 2e-3})
    return task_of(pair, split, "mean_squared_error", card="quadratic-kappa", losses=("mean_squared_error", *TRIED))


def sick_linear(split: str) -> Task:
    """The same as `sick_grades` by one linear layer."""
    pair = sick_kappa_of_scores()
    pair = dataclasses.replace(pair, make_model=_linear, recipe=pair.recipe | {"learning_rate": 1.6e-2})
    return task_of(pair, split, "mean_squared_error", card="quadratic-kappa", losses=("mean_squared_error", *TRIED))


def _linear() -> NumberHead:
    model = NumberHead(1, width=768)
    model.layers = torch.nn.Sequential(torch.nn.Linear(768, 1))
    return model


def hwu64_slot_numbers(split: str) -> Task:
    """HWU64: how many slots a sentence has, 0 to 4 or more, on frozen MiniLM."""
    train, test = read_lines("hwu64", "train"), read_lines("hwu64", "test")
    parts = ([row for i, row in enumerate(train) if i % 8], train[::8], test)
    rows = [
        Rows(part.embeddings, torch.tensor([min(row["annotated"].count("["), 4.0) for row in of_part]))
        for part, of_part in zip(intent_rows("hwu64")[0], parts, strict=True)
    ]
    pair = sick_kappa_of_scores()
    pair = dataclasses.replace(
        pair, train=rows[0], development=rows[1], test=rows[2], make_model=functools.partial(NumberHead, 1),
        recipe=pair.recipe | {"learning_rate": 4e-3},
    )  # fmt: skip
    return task_of(pair, split, "mean_squared_error", card="quadratic-kappa", losses=("mean_squared_error", *TRIED))


TASKS = (goemotions, goemotions_words, hwu64_slot_kinds, sick_grades, sick_words, sick_linear, hwu64_slot_numbers)
