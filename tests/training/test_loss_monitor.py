"""LossMetricMonitor watches any Trainer's loss against a metric."""

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from hf_reloss import (
    AutoSurrogate,
    LossMetricMonitor,
    ReLossTrainer,
    SurrogateForClassification,
    load_metric,
    record_predictions,
)
from hf_reloss.learning.alignment import alignment
from hf_reloss.training.loss_monitor import Evaluated

from ..conftest import TinyClassifier, tiny_rows


def train(folder, monitor, kind=Trainer, **options):
    torch.manual_seed(0)
    args = TrainingArguments(
        str(folder), num_train_epochs=4, per_device_train_batch_size=16, learning_rate=0.02, eval_strategy="epoch",
        save_strategy="epoch", use_cpu=True, disable_tqdm=True, metric_for_best_model="alignment",
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer = kind(
        TinyClassifier(), args, train_dataset=tiny_rows(200), eval_dataset=tiny_rows(300, seed=1),
        callbacks=[monitor, EarlyStoppingCallback(10)], **options,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_a_plain_trainer_logs_the_alignment_and_a_verdict_comes_at_the_end(tmp_path, caplog):
    monitor = LossMetricMonitor(load_metric("f1", average="macro"))
    trainer = train(tmp_path, monitor)
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["eval_alignment"] for entry in evaluations] == [each.alignment for each in monitor.history]
    assert [each.loss for each in monitor.history] == [entry["eval_loss"] for entry in evaluations]
    rows = {name: torch.stack([row[name] for row in tiny_rows(300, seed=1)]) for name in ("features", "labels")}
    # The model is that of the best checkpoint by now.
    best = max(monitor.history, key=lambda each: each.alignment)
    score = monitor.metric.compute(trainer.model(rows["features"]).logits.detach(), rows["labels"])
    assert best.score == pytest.approx(score)
    predictions = record_predictions(trainer.model, tiny_rows(300, seed=1))
    expected = alignment(predictions, monitor.metric, SurrogateForClassification)
    assert best.alignment == pytest.approx(expected, abs=1e-6)
    assert best.alignment > 0.5
    assert monitor.verdict in caplog.text
    assert "rank correlation" in monitor.verdict
    assert "of 3 times" in monitor.verdict
    assert not trainer.model._forward_hooks


def test_a_loss_that_is_given_is_the_one_that_is_watched(tmp_path):
    loss = AutoSurrogate.from_pretrained("reloss/accuracy")
    usual, ours = LossMetricMonitor("accuracy"), LossMetricMonitor("accuracy", loss)
    train(tmp_path / "usual", usual)
    train(tmp_path / "ours", ours)
    assert [each.score for each in usual.history] == [each.score for each in ours.history]
    assert [each.alignment for each in usual.history] != [each.alignment for each in ours.history]


def test_what_a_reloss_trainer_measures_itself_stays(tmp_path):
    monitor = LossMetricMonitor("accuracy")
    trainer = train(tmp_path, monitor, ReLossTrainer, surrogate="reloss/accuracy")
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert all("eval_alignment" in entry for entry in evaluations)
    assert len(monitor.history) == len(evaluations)


def test_a_metric_that_fails_does_not_end_the_run(tmp_path, caplog):
    def broken(predictions, references):
        raise RuntimeError("no such thing")

    args = TrainingArguments(
        str(tmp_path),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    monitor = LossMetricMonitor(broken)
    Trainer(
        TinyClassifier(), args, train_dataset=tiny_rows(64), eval_dataset=tiny_rows(100), callbacks=[monitor]
    ).train()
    assert monitor.history == []
    assert monitor.verdict == ""
    assert "could not be measured" in caplog.text


class TwoLabels(TinyClassifier):
    def forward(self, features, labels=None):
        outputs = super().forward(features)
        return outputs if labels is None else {"loss": outputs.logits.mean(), "logits": outputs.logits}


def test_a_model_that_no_surrogate_reads_is_evaluated_all_the_same(tmp_path, caplog):
    args = TrainingArguments(
        str(tmp_path), max_steps=2, eval_strategy="steps", eval_steps=2, use_cpu=True, disable_tqdm=True
    )
    rows = [row | {"labels": torch.rand(3, 4, 5)} for row in tiny_rows(16)]
    monitor = LossMetricMonitor("accuracy")
    trainer = Trainer(TwoLabels(), args, train_dataset=rows, eval_dataset=rows, callbacks=[monitor])
    trainer.train()
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    assert monitor.history == []
    assert "is not measured: There is no surrogate for a model with the outputs" in caplog.text


def test_the_verdict_says_where_loss_and_metric_part():
    monitor = LossMetricMonitor("accuracy")
    monitor.history = [Evaluated(10, 0.9, 0.5, 0.8), Evaluated(20, 0.5, 0.7, 0.8), Evaluated(30, 0.6, 0.8, 0.4)]
    assert monitor._verdict() == (
        "Loss and accuracy: over groups of the last evaluation's predictions their rank correlation is 0.40 (1 is "
        "perfect); from one evaluation to the next they got better or worse together 1 of 2 times; the lowest loss is "
        "at step 20, with accuracy 0.7, and the best accuracy at step 30, 0.8."
    )
