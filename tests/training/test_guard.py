"""The guard: a loss that harms is given up, a strict one keeps the better of two runs, and a report says so."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator, set_seed

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, load_metric
from hf_reloss.compare.task import DigitClassifier, digits
from hf_reloss.surrogates.classification import SurrogateForClassification
from hf_reloss.training.strategies.learned import Learned

from ..conftest import TinyClassifier, tiny_rows


class Harmful(SurrogateForClassification):
    """A loss that unlearns what the model knows."""

    def forward(self, *args, **kwargs):
        return -3.0 * super().forward(*args, **kwargs)


class HarmfulStrategy(Learned):
    """What is learned turns out to be harmful, whatever its alignment says."""

    word = "harmful"

    def go_on_with(self, learned, soft_metric):
        harmful = Harmful(learned.config)
        harmful.load_state_dict(learned.state_dict())
        super().go_on_with(harmful, None)


TRAIN, OTHERS = digits()


def made(folder, strategy="auto", kind=ReLossTrainer, epochs=6, seed=0, **options):
    settings = {"num_train_epochs": epochs, "per_device_train_batch_size": 32, "learning_rate": 5e-3, "seed": seed}
    settings |= {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "report_to": "none"}
    arguments = ReLossTrainingArguments if kind is ReLossTrainer else TrainingArguments
    given = {"surrogate": strategy, "metric": None if isinstance(strategy, Learned) else "accuracy"}
    given = given | options.pop("given", {}) if kind is ReLossTrainer else {}
    set_seed(seed)
    settings |= options.pop("settings", {})
    return kind(DigitClassifier(), arguments(str(folder), **settings), train_dataset=TRAIN,
                eval_dataset=OTHERS[:500], **given, **options)  # fmt: skip


def weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_a_loss_that_harms_is_given_up_and_the_model_is_that_of_the_usual_loss(tmp_path):
    usual = made(tmp_path / "usual", kind=Trainer)
    usual.train()
    trainer = made(tmp_path / "auto", HarmfulStrategy("accuracy"), settings={"tune_decision": False})
    output = trainer.train()
    report = trainer.loss_report
    assert report.loss
    assert not report.kept
    assert report.over == "before"
    assert report.gain.high < 0
    assert report.cost == pytest.approx(1.07, abs=0.02)
    assert report.verdict.startswith(
        "VERDICT: kept the model's own loss (the first steps on the learned surrogate for acc"
    )
    assert torch.equal(weights(trainer.model), weights(usual.model))
    assert output.global_step == trainer.state.global_step == trainer.state.max_steps
    assert not (tmp_path / "auto" / "_own_loss").exists()  # what was kept to go back to is gone


def test_strict_keeps_the_usual_loss_to_the_bit_where_that_is_better(tmp_path):
    usual = made(tmp_path / "usual", kind=Trainer)
    usual.train()
    trainer = made(tmp_path / "auto", HarmfulStrategy("accuracy"), guard="strict", settings={"tune_decision": False})
    trainer.train()
    report = trainer.loss_report
    assert report.over == "own loss"
    assert not report.kept
    assert report.gain.high < 0
    assert 1.5 < report.cost <= 1.6 + 1 / trainer.state.max_steps
    assert "would have changed it: " in report.verdict
    assert torch.equal(weights(trainer.model), weights(usual.model))
    trainer.save_model()
    assert not (tmp_path / "auto" / "surrogate").exists()


def test_strict_keeps_the_surrogate_where_that_is_better(tmp_path):
    """The usual loss unlearns from the step on from which the surrogate is the loss."""

    def usual_loss(outputs, labels, num_items_in_batch=None):
        loss = F.cross_entropy(outputs["logits"], labels)
        return -3.0 * loss if trainer.state.global_step >= 31 and trainer.is_in_train else loss

    trainer = made(tmp_path / "alone", guard=False, settings={"surrogate_warmup": 31}, compute_loss_func=usual_loss)
    trainer.train()
    alone = trainer
    trainer = made(tmp_path / "auto", guard="strict", compute_loss_func=usual_loss, settings={"save_strategy": "epoch"})
    trainer.train()
    report = trainer.loss_report
    assert report.kept
    assert report.gain.low > 0
    assert "gained over the model's own loss: " in report.verdict
    assert torch.equal(weights(trainer.model), weights(alone.model))
    assert trainer.state.global_step == trainer.state.max_steps == 78
    last = safetensors.torch.load_file(tmp_path / "auto" / "checkpoint-78" / "model.safetensors")
    assert all(torch.equal(last[name], value) for name, value in trainer.model.state_dict().items())
    trainer.save_model()
    assert (tmp_path / "auto" / "surrogate").is_dir()


def test_strict_keeps_the_checkpoints_of_the_first_run_if_the_second_fails(tmp_path):
    def usual_loss(outputs, labels, num_items_in_batch=None):
        if trainer.strategy.state.gave_up and trainer.state.global_step > 60:
            raise RuntimeError("out of memory")
        return F.cross_entropy(outputs["logits"], labels)

    trainer = made(tmp_path, guard="strict", compute_loss_func=usual_loss, settings={"save_strategy": "epoch"})
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in range(13, 79, 13)}
    assert (tmp_path / "checkpoint-52" / "surrogate").is_dir()  # of the first


def test_a_run_that_is_resumed_after_its_loss_had_changed_says_so(tmp_path):
    whole = made(tmp_path, guard=False, settings={"save_strategy": "steps", "save_steps": 60, "tune_decision": False})
    whole.train()
    assert whole.loss_report.verdict.endswith("unjudged: guard=False")
    (tmp_path / "checkpoint-60" / "guard_state.json").unlink()  # as of a version that had no guard
    resumed = made(tmp_path, settings={"tune_decision": False})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-60"))
    assert resumed.loss_report.kept
    assert resumed.loss_report.verdict.endswith("unjudged: the run was resumed after its loss had changed")


def test_without_development_data_it_says_so_before_and_after(tmp_path, capsys):
    """Without a bar it is printed, as the log is."""
    trainer = made(tmp_path)
    trainer.eval_dataset = None
    trainer.train()
    printed = capsys.readouterr()
    first, last = (printed.out.index(part) for part in ("Nothing will judge another loss than", "VERDICT: "))
    assert first < last
    assert "scoring" not in printed.err
    assert trainer.loss_report.gain is None
    assert "unjudged: there is no eval_dataset or guard_dataset" in trainer.loss_report.verdict
    assert trainer.loss_report.decision is None


def test_guard_dataset_judges_and_the_decision_is_tuned_on_it(tmp_path):
    trainer = made(tmp_path, guard_dataset=OTHERS[500:900])
    trainer.train()
    assert trainer.loss_report.data == "guard_dataset"
    assert 80 <= trainer.loss_report.gain.examples <= 400
    assert trainer.loss_report.decision.examples == 400
    assert "the decision" in trainer.loss_report.verdict


def test_the_users_own_checkpoints_and_log_are_as_they_were(tmp_path):
    class Saved(TrainerCallback):
        def __init__(self):
            self.folders = []

        def on_save(self, args, state, control, **kwargs):
            self.folders.append(sorted(path.name for path in Path(args.output_dir).iterdir()))

    saved = Saved()
    trainer = made(
        tmp_path, HarmfulStrategy("accuracy"), callbacks=[saved],
        settings={"save_strategy": "epoch", "save_total_limit": 2, "eval_strategy": "epoch"},
    )  # fmt: skip
    trainer.train()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-65", "checkpoint-78"]
    steps = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert steps == sorted(set(steps))
    assert not (tmp_path / names[1] / "surrogate").exists()


@pytest.mark.parametrize("options", [{"guard": "strict"}, {"guard_dataset": tiny_rows(100)}])
def test_a_given_surrogate_is_not_guarded(tmp_path, options):
    with pytest.raises(ValueError, match="are for surrogate='auto'"):
        ReLossTrainer(TinyClassifier(), ReLossTrainingArguments(str(tmp_path)), surrogate="focal", **options)


def test_a_wrong_word_is_refused(tmp_path):
    with pytest.raises(ValueError, match="guard= is True, False or 'strict'"):
        ReLossTrainer(TinyClassifier(), ReLossTrainingArguments(str(tmp_path)), metric="accuracy", guard="srict")


def test_a_metric_of_somebody_own_judges_too(tmp_path):
    def mean_distance(predictions, references):
        return float(abs(predictions - references).mean())

    trainer = made(tmp_path, given={"metric": load_metric(mean_distance, higher_is_better=False)})
    trainer.train()
    report = trainer.loss_report
    assert report.metric == "mean_distance"
    assert report.decision is not None
    assert math.isfinite(report.decision.after)


def test_a_key_of_compute_metrics_judges_too(tmp_path):
    def compute_metrics(prediction):
        return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    trainer = made(tmp_path, given={"metric": "right"}, compute_metrics=compute_metrics)
    trainer.train()
    assert trainer.loss_report.metric == "right"
    assert trainer.loss_report.decision is not None


@pytest.mark.parametrize("has_a_generator", [False, True])
def test_labels_that_a_collator_draws_are_the_same_before_and_after_or_nothing_is_judged(tmp_path, has_a_generator):
    generator = torch.Generator().manual_seed(0) if has_a_generator else None

    def collate(rows):
        batch = default_data_collator(rows)
        left_out = torch.rand(len(rows), generator=generator) < 0.3  # as words that are not masked
        return batch | {"labels": batch["labels"].masked_fill(left_out, -100)}

    trainer = made(tmp_path, data_collator=collate)
    trainer.train()
    report = trainer.loss_report
    assert report.kept
    if has_a_generator:
        assert report.gain is None
        assert "labels differ from one evaluation to the next" in report.reason
    else:
        assert 300 < report.gain.examples < 400
