"""Learned approximation: a network of sets that regresses the metric, in turn with the model."""

import pytest
import torch
from sklearn.metrics import f1_score

from hf_reloss import (
    ReLossTrainer,
    ReLossTrainingArguments,
    SurrogateConfig,
    SurrogateForClassification,
    SurrogateTrainer,
    SurrogateTrainingArguments,
    load_metric,
)
from hf_reloss.learning.objectives import ApproximationObjective
from hf_reloss.predictions.dataset import predictions_dataset

from ...conftest import TinyClassifier, synthetic_predictions, tiny_rows

BINARY_F1 = load_metric("f1", average="binary")


def set_surrogate() -> SurrogateForClassification:
    torch.manual_seed(0)
    return SurrogateForClassification(SurrogateConfig(architecture="set"))


def binary_predictions(n: int = 2_000):
    """Of a rare class, from bad to good."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(n, generator=generator) < 0.2).long()
    stage = torch.linspace(0, 1, n)
    logits = 1.5 * torch.randn(n, 2, generator=generator) + torch.tensor([0.5, -0.5])
    logits[torch.arange(n), labels] += 3 * stage
    return predictions_dataset(logits, labels, stage)


def learner(folder, surrogate, predictions, metric, **options) -> SurrogateTrainer:
    settings = {"num_groups": 2048, "num_eval_groups": 128, "group_size": 64, "objective": "approximation"} | options
    args = SurrogateTrainingArguments(str(folder), disable_tqdm=True, use_cpu=True, **settings)
    return SurrogateTrainer(surrogate, args, train_dataset=predictions, metric=metric)


def test_the_objective_is_a_mean_of_squares():
    gain = ApproximationObjective().gain(torch.tensor([-0.5, -0.9]), torch.tensor([0.6, 0.5]))
    assert gain.item() == pytest.approx(-(0.1**2 + 0.4**2) / 2)


def test_the_network_is_one_of_sets():
    surrogate = set_surrogate()
    logits, labels = torch.randn(20, 4), torch.randint(4, (20,))
    loss, order, classes = surrogate(logits, labels), torch.randperm(20), torch.randperm(4)
    torch.testing.assert_close(surrogate(logits[order], labels[order]), loss)
    torch.testing.assert_close(surrogate(logits[:, classes.argsort()], classes[labels]), loss)
    ignored = torch.cat([labels, torch.full((5,), -100)])
    torch.testing.assert_close(surrogate(torch.cat([logits, torch.randn(5, 4)]), ignored), loss)


def test_of_many_classes_it_looks_at_those_that_occur():
    """What it computes of 50 classes for a group of 6 is what a loop over the classes that occur does."""
    surrogate, network = set_surrogate(), set_surrogate().network
    logits, labels = torch.randn(3, 6, 50, requires_grad=True), torch.randint(50, (3, 6))
    labels[0, :3] = 7
    labels[1, 2] = -100
    expected = []
    for group, of_group in zip(logits, labels, strict=True):
        counts = of_group != -100
        kept, labelled = group[counts].softmax(-1), of_group[counts]
        pairs = [torch.stack([kept[:, c], (labelled == c).float()], dim=-1) for c in labelled.unique()]
        sets = torch.stack([network.of_classes(network.of_examples(pair).mean(0)) for pair in pairs])
        expected.append(network.of_group(sets.mean(0))[0])
    evidence = surrogate.evidence(logits, labels)
    torch.testing.assert_close(surrogate(evidence), torch.stack(expected))


@pytest.mark.parametrize(
    ("predictions", "metric"),
    [(binary_predictions, BINARY_F1), (synthetic_predictions, load_metric("f1", average="macro"))],
    ids=["binary", "macro"],
)
def test_it_learns_the_values_of_f1(tmp_path, predictions, metric):
    trainer = learner(tmp_path, set_surrogate(), predictions(), metric)
    trainer.train()
    record = trainer.model.config.record
    assert record["alignment"] > 0.9
    held_out = record["held_out"]
    errors = torch.tensor(held_out["loss"]) + torch.tensor(held_out["score"])
    spread = torch.tensor(held_out["score"]).std()
    assert errors.square().mean().sqrt() < 0.5 * spread
    logged = [log["negative_squared_error"] for log in trainer.state.log_history if "negative_squared_error" in log]
    assert logged[-1] > logged[0]


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    weights = []
    for micro_batch, accumulation in ((64, 1), (16, 4)):
        trainer = learner(
            tmp_path, set_surrogate(), synthetic_predictions(), "accuracy", num_train_epochs=1, num_groups=224,
            per_device_train_batch_size=micro_batch, gradient_accumulation_steps=accumulation, optim="sgd",
            load_best_model_at_end=False, save_strategy="no", min_alignment=-1.0,
        )  # fmt: skip
        trainer.train()
        weights.append(trainer.model.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6)


def test_the_papers_toy_is_learned_in_turn(tmp_path):
    """Binary classification, for F1: the surrogate is learned again and again, and the model gets better on it."""
    torch.manual_seed(0)
    rows = [row | {"labels": (row["labels"] == 0).long()} for row in tiny_rows(600)]
    args = ReLossTrainingArguments(
        str(tmp_path), max_steps=160, per_device_train_batch_size=64, learning_rate=0.02, surrogate_warmup=20,
        refresh_steps=40, save_strategy="no", disable_tqdm=True, use_cpu=True, seed=3,
    )  # fmt: skip
    trainer = ReLossTrainer(
        TinyClassifier(classes=2), args, train_dataset=rows, surrogate="approximation", metric=BINARY_F1
    )
    trainer.train()
    learned = [log["step"] for log in trainer.state.log_history if "surrogate_alignment" in log]
    assert learned == [20, 60, 100, 140]
    assert trainer.surrogate.config.architecture == "set"
    test = [row | {"labels": (row["labels"] == 0).long()} for row in tiny_rows(600, seed=1)]
    features, labels = (torch.stack([row[key] for row in test]) for key in ("features", "labels"))
    with torch.no_grad():
        decided = trainer.model(features).logits.argmax(-1)
    assert f1_score(labels, decided) > 0.8


def test_it_is_learned_again_as_often_as_the_first_stretch_is_long(tmp_path):
    args = ReLossTrainingArguments(
        str(tmp_path), max_steps=60, per_device_train_batch_size=16, surrogate_warmup=20, save_strategy="no",
        disable_tqdm=True, use_cpu=True, learning_rate=0.02,
    )  # fmt: skip
    trainer = ReLossTrainer(
        TinyClassifier(), args, train_dataset=tiny_rows(300), surrogate="approximation", metric="accuracy"
    )
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "surrogate_alignment" in log] == [20, 40]  # of 60


def test_an_unknown_objective_is_told(tmp_path):
    with pytest.raises(ValueError, match="not one of relational, approximation"):
        learner(tmp_path, set_surrogate(), synthetic_predictions(), "accuracy", objective="absolute")
