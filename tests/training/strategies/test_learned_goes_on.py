"""`surrogate="auto"` never ends a run: where nothing can be learned it tries again, then goes on with what there is."""

import logging

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, SurrogateForClassification, load_metric
from hf_reloss.learning.time_limit import JUDGING, LEAST_SECONDS, affordable_groups
from hf_reloss.predictions.dataset import predictions_dataset
from hf_reloss.predictions.groups import draw_groups
from hf_reloss.training.callback import StrategyCallback

from ...conftest import TinyClassifier, tiny_rows
from ..test_text_trainers import make_tokenizer, translating
from ..test_trainer import accuracy, assert_same, make_trainer, weights


def constant(key: str):
    return lambda evaluation: {key: 0.5}


def losses_of(trainer) -> set[str]:
    return {name for entry in trainer.state.log_history for name in entry if name.startswith("loss/")}


def test_what_cannot_be_learned_is_tried_again_and_then_the_soft_metric_is_the_loss(tmp_path, caplog):
    trainer = make_trainer(
        tmp_path, metric="accuracy", compute_metrics=constant("accuracy"), surrogate_warmup=30, logging_steps=1
    )
    with caplog.at_level("INFO", logger="hf_reloss"):
        trainer.train()
    assert trainer.state.global_step == 120
    assert (trainer.strategy.state.next_try, trainer.strategy.state.switched_at) == (60, 60)
    assert "At step 30 no surrogate of accuracy can be learned yet" in caplog.text
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    for words in ("by step 60", "is 0.5 for all", "goes on with the soft metric for accuracy", "surrogate_warmup"):
        assert words in warning
    fresh = SurrogateForClassification.for_metric("accuracy", trust_region=True)
    assert_same(trainer.surrogate.state_dict(), fresh.state_dict())
    assert losses_of(trainer) == {"loss/model", "loss/surrogate"}


def test_of_a_metric_without_a_soft_form_the_models_own_loss_stays(tmp_path, caplog):
    trainer = make_trainer(tmp_path, metric="own", compute_metrics=constant("own"), surrogate_warmup=30)
    with caplog.at_level("WARNING", logger="hf_reloss"):
        trainer.train()
    assert "goes on with the model's own loss" in caplog.text
    assert trainer.surrogate is None
    assert trainer.strategy.state.gave_up
    assert losses_of(trainer) == {"loss/model"}
    assert not list(tmp_path.glob("**/recording_*"))  # nothing is recorded any more
    usual = make_trainer(tmp_path, surrogate=SurrogateForClassification.for_metric("accuracy"), surrogate_warmup=120)
    usual.train()
    assert_same(weights(trainer), weights(usual))


def test_the_wrong_way_round_is_reported_and_the_models_own_loss_stays(tmp_path, caplog):
    def wrong_way_round(evaluation):
        return {"accuracy": -accuracy(evaluation)["accuracy"]}

    trainer = make_trainer(tmp_path, metric="accuracy", compute_metrics=wrong_way_round, surrogate_warmup=30)
    with caplog.at_level("WARNING", logger="hf_reloss"):
        trainer.train()
    assert "accuracy falls where predictions get better" in caplog.text
    assert "greater_is_better=False" in caplog.text
    assert trainer.surrogate is None


def test_a_metric_that_fails_does_not_end_the_run(tmp_path, caplog):
    def broken(evaluation):
        return {}["x"]

    trainer = make_trainer(tmp_path, metric="accuracy", compute_metrics=broken, surrogate_warmup=30)
    with caplog.at_level("WARNING", logger="hf_reloss"):
        trainer.train()
    assert "cannot score the first batch (KeyError('x'))" in caplog.text
    assert "KeyError: 'x'" in caplog.text
    assert trainer.state.global_step == 120


def test_what_failed_once_may_be_learned_later(tmp_path):
    """Only class 0 comes in the first stretch, on which the model is all right soon."""
    trainer = make_trainer(tmp_path, metric="accuracy", surrogate_warmup=30, learning_rate=0.05)

    class Blind(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            calls.append(state.global_step)

    calls = []
    trainer.add_callback(Blind())
    learn = trainer.strategy.learn

    def fails_at_first():
        if trainer.state.global_step == 30:
            raise ValueError("There is nothing to rank.")
        return learn()

    trainer.strategy.learn = fails_at_first
    trainer.train()
    assert calls[-1] == 120
    assert trainer.strategy.state.switched_at == 60
    assert trainer.surrogate.config.record["predictions"] == 0.8 * 480


class SmallBatches(TinyClassifier):
    """Runs out of memory with more than two examples."""

    def forward(self, features, labels=None):
        if self.training and len(features) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return super().forward(features, labels)


@pytest.mark.parametrize("steps", [40, 200])
def test_what_was_recorded_counts_not_what_was_configured(tmp_path, steps):
    trainer = make_trainer(
        tmp_path, model=SmallBatches(), metric="accuracy", max_steps=steps, auto_find_batch_size=True
    )  # batches of 8, at first
    trainer.train()
    assert trainer.state.global_step == steps
    # 160 predictions are 80 steps of 2. The short run does not wait for them beyond the middle of what is left.
    assert trainer.strategy.state.switched_at == (80 if steps == 200 else 30)


def test_undefined_groups_are_left_out(tmp_path):
    def auc(references, logits):
        return roc_auc_score(references, logits[:, 1] - logits[:, 0])

    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(2_000, generator=generator) < 0.02).long()
    logits = torch.randn(2_000, 2, generator=generator)
    predictions = predictions_dataset(logits, labels, torch.rand(2_000, generator=generator))
    rare = [row for place, row in enumerate(tiny_rows(960, classes=2)) if row["labels"] == 0 or place % 12 == 0]
    for metric in (load_metric("roc_auc"), load_metric(auc, class_indices=False, name="auc")):
        groups = draw_groups(predictions, metric, num_groups=200, group_size=16)
        assert 16 < len(groups) < 200
        assert groups.scores.isfinite().all()
        assert len(groups.index) == len(groups.labels) == len(groups.scores)
        trainer = make_trainer(
            tmp_path, model=TinyClassifier(classes=2), metric=metric, surrogate_warmup=0.5, compute_metrics=None
        )
        trainer.train_dataset = rare
        trainer.train()
        assert trainer.state.global_step == trainer.state.max_steps


class Unequal(nn.Module):
    """Puts out a row of logits for each example, and no loss."""

    def __init__(self):
        super().__init__()
        self.inner = TinyClassifier()

    def forward(self, features, labels=None):
        return self.inner(features).logits


def test_a_model_without_a_loss_of_its_own_says_so_at_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path, model=Unequal(), metric="accuracy")
    with pytest.raises(ValueError, match=r"puts out no loss of its own.*compute_loss_func"):
        trainer.train()
    assert trainer.state.global_step == 0
    given = make_trainer(tmp_path, model=Unequal(), surrogate=SurrogateForClassification.for_metric("accuracy"))
    given.train()
    assert given.evaluate()["eval_accuracy"] > 0.6


def test_what_ranks_worse_than_the_soft_metric_or_the_usual_loss_is_not_used(tmp_path):
    trainer = make_trainer(tmp_path, metric="accuracy", surrogate_warmup=30)
    trainer.train()
    learned = SurrogateForClassification.for_metric("accuracy")
    for alignments, chosen in (((0.9, 0.8, 0.7), 0.9), ((0.8, 0.9, 0.7), 0.9), ((0.6, 0.5, 0.7), 0.5)):
        own, soft, usual = alignments
        record = trainer.surrogate.config.record | {"alignment": own, "alignment_cross_entropy": usual}
        learned.config.record, learned.config.metric = record, "accuracy"
        soft_metric = SurrogateForClassification.for_metric("accuracy")
        soft_metric.config.record = record | {"alignment": soft}
        trainer.strategy.go_on_with(learned, soft_metric)
        assert trainer.surrogate.config.record["alignment"] == chosen
        assert (trainer.surrogate is learned) == (chosen == 0.9 == own)


@pytest.mark.parametrize("metric", ["roc_auc", "cohen_kappa", "function", "own"])
def test_a_resumed_run_equals_an_unbroken_one_whatever_the_metric(tmp_path, metric):
    def squared(predictions, references):
        return float(np.mean(predictions == references) ** 2)

    def own(evaluation):
        return {"own": squared(evaluation.predictions.argmax(-1), evaluation.label_ids)}

    asked = load_metric(squared, name="squared") if metric == "function" else metric
    settings = {"metric": asked, "compute_metrics": own, "surrogate_warmup": 0.5, "save_steps": 30}
    settings |= {"save_strategy": "steps", "refresh_steps": 40}
    unbroken = make_trainer(tmp_path / "a", **settings)
    unbroken.train()
    assert unbroken.surrogate.config.record["steps"] >= 0
    for step in (30, 60, 90):
        resumed = make_trainer(tmp_path / "b", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
        assert_same(weights(unbroken), weights(resumed))
        assert_same(unbroken.surrogate.state_dict(), resumed.surrogate.state_dict())


def test_resumed_for_another_metric_it_learns_that(tmp_path, caplog):
    settings = {"surrogate_warmup": 40, "save_strategy": "steps", "save_steps": 30, "compute_metrics": None}
    make_trainer(tmp_path / "a", metric="accuracy", **settings).train()
    for step in (30, 60):  # before and after the switch
        trainer = make_trainer(tmp_path / "b", metric=load_metric("f1", average="macro"), **settings)
        with caplog.at_level("WARNING", logger="hf_reloss"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
        assert "metric='accuracy': for f1|" in caplog.text
        assert trainer.strategy.state.switched_at == step + 40
        assert trainer.surrogate.config.metric.startswith("f1|")


def test_a_checkpoint_remembers_where_recording_began(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 5}
    plain = make_trainer(tmp_path / "a", surrogate=SurrogateForClassification.for_metric("accuracy"), **settings)
    plain.train()
    taken_over = make_trainer(tmp_path / "b", metric="accuracy", **settings)
    taken_over.train(resume_from_checkpoint=str(plain_checkpoint(tmp_path / "a", 70)))
    again = make_trainer(tmp_path / "c", metric="accuracy", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-75"))
    assert taken_over.strategy.state.switched_at == again.strategy.state.switched_at == 90
    assert_same(weights(taken_over), weights(again))


def plain_checkpoint(folder, step):
    """A checkpoint as a plain Trainer writes it."""
    import shutil

    checkpoint = folder / f"checkpoint-{step}"
    shutil.rmtree(checkpoint / "surrogate")
    return checkpoint


class NearlyConstant(nn.Module):
    """Puts out one number, which is almost the same for all examples."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 1)
        with torch.no_grad():
            self.head.weight.mul_(1e-4)

    def forward(self, features, labels=None):
        logits = self.head(features)
        return SequenceClassifierOutput(loss=(logits[:, 0] - labels).square().mean(), logits=logits)


def test_a_soft_correlation_that_does_not_rank_is_not_taken(tmp_path, caplog):
    grades = 3 + torch.randn(640, generator=torch.Generator().manual_seed(0))
    rows = [row | {"labels": grade} for row, grade in zip(tiny_rows(640), grades, strict=True)]
    args = ReLossTrainingArguments(
        str(tmp_path), num_train_epochs=1, learning_rate=1e-6, optim="sgd", save_strategy="no", disable_tqdm=True
    )
    trainer = ReLossTrainer(NearlyConstant(), args, train_dataset=rows, eval_dataset=rows[:100], metric="pearsonr")
    with caplog.at_level("WARNING", logger="hf_reloss"):
        trainer.train()
    assert "The run goes on with the model's own loss" in caplog.text
    assert trainer.surrogate is None


@pytest.mark.parametrize("metric", ["perplexity", "brier_score"])
def test_a_metric_of_probabilities_that_are_not_recorded_stops_no_run(metric, tmp_path, caplog):
    trainer = translating(tmp_path, make_tokenizer(), surrogate="auto", metric=metric, predict_with_generate=False)
    with caplog.at_level("WARNING", logger="hf_reloss"):
        trainer.train()
    assert trainer.surrogate is None
    assert f"own to the end of the run: {metric} is of probabilities" in caplog.text
    assert "kept the model's own loss" in trainer.loss_report.verdict


def test_learning_takes_no_longer_than_its_share_of_the_run(tmp_path):
    trainer = make_trainer(tmp_path, metric="accuracy", surrogate_warmup=30)
    switch = next(each for each in trainer.callback_handler.callbacks if isinstance(each, StrategyCallback))
    switch.on_train_begin(trainer.args, trainer.state, trainer.control)
    clock = trainer.strategy.clock
    clock.began -= 500
    assert clock.seconds_to_learn(100, 1000) == pytest.approx((1 - JUDGING) * 0.05 * 5000, rel=0.01)
    # The rest of the 5 % is for two evaluations: at 5 seconds a step of 8 examples, a third of that each.
    assert clock.affordable_examples(8, 1000) == pytest.approx(JUDGING * 0.05 * 5000 / 2 / (5 / 8 / 3), rel=0.02)
    assert clock.seconds_to_learn(100, 101) == pytest.approx((1 - JUDGING) * 0.05 * 505, rel=0.01)
    clock.began += 499
    assert clock.seconds_to_learn(100, 200) == (1 - JUDGING) * LEAST_SECONDS


def test_few_predictions_large_evidence_and_slow_metrics_make_fewer_groups():
    def slow():
        torch.tensor(range(200_000))

    assert affordable_groups(512, 128, 20_000, 10, None, 5.0) == 512
    assert affordable_groups(512, 16, 160, 10, None, 5.0) == 128
    assert affordable_groups(512, 128, 20_000, 43_000, None, 5.0) == 64
    assert affordable_groups(512, 128, 20_000, 10, slow, 0.5) < 512
