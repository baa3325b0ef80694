import logging
import re
from typing import ClassVar

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from hf_reloss import AutoSurrogate, SurrogateForClassification, load_metric
from hf_reloss.metrics import metric_of

from ..conftest import TinyClassifier
from .test_trainer import make_trainer


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_the_parts_of_the_loss_are_logged_apart(tmp_path):
    surrogate = SurrogateForClassification.for_metric("accuracy")
    trainer = make_trainer(tmp_path, surrogate=surrogate, model_loss_share=0.25, logging_steps=1)
    trainer.train()
    parts = zip(logged(trainer, "loss"), logged(trainer, "loss/surrogate"), logged(trainer, "loss/model"), strict=True)
    for loss, of_surrogate, of_model in parts:
        assert loss == pytest.approx(0.75 * of_surrogate + 0.25 * of_model, abs=1e-5)
    alone = make_trainer(tmp_path, surrogate=surrogate)
    alone.train()
    assert not logged(alone, "loss/model")
    assert logged(alone, "loss/surrogate") == pytest.approx(logged(alone, "loss"), abs=1e-5)


def lines(text: str, word: str) -> list[str]:
    """Those of what was printed, between progress bars, in which a word is."""
    return [line.strip() for line in re.split(r"[\r\n]", text) if word in line]


LEARNS = {"surrogate": "auto", "metric": "accuracy", "surrogate_warmup": 40, "refresh_steps": 60}
LEARNS |= {"num_train_epochs": 5}


def test_each_event_is_reported_in_a_line_above_the_progress_bar(tmp_path, capsys):
    make_trainer(tmp_path, disable_tqdm=False, **LEARNS).train()
    printed = capsys.readouterr().err
    learning, again = lines(printed, "learning a surrogate")
    assert "The warm-up is over at step 40: learning a surrogate of accuracy from 320 predictions." in learning
    assert "60 steps more are recorded at step 100: learning a surrogate of accuracy from 480" in again
    switched = r"Switched at step (\d+) to the .* for accuracy: its alignment on held-out groups is 0\.\d+, against"
    assert re.findall(switched + r".* 0\.\d+ for cross entropy", printed) == ["40", "100"]
    assert len(lines(printed, "surrogate:  ")) > 5  # the bar of the learning itself
    make_trainer(tmp_path, **LEARNS).train()
    assert not lines(capsys.readouterr().err, "Switched")


def test_each_event_is_reported_in_the_log_if_that_is_wanted(tmp_path, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="hf_reloss"):
        make_trainer(tmp_path, disable_tqdm=False, **LEARNS).train()
    assert [record.message.partition(" to ")[0] for record in caplog.records if "Switched" in record.message] == [
        "Switched at step 40", "Switched at step 100",
    ]  # fmt: skip
    assert not lines(capsys.readouterr().err, "Switched at step 40 to")


def test_the_end_of_the_warm_up_of_a_given_surrogate_is_reported(tmp_path, capsys):
    surrogate = AutoSurrogate.from_pretrained("reloss/accuracy")
    make_trainer(tmp_path, disable_tqdm=False, surrogate=surrogate, surrogate_warmup=30).train()
    printed = capsys.readouterr().err
    assert lines(printed, "The model's own loss is the loss until step 30")
    (switched,) = lines(printed, "The warm-up is over")
    assert "switched at step 30 to reloss/accuracy@" in switched


def test_the_parts_of_the_loss_and_the_alignments_reach_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer = make_trainer(
        tmp_path / "run", report_to="tensorboard", eval_strategy="epoch", model_loss_share=0.25, **LEARNS
    )
    trainer.train()
    board = EventAccumulator(str(next((tmp_path / "board").rglob("events.*")).parent)).Reload()
    tags = {tag: {event.step: event.value for event in board.Scalars(tag)} for tag in board.Tags()["scalars"]}
    assert min(tags["train/loss/surrogate"]) == 45  # the first that is logged after the switch
    assert min(tags["train/loss/model"]) == 5
    assert set(tags["train/surrogate_alignment"]) == {40, 100}
    assert set(tags["eval/alignment"]) == {30, 60, 90, 120, 150}  # before the switch, of cross-entropy
    assert set(tags["eval/loss/surrogate"]) == {60, 90, 120, 150}
    step, loss = 45, tags["train/loss"][45]
    parts = 0.75 * tags["train/loss/surrogate"][step] + 0.25 * tags["train/loss/model"][step]
    assert loss == pytest.approx(parts, abs=1e-4)


class Diverging(TinyClassifier):
    """Puts out what is not finite from its third batch on: in the loss, or in gradients alone."""

    def __init__(self, where: str):
        super().__init__()
        self.where, self.batches = where, 0

    def forward(self, features, labels=None):
        outputs = super().forward(features, labels)
        self.batches += self.training
        if self.batches == 3 and self.training:
            if self.where == "loss":
                outputs["loss"] = outputs["loss"] * torch.inf
            else:
                outputs.logits.register_hook(lambda gradient: gradient * torch.nan)
        return outputs


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_run_that_diverges_stops_and_says_where(tmp_path, where):
    class Seen(TrainerCallback):
        weights: ClassVar[list[torch.Tensor]] = []

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.weights.append(model.head.weight.detach().clone())

        def on_train_end(self, args, state, control, **kwargs):
            self.ended = True  # as what reports of a run waits for

    trainer = make_trainer(
        tmp_path, model=Diverging(where), surrogate=AutoSurrogate.from_pretrained("reloss/accuracy"),
        model_loss_share=0.5 if where == "loss" else 0.0, save_strategy="steps", save_steps=1, eval_strategy="steps",
        eval_steps=1,
    )  # fmt: skip
    trainer.add_callback(seen := Seen())
    with pytest.raises(FloatingPointError) as raised:
        trainer.train()
    for words in (where, "step 3", "reloss/accuracy@", "'margin', for accuracy", "evidence between", "learning rate"):
        assert words in str(raised.value)
    assert seen.ended
    first, second, third = seen.weights
    assert not torch.equal(first, second)
    assert torch.equal(second, third)  # no optimizer took the step
    assert torch.equal(third, trainer.model.head.weight)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert [log["step"] for log in trainer.state.log_history if "eval_loss" in log] == [1, 2]


@pytest.mark.parametrize("given", ["by its own record", "by the argument"])
def test_the_alignment_is_measured_in_every_evaluation(tmp_path, given):
    surrogate, options = SurrogateForClassification.for_metric("accuracy"), {}
    if given == "by its own record":
        surrogate.config.metric = load_metric("accuracy").signature
    else:
        options["metric"] = load_metric("f1", average="macro")
    trainer = make_trainer(tmp_path, surrogate=surrogate, eval_strategy="epoch", **options)
    trainer.train()
    assert len(logged(trainer, "eval_alignment")) == 4
    assert 0.8 < trainer.evaluate()["eval_alignment"] <= 1
    assert "test_alignment" in trainer.predict(trainer.eval_dataset).metrics


def test_a_surrogate_that_has_drifted_is_reported(tmp_path, caplog):
    surrogate = SurrogateForClassification.for_metric("accuracy")
    surrogate.config.metric = "accuracy"
    trainer = make_trainer(tmp_path, surrogate=surrogate)
    monotone = surrogate.network.curve
    surrogate.network.curve = lambda margin: monotone(-margin)  # one that turns the wrong way
    with caplog.at_level(logging.WARNING, logger="hf_reloss"):
        alignment = trainer.evaluate()["eval_alignment"]
    assert alignment < 0.5
    assert "it has drifted from the metric" in caplog.text


def test_without_a_metric_nothing_is_measured(tmp_path):
    trainer = make_trainer(tmp_path, surrogate=SurrogateForClassification.for_metric("accuracy"))
    assert "eval_alignment" not in trainer.evaluate()


@pytest.mark.parametrize(
    ("name", "options"),
    [("accuracy", {}), ("f1", {"average": "macro"}), ("pck", {"alpha": 0.1}), ("sacrebleu", {}), ("rougeL", {}),
     ("squad_f1", {}), ("top_k_accuracy", {"k": 3}), ("f1", {"labels": [0, 2], "average": "micro"})],
)  # fmt: skip
def test_a_metric_is_known_by_its_signature(name, options):
    metric = load_metric(name, **options)
    assert metric_of(metric.signature) == metric


@pytest.mark.parametrize("signature", [None, "", "nonsense|k:v", "f1|average:nonsense", "sacrebleu|sacrebleu:0.0.1"])
def test_other_signatures_are_of_no_metric(signature):
    assert metric_of(signature) is None


def test_it_is_measured_in_a_resumed_run_too(tmp_path):
    options = {"metric": "accuracy", "surrogate_warmup": 30, "eval_strategy": "epoch", "save_strategy": "epoch"}
    whole = make_trainer(tmp_path, **options)
    whole.train()
    resumed = make_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-60"))
    assert logged(resumed, "eval_alignment") == logged(whole, "eval_alignment")
    assert len(logged(whole, "eval_alignment")) == 4


def test_a_key_of_compute_metrics_is_no_metric_to_watch_for(tmp_path):
    with pytest.raises(ValueError, match="no key of compute_metrics"):
        make_trainer(tmp_path, surrogate=SurrogateForClassification.for_metric("accuracy"), metric="my_key")


def test_a_metric_that_fails_costs_a_warning_not_the_evaluation(tmp_path, caplog):
    def failing(predictions, references):
        raise ZeroDivisionError("no use")

    trainer = make_trainer(tmp_path, surrogate=SurrogateForClassification.for_metric("accuracy"), metric=failing)
    with caplog.at_level(logging.WARNING, logger="hf_reloss"):
        assert "eval_accuracy" in trainer.evaluate()
    assert "could not be measured" in caplog.text


def test_a_batch_in_which_nothing_counts_is_passed_over(tmp_path):
    surrogate = SurrogateForClassification.for_metric("accuracy")
    trainer = make_trainer(tmp_path, surrogate=surrogate, model_loss_share=0.5, per_device_train_batch_size=2)
    for row in trainer.train_dataset[::2] + trainer.train_dataset[1:60:2]:
        row["labels"] = torch.tensor(-100)
    trainer.train()
    assert all(weight.isfinite().all() for weight in trainer.model.state_dict().values())


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_no_bar_tears_that_of_the_run(tmp_path, capsys, monkeypatch, disable_tqdm):
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_progress_bar()
    try:
        trainer = make_trainer(
            tmp_path, surrogate="auto", metric=lambda decided, labels: float((decided == labels).mean()),
            save_strategy="steps", save_steps=40, disable_tqdm=disable_tqdm, compute_metrics=None,
        )  # fmt: skip
        capsys.readouterr()
        trainer.train()
        trainer.surrogate.save_pretrained(tmp_path / "saved")
        AutoSurrogate.from_pretrained(tmp_path / "saved")
        shown = capsys.readouterr().err
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.disable_progress_bar()
    assert "shards" not in shown
    assert "Loading weights" not in shown
    if disable_tqdm:
        assert "scoring" not in shown
