"""`surrogate="auto"`: what is recorded in a run, learned from it, and gone on with."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_reloss import AutoSurrogate, SurrogateConfig, SurrogateForClassification, load_metric

from ...conftest import TinyClassifier, tiny_rows
from ..test_trainer import assert_same, make_trainer, weights


def test_auto_learns_a_surrogate_and_goes_on_with_it(tmp_path):
    trainer = make_trainer(tmp_path, metric="accuracy", surrogate_warmup=0.5)
    trainer.train()
    events = [entry for entry in trainer.state.log_history if "surrogate_alignment" in entry]
    assert [entry["step"] for entry in events] == [60]
    assert events[0]["surrogate_alignment"] > 0.5
    assert trainer.surrogate.config.record["predictions"] == 0.8 * 480
    assert "compute_metrics:accuracy" in trainer.surrogate.config.metric
    assert trainer.evaluate()["eval_accuracy"] > 0.6
    assert not (tmp_path / "_surrogate").exists()
    trainer.save_model(tmp_path / "final")
    saved = AutoSurrogate.from_pretrained(tmp_path / "final" / "surrogate")
    assert_same(saved.state_dict(), trainer.surrogate.state_dict())


def test_auto_learns_again_and_a_resumed_run_does_too(tmp_path):
    options = {"metric": "accuracy", "surrogate_warmup": 30, "refresh_steps": 40, "save_strategy": "steps"}
    trainer = make_trainer(tmp_path / "whole", save_steps=50, **options)
    trainer.train()
    events = [entry["step"] for entry in trainer.state.log_history if "surrogate_alignment" in entry]
    assert events == [30, 70, 110]  # of 120
    assert trainer.surrogate.config.record["predictions"] == 0.8 * 40 * 8  # those since it was learned before
    resumed = make_trainer(tmp_path / "resumed", save_steps=50, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-50"))
    assert_same(weights(resumed), weights(trainer))
    assert_same(resumed.surrogate.state_dict(), trainer.surrogate.state_dict())


def test_what_cannot_be_learned_again_stays_as_it_was(tmp_path, caplog):
    trainer = make_trainer(tmp_path, metric="accuracy", surrogate_warmup=30, refresh_steps=7, num_train_epochs=2)
    with caplog.at_level("WARNING", logger="hf_reloss"):
        trainer.train()
    events = [entry["step"] for entry in trainer.state.log_history if "surrogate_alignment" in entry]
    assert events == [30, 51]  # 7 and 14 steps of 8 have fewer than 160 predictions, 21 have enough
    assert caplog.text.count("stays as it was") == 3


@pytest.mark.parametrize("metric", [load_metric("f1", average="macro"), "matthews_correlation"])
def test_auto_learns_the_soft_form_of_a_metric_of_groups(tmp_path, metric):
    trainer = make_trainer(tmp_path, metric=metric, surrogate_warmup=0.5)
    trainer.train()
    assert trainer.surrogate.config.architecture == "counts"
    assert list(trainer.surrogate.config.scores) == [load_metric(metric).name]
    assert trainer.surrogate.config.record["alignment"] > 0.5
    assert trainer.evaluate()["eval_accuracy"] > 0.6


def test_auto_asks_a_function_what_confusions_cost(tmp_path):
    costs = torch.tensor([[0.0, 1.0, 1.0, 5.0], [1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]])

    def cost(predictions, references):
        return float(costs[torch.as_tensor(references), torch.as_tensor(predictions)].mean())

    trainer = make_trainer(tmp_path, metric=load_metric(cost, higher_is_better=False), surrogate_warmup=0.3)
    trainer.train()
    surrogate = trainer.surrogate
    assert surrogate.config.architecture == "credit"
    torch.testing.assert_close(surrogate.network.costs / surrogate.network.costs[0, 1], costs)
    assert surrogate.config.record["alignment"] > surrogate.config.record["alignment_cross_entropy"]


def test_a_metric_that_cannot_score_these_labels_stops_at_the_first_batch(tmp_path):
    trainer = make_trainer(tmp_path, metric=load_metric("f1"))  # binary, of four classes
    with pytest.raises(ValueError, match="choose average='macro'"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_learning_leaves_the_random_state_of_the_run_alone(tmp_path):
    class Draw(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 60:
                self.drawn = torch.rand(3), np.random.rand(3)

    learning, given = Draw(), Draw()
    trainer = make_trainer(tmp_path, metric="accuracy", surrogate_warmup=60)
    trainer.add_callback(learning)
    trainer.train()
    trainer = make_trainer(tmp_path, surrogate=SurrogateForClassification(SurrogateConfig()), surrogate_warmup=60)
    trainer.add_callback(given)
    trainer.train()
    assert torch.equal(learning.drawn[0], given.drawn[0])
    assert (learning.drawn[1] == given.drawn[1]).all()


def test_the_metric_is_what_compute_metrics_says(tmp_path):
    def only_class_one(evaluation):
        return {"accuracy": float((evaluation.predictions.argmax(-1) == 1).mean())}

    trainer = make_trainer(tmp_path, metric="accuracy", compute_metrics=only_class_one, surrogate_warmup=999)
    trainer.train()
    logits = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert trainer.metric.compute(logits, torch.tensor([0, 0])) == 0.5


def test_a_name_that_compute_metrics_does_not_give_is_looked_up(tmp_path):
    trainer = make_trainer(
        tmp_path, metric="accuracy", compute_metrics=lambda evaluation: {"other": 1.0}, surrogate_warmup=999
    )
    trainer.train()
    assert trainer.metric == load_metric("accuracy")


def test_a_metric_that_nobody_knows_fails_on_the_first_batch_with_the_keys(tmp_path):
    trainer = make_trainer(tmp_path, metric="acuracy")
    with pytest.raises(ValueError, match=r"\['accuracy'\].*nearest are .*accuracy"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("kill_at", [20, 60, 90])  # before, at and after the switch
@pytest.mark.parametrize("accumulation", [1, 2])
def test_auto_resumed_from_a_checkpoint_equals_an_unbroken_run(tmp_path, kill_at, accumulation):
    settings = {
        "metric": "accuracy", "surrogate_warmup": 0.5, "save_strategy": "steps", "save_steps": 10,
        "gradient_accumulation_steps": accumulation, "num_train_epochs": 4 * accumulation,
    }  # fmt: skip
    unbroken = make_trainer(tmp_path / "a", **settings)
    unbroken.train()
    resumed = make_trainer(tmp_path / "b", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{kill_at}"))
    assert_same(weights(unbroken), weights(resumed))
    assert_same(unbroken.surrogate.state_dict(), resumed.surrogate.state_dict())


def test_each_run_learns_its_own_surrogate(tmp_path):
    trainer = make_trainer(tmp_path, metric="accuracy", surrogate_warmup=0.5)
    trainer.eval_dataset = None  # so nothing judges the loss
    trainer.train()
    first = trainer.surrogate
    trainer.train()
    assert trainer.surrogate is not first
    assert trainer.surrogate.config.record["predictions"] == 0.8 * 480
    assert trainer.strategy.recorder.rows()["stage"].max() < 0.5


def test_a_checkpoint_of_a_plain_trainer_is_gone_on_from(tmp_path):
    plain = make_trainer(tmp_path, Trainer, TrainingArguments, save_strategy="steps", save_steps=70)
    plain.train()
    trainer = make_trainer(tmp_path, metric="accuracy")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-70"))
    switched = [entry["step"] for entry in trainer.state.log_history if "surrogate_alignment" in entry]
    assert switched == [90]  # 20 batches of 8 are the fewest that a surrogate is learned from
    assert trainer.state.global_step == 120


def test_short_runs_record_for_longer(tmp_path):
    trainer = make_trainer(tmp_path, metric="accuracy", max_steps=40)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "surrogate_alignment" in entry] == [20]


def test_a_run_too_short_for_a_surrogate_is_told_of(tmp_path, caplog):
    trainer = make_trainer(tmp_path, metric="accuracy", max_steps=15)
    with caplog.at_level("WARNING", logger="hf_reloss"):
        trainer.train()
    assert "No surrogate will be learned: recording predictions takes 20 steps" in caplog.text
    assert trainer.surrogate is None


def test_models_that_put_out_more_than_logits_are_scored_as_by_trainer(tmp_path):
    class Verbose(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = TinyClassifier()

        def forward(self, features, labels=None):
            output = self.inner(features, labels)
            return {"loss": output.loss, "logits": output.logits, "hidden_states": features * 2}

    def from_indices(evaluation):
        return {"accuracy": float((evaluation.predictions == evaluation.label_ids).mean())}

    trainer = make_trainer(
        tmp_path, model=Verbose(), metric="accuracy", surrogate_warmup=0.5, compute_metrics=from_indices,
        preprocess_logits_for_metrics=lambda outputs, labels: outputs[0].argmax(-1),
    )  # fmt: skip
    trainer.train()
    assert trainer.surrogate.config.record["alignment"] > 0.5
    assert trainer.evaluate()["eval_accuracy"] > 0.5


def test_auto_looks_at_the_first_batch_before_it_trains_on_more(tmp_path):
    trainer = make_trainer(tmp_path, metric="accuracy")
    trainer.train_dataset = [row | {"labels": row["labels"] * 2} for row in tiny_rows(80)]
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.mean()
    with pytest.raises(ValueError, match=r"0 to 3.*are not"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_named_metric_object_is_learned(tmp_path):
    trainer = make_trainer(tmp_path, metric=load_metric("accuracy"), surrogate_warmup=0.5)
    trainer.train()
    assert trainer.surrogate.config.metric == "accuracy"
