"""Tasks made of pairs, on which surrogates of hub_cards/ are learned and tried."""

import functools

import pytest
import torch
from sklearn.metrics import cohen_kappa_score, f1_score

from hf_reloss import ReLossTrainer, load_metric
from hf_reloss.surrogates.multilabel import SurrogateForMultilabel
from hf_reloss.surrogates.regression import SurrogateForRegression


@pytest.fixture
def transfers(program):
    return program("transfers")


def pair_of(program, model, labels, **options):
    """Of 8 features, from which labels are made."""
    random, parts = torch.Generator().manual_seed(0), []
    for number in (256, 40, 60):
        features = torch.randn(number, 8, generator=random)
        parts.append(program("intents").Rows(features, labels(features)))
    recipe = {"num_train_epochs": 6, "per_device_train_batch_size": 64, "learning_rate": 1e-2}
    return program("pairs").Pair(*parts, functools.partial(model, width=8), recipe, **options)


@pytest.fixture
def labels(program):
    metric = load_metric("f1", average="macro", threshold=0.5)
    model = functools.partial(program("label_pairs").LabelHead, 3)
    return pair_of(program, model, lambda x: (x[:, :3] > 0.5).float(), metric=metric, kind=SurrogateForMultilabel)


@pytest.fixture
def grades(program):
    metric = load_metric("cohen_kappa", weights="quadratic").informed({"of_grades": True})
    model = functools.partial(program("regression_pairs").NumberHead, 1)
    return pair_of(
        program, model, lambda x: x[:, 0].round().clamp(-2, 2) + 2, metric=metric, kind=SurrogateForRegression
    )


def test_what_is_tuned_on_is_not_reported_on(transfers, labels):
    test, validation = transfers.task_of(labels, "test"), transfers.task_of(labels, "validation")
    assert (test.evaluation, validation.evaluation) == (labels.test, labels.development)
    assert test.train is validation.train is labels.train


def test_measures_are_those_of_scikit_learn(transfers, labels, grades):
    logits = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    expected = f1_score(labels.test.labels, logits > 0, average="macro")
    assert transfers.task_of(labels, "test").measures["f1"](logits, labels.test.labels) == pytest.approx(expected)
    values = grades.test.labels[:, None] + logits[:, :1]
    decided = values[:, 0].round().clamp(0, 4).int()  # grades that there are
    expected = cohen_kappa_score(grades.test.labels.int(), decided, weights="quadratic")
    measured = transfers.task_of(grades, "test").measures["cohen_kappa"](values, grades.test.labels)
    assert measured == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("pair", "card"), [("labels", "multilabel-f1"), ("grades", "quadratic-kappa")])
def test_a_model_learns_on_what_comes_along(transfers, program, request, pair, card):
    task = transfers.task_of(request.getfixturevalue(pair), "test", card)
    assert task.losses == (task.original, "unlearned", "transferred")
    train_and_score = program("quality").train_and_score
    (score,) = train_and_score(task, 0, ReLossTrainer, surrogate=f"reloss/{card}").values()
    (usual,) = train_and_score(task, 0, program("task").LossTrainer, loss=task.baselines[task.original]).values()
    assert score > 60
    assert score != usual


def test_words_are_those_of_the_training_texts(transfers):
    train, test = transfers._words_in([["a dog runs", "a dog and a cat"], ["a cat and a horse"]])
    assert train.shape == (2, 5)
    assert (test[0] > 0).sum() == 3  # no horse is known
