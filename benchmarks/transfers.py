"""Tasks of several labels, and of one number: what surrogates of hub_cards/ are learned from and tried on.

They are learned from what MiniLM makes of texts (label_pairs.py, regression_pairs.py). They are tried on networks that
know nothing but which words there are, on a linear model, and on the slots of HWU64's sentences. Learning rates of
these are the best of 5e-4 to 3.2e-2 for the usual loss on development data, one seed.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import torch
from intents import Rows, read_lines
from label_pairs import LabelHead, goemotions_macro_f1
from pairs import Pair, intent_rows
from regression_pairs import NumberHead, sick_kappa_of_scores
from sklearn.feature_extraction.text import TfidfVectorizer
from task import Task
from torch import nn

WORDS = 2_000
"""How many words are known, the commonest of the training texts."""

SLOT = r"\[\s*(\w+)\s*:"
"""What begins one in a sentence of HWU64."""

USUAL = {"multilabel": "binary_cross_entropy", "regression": "mean_squared_error"}
"""What a model's own loss is called, by the task of the surrogates."""


def task_of(pair: Pair, split: str, card: str | None = None) -> Task:
    """The task of a pair. The usual loss is the model's own; losses of groups take over after half of a run.

    Args:
        pair: of data and a metric.
        split: test or validation.
        card: the surrogate of hub_cards/ that is tried on it, if any.
    """
    usual, metric = USUAL[pair.kind.task], pair.metric

    def measure(outputs: torch.Tensor, labels: torch.Tensor) -> float:
        # Several labels are floats, for the usual loss.
        return metric.compute(outputs, labels.long() if labels.dim() == 2 else labels)

    return Task(
        train=pair.train,
        evaluation=pair.test if split == "test" else pair.development,
        make_model=pair.make_model,
        recipe={"per_device_eval_batch_size": 500} | pair.recipe,
        metric=metric,
        kind=pair.kind,
        measures={metric.name: measure},
        original=usual,
        baselines={usual: lambda outputs, inputs: outputs["loss"]},
        warmup=0.5,
        losses=(usual, "unlearned", "reloss" if card is None else "transferred"),
        card=card,
    )


def changed(
    pair: Pair, make_model: Callable[[], nn.Module], learning_rate: float, parts: list[Rows] | None = None
) -> Pair:
    """A pair with another model, and maybe other rows of train, development and test."""
    rows = {} if parts is None else dict(zip(("train", "development", "test"), parts, strict=True))
    recipe = pair.recipe | {"learning_rate": learning_rate}
    return dataclasses.replace(pair, make_model=make_model, recipe=recipe, **rows)


def _words_in(texts: list[list[str]]) -> list[torch.Tensor]:
    """Which words are in the texts of train, development and test: [n, WORDS] each, tf-idf as of the first."""
    known = TfidfVectorizer(max_features=WORDS, token_pattern=r"\w+").fit(texts[0])
    return [4 * torch.from_numpy(known.transform(part).toarray()).float() for part in texts]  # about 1 where not 0


def _slots() -> tuple[list[Rows], list[list[list[str]]]]:
    """Embedded sentences of HWU64, and the kinds of slots in each: of train, development and test."""
    train, test = read_lines("hwu64", "train"), read_lines("hwu64", "test")
    parts = ([row for i, row in enumerate(train) if i % 8], train[::8], test)
    return intent_rows("hwu64")[0], [[re.findall(SLOT, row["annotated"]) for row in part] for part in parts]


def goemotions(split: str) -> Task:
    """GoEmotions, 28 emotions of 8,000 comments, on frozen MiniLM; macro-F1."""
    return task_of(goemotions_macro_f1(), split)


def goemotions_words(split: str) -> Task:
    """The same, of which words are in a comment."""
    pair = goemotions_macro_f1()
    rows = {"train": pair.train, "dev": pair.development, "test": pair.test}
    texts = [[row["text"] for row in read_lines("goemotions", part)[: len(of)]] for part, of in rows.items()]
    parts = [Rows(words, of.labels) for words, of in zip(_words_in(texts), rows.values(), strict=True)]
    names = parts[0].labels.shape[1]
    return task_of(changed(pair, functools.partial(LabelHead, names, width=WORDS), 4e-3, parts), split, "multilabel-f1")


def hwu64_slot_kinds(split: str) -> Task:
    """HWU64: which of 54 kinds of slots, as date or artist_name, a sentence has, on frozen MiniLM; macro-F1."""
    embedded, slots = _slots()
    kinds = sorted({kind for part in slots[:2] for of_row in part for kind in of_row})
    parts = [
        Rows(rows.embeddings, torch.tensor([[float(kind in of_row) for kind in kinds] for of_row in of_part]))
        for rows, of_part in zip(embedded, slots, strict=True)
    ]
    model = functools.partial(LabelHead, len(kinds))
    return task_of(changed(goemotions_macro_f1(), model, 3.2e-2, parts), split, "multilabel-f1")


def sick_grades(split: str) -> Task:
    """SICK: how related two sentences are, 0 to 4, on frozen MiniLM; quadratic kappa of rounded numbers."""
    return task_of(sick_kappa_of_scores(), split)


def sick_linear(split: str) -> Task:
    """The same by one linear layer."""

    def model() -> NumberHead:
        head = NumberHead(1, width=768)
        head.layers = nn.Sequential(nn.Linear(768, 1))
        return head

    return task_of(changed(sick_kappa_of_scores(), model, 1.6e-2), split, "quadratic-kappa")


def sick_words(split: str) -> Task:
    """The same, of which words are in one of two sentences, and which in both."""
    pair = sick_kappa_of_scores()
    rows = {"train": pair.train, "dev": pair.development, "test": pair.test}
    texts = [[row[f"sentence{i}"] for row in read_lines("sick", part) for i in (1, 2)] for part in rows]
    parts = [
        Rows(torch.cat([(words[::2] - words[1::2]).abs(), words[::2] * words[1::2]], dim=-1), of.labels)
        for words, of in zip(_words_in(texts), rows.values(), strict=True)
    ]
    model = functools.partial(NumberHead, 1, width=2 * WORDS)
    return task_of(changed(pair, model, 2e-3, parts), split, "quadratic-kappa")


def hwu64_slot_numbers(split: str) -> Task:
    """HWU64: how many slots a sentence has, 0 to 4 (or more), on frozen MiniLM."""
    embedded, slots = _slots()
    parts = [
        Rows(rows.embeddings, torch.tensor([min(len(of_row), 4.0) for of_row in of_part]))
        for rows, of_part in zip(embedded, slots, strict=True)
    ]
    model = functools.partial(NumberHead, 1)
    return task_of(changed(sick_kappa_of_scores(), model, 4e-3, parts), split, "quadratic-kappa")


TASKS = (goemotions, goemotions_words, hwu64_slot_kinds, sick_grades, sick_linear, sick_words, hwu64_slot_numbers)
