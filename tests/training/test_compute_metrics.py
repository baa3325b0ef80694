"""`compute_metrics` is called in training as Trainer calls it in an evaluation."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss import batch_compute_metrics, load_metric
from hf_reloss.learning import time_limit

from ..conftest import TinyClassifier, tiny_rows
from .test_trainer import make_trainer


class WithStates(TinyClassifier):
    """A classifier that puts out more than logits."""

    main_input_name = "features"

    def forward(self, features, labels=None):
        logits = self.head(features)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=features * 2)


def kind_of(values):
    """What an evaluation hands over, but for the number of examples."""
    if isinstance(values, list | tuple):
        return type(values).__name__, kind_of(values[0])
    return (type(values).__name__, str(values.dtype), values.shape[1:]) if hasattr(values, "dtype") else values


@pytest.mark.parametrize("settings", [{}, {"include_for_metrics": ["inputs", "loss"], "eval_do_concat_batches": False}])
def test_it_gets_in_training_what_it_gets_in_an_evaluation(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(time_limit, "LEAST_SECONDS", 1.0)
    seen = []

    def compute_metrics(evaluation):
        parts = [evaluation.predictions, evaluation.label_ids, evaluation.inputs, evaluation.losses]
        seen.append([kind_of(part) for part in parts])
        in_lists = isinstance(evaluation.label_ids, list)
        batches, labels = ([part] if not in_lists else part for part in (evaluation.predictions, evaluation.label_ids))
        logits, states = (np.concatenate(part) for part in zip(*batches, strict=True))
        right = logits.argmax(-1) == np.concatenate(labels)
        if in_lists:
            assert np.array_equal(states, 2 * np.concatenate(evaluation.inputs))
            assert np.isfinite(np.concatenate(evaluation.losses)).all()
        return {"eval_share": float(right[states[:, 0] > -9].mean())}

    trainer = make_trainer(
        tmp_path, model=WithStates(), compute_metrics=compute_metrics, metric="share", max_steps=30,
        surrogate_warmup=0.7, tune_decision=False, **settings,
    )  # fmt: skip
    trainer.evaluate()
    expected = seen[0]
    trainer.train()
    assert len(seen) > 100
    assert all(found == expected for found in seen)
    assert any("surrogate_alignment" in entry for entry in trainer.state.log_history)


def test_batches_are_added_up_by_trainer(tmp_path):
    rows, model = tiny_rows(50, seed=1), TinyClassifier()
    wanted = [load_metric("f1", average="macro"), "accuracy", "matthews_correlation"]
    trainer = Trainer(
        model,
        TrainingArguments(tmp_path, batch_eval_metrics=True, per_device_eval_batch_size=8, disable_tqdm=True),
        eval_dataset=rows,
        compute_metrics=batch_compute_metrics(*wanted),
    )
    logits = model(torch.stack([row["features"] for row in rows])).logits
    labels = torch.stack([row["labels"] for row in rows])
    for _ in range(2):  # what was taken in is forgotten
        found = trainer.evaluate()
        for metric in map(load_metric, wanted):
            assert found[f"eval_{metric.name}"] == pytest.approx(metric.compute(logits, labels))


def test_batches_of_class_indices_may_have_different_classes():
    added = batch_compute_metrics("f1", average="macro")
    batches = [([0, 1, 1], [0, 1, 0]), ([3, 3], [3, 1]), ([0], [0])]
    for place, batch in enumerate(batches):
        found = added(_evaluation(*batch), compute_result=place == 2)
    whole = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    assert found == {"f1": pytest.approx(load_metric("f1", average="macro").compute(*whole))}


def test_what_cannot_be_added_up_is_refused():
    with pytest.raises(ValueError, match="roc_auc is not a sum over predictions"):
        batch_compute_metrics("roc_auc")
    with pytest.raises(ValueError, match="options average: pass load_metric"):
        batch_compute_metrics("f1", "accuracy", average="macro")
    kappa = batch_compute_metrics("cohen_kappa")
    kappa(_evaluation([0, 1], [1, 0]))
    with pytest.raises(ValueError, match="hand over logits"):
        kappa(_evaluation([0, 3], [1, 0]))


def test_auto_learns_a_metric_beside_batch_eval_metrics(tmp_path):
    added = batch_compute_metrics("accuracy")
    trainer = make_trainer(tmp_path, compute_metrics=added, metric="accuracy", batch_eval_metrics=True)
    assert trainer.strategy.wanted.wanted == load_metric("accuracy")
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1


def _evaluation(predictions, labels):

    return EvalPrediction(np.array(predictions), np.array(labels))
