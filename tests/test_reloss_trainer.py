import json
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss import (
    AutoSurrogate,
    MisalignedSurrogateError,
    ReLossTrainer,
    ReLossTrainingArguments,
    SurrogateConfig,
    SurrogateForClassification,
    load_metric,
)
from hf_reloss.surrogates.classification import GENERAL_SCORES

from .conftest import TinyClassifier, tiny_rows
from .surrogates.test_classification import surrogate_with_random_weights


def accuracy(evaluation) -> dict[str, float]:
    return {"accuracy": float((evaluation.predictions.argmax(-1) == evaluation.label_ids).mean())}


def make_trainer(
    folder, trainer_class=ReLossTrainer, args_class=ReLossTrainingArguments, model=None, **options
) -> Trainer:
    trainer_options = {
        name: options.pop(name)
        for name in (
            "surrogate",
            "metric",
            "compute_loss_func",
            "callbacks",
            "compute_metrics",
            "preprocess_logits_for_metrics",
        )
        if name in options
    }
    settings = {
        "num_train_epochs": 4, "per_device_train_batch_size": 8, "learning_rate": 0.01, "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 5, "seed": 3,
    } | options  # fmt: skip
    torch.manual_seed(0)
    return trainer_class(
        model=model or TinyClassifier(dropout=0.1),
        args=args_class(str(folder), **settings),
        train_dataset=tiny_rows(240),
        eval_dataset=tiny_rows(100, seed=1),
        **({"compute_metrics": accuracy} | trainer_options),
    )


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The gradients with which the first optimizer step is made."""
    seen = {}

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if not seen:
                seen.update({name: p.grad.clone() for name, p in model.named_parameters()})

    trainer.add_callback(Spy())
    trainer.train()
    return seen


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert torch.equal(weight, two[name]), name


@pytest.mark.parametrize("args_class", [TrainingArguments, ReLossTrainingArguments])
def test_the_loss_is_the_surrogates(tmp_path, args_class):
    surrogate = surrogate_with_random_weights(0)
    trainer = make_trainer(tmp_path, args_class=args_class, surrogate=surrogate)
    batch = {name: torch.stack([row[name] for row in tiny_rows(8)]) for name in ("features", "labels")}
    trainer.model.eval()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert loss == surrogate(outputs.logits, batch["labels"])
    measured = trainer.evaluate()
    rows = tiny_rows(100, seed=1)
    logits = trainer.model(torch.stack([row["features"] for row in rows])).logits
    labels = torch.stack([row["labels"] for row in rows])
    assert measured["eval_accuracy"] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    each = [surrogate(part, wanted).item() for part, wanted in zip(logits.split(8), labels.split(8), strict=True)]
    sizes = [len(part) for part in labels.split(8)]
    assert measured["eval_loss"] == pytest.approx(np.average(each, weights=sizes), abs=1e-4)


def test_training_lowers_it_and_the_surrogate_stays_as_it_is(tmp_path):
    surrogate = SurrogateForClassification(SurrogateConfig())
    before = {name: weight.clone() for name, weight in surrogate.state_dict().items()}
    trainer = make_trainer(tmp_path, surrogate=surrogate)
    start = trainer.evaluate()
    trainer.train()
    end = trainer.evaluate()
    assert end["eval_loss"] < start["eval_loss"]
    assert end["eval_accuracy"] > start["eval_accuracy"] + 0.2
    assert_same(before, surrogate.state_dict())
    assert not any(parameter.requires_grad for parameter in surrogate.parameters())


def test_accumulated_gradients_equal_those_of_the_whole_batch(tmp_path):
    surrogate = surrogate_with_random_weights(1)
    model = TinyClassifier()  # without dropout, whose noise depends on the batches
    whole = gradients(make_trainer(tmp_path, model=deepcopy(model), surrogate=surrogate, max_grad_norm=0))
    parts = gradients(
        make_trainer(
            tmp_path, model=deepcopy(model), surrogate=surrogate, max_grad_norm=0,
            per_device_train_batch_size=2, gradient_accumulation_steps=4,
        )
    )  # fmt: skip
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_share_mixes_the_models_own_loss_in(tmp_path):
    surrogate = surrogate_with_random_weights(2)
    batch = {name: torch.stack([row[name] for row in tiny_rows(8)]) for name in ("features", "labels")}
    trainer = make_trainer(tmp_path, surrogate=surrogate, model_loss_share=0.25)
    trainer.model.eval()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    own = F.cross_entropy(outputs.logits, batch["labels"])
    torch.testing.assert_close(loss, 0.75 * surrogate(outputs, batch["labels"]) + 0.25 * own)


def test_a_loss_function_of_the_users_own_is_the_models_own_loss(tmp_path):
    def squared(outputs, labels, num_items_in_batch=None):
        return (outputs.logits - F.one_hot(labels, 4)).square().mean()

    surrogate = surrogate_with_random_weights(2)
    batch = {name: torch.stack([row[name] for row in tiny_rows(8)]) for name in ("features", "labels")}
    trainer = make_trainer(tmp_path, surrogate=surrogate, model_loss_share=0.5, compute_loss_func=squared)
    trainer.model.eval()
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    expected = 0.5 * surrogate(outputs, batch["labels"]) + 0.5 * squared(outputs, batch["labels"])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (0.25, 30), (17, 17)])
def test_a_warmup_is_trained_on_the_models_own_loss(tmp_path, warmup, steps):
    calls = []

    class Listening(SurrogateForClassification):
        def forward(self, *args, **kwargs):
            calls.append(1)
            return super().forward(*args, **kwargs)

    trainer = make_trainer(tmp_path, surrogate=Listening(SurrogateConfig()), surrogate_warmup=warmup)
    trainer.train()
    assert len(calls) == 120 - steps


def test_a_model_without_a_loss_of_its_own_is_trained(tmp_path):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 4)

        def forward(self, features, labels=None):
            return SequenceClassifierOutput(logits=self.head(features))

    trainer = make_trainer(tmp_path, model=Bare(), surrogate=SurrogateForClassification(SurrogateConfig()))
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.5


def test_evaluation_and_prediction_without_labels_work(tmp_path):
    trainer = make_trainer(tmp_path, surrogate=SurrogateForClassification(SurrogateConfig()))
    unlabelled = [{"features": row["features"]} for row in tiny_rows(10)]
    assert "eval_loss" not in trainer.evaluate(unlabelled)
    assert trainer.predict(unlabelled).predictions.shape == (10, 4)


def test_labels_of_another_name_are_found(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = TinyClassifier()

        def forward(self, features, intent=None):
            return self.inner(features, intent)

    rows = [{"features": row["features"], "intent": row["labels"]} for row in tiny_rows(40)]
    args = ReLossTrainingArguments(str(tmp_path), label_names=["intent"], max_steps=3, save_strategy="no")
    surrogate = SurrogateForClassification(SurrogateConfig())
    trainer = ReLossTrainer(Named(), args, train_dataset=rows, eval_dataset=rows, surrogate=surrogate)
    trainer.train()
    assert "eval_loss" in trainer.evaluate()


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
    assert events == [30, 44, 58]  # 7 steps have too few predictions, 14 have enough
    assert caplog.text.count("stays as it was") == 2


@pytest.mark.parametrize(
    ("metric", "scores"),
    [
        (load_metric("f1", average="macro"), ["f1"]),
        ("matthews_correlation", ["matthews_correlation"]),
        (load_metric(lambda predictions, references: np.mean(predictions == references) ** 2, name="own"), None),
    ],
    ids=["f1", "matthews_correlation", "function"],
)
def test_auto_learns_the_soft_twin_of_a_metric_of_groups(tmp_path, metric, scores):
    trainer = make_trainer(tmp_path, metric=metric, surrogate_warmup=0.5)
    trainer.train()
    assert trainer.surrogate.config.architecture == "counts"
    assert list(trainer.surrogate.config.scores) == (scores or list(GENERAL_SCORES))
    assert trainer.surrogate.config.record["alignment"] > 0.5
    assert trainer.evaluate()["eval_accuracy"] > 0.6


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


def test_a_metric_that_is_constant_stops_auto_with_the_model_saved(tmp_path):
    trainer = make_trainer(
        tmp_path, metric="accuracy", compute_metrics=lambda evaluation: {"accuracy": 0.5}, surrogate_warmup=30
    )
    with pytest.raises(ValueError, match=r"is 0\.5 for all"):
        trainer.train()
    checkpoint = tmp_path / "checkpoint-30"
    assert (checkpoint / "model.safetensors").exists()
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 30
    mended = make_trainer(tmp_path, metric="accuracy", surrogate_warmup=30)
    mended.train(resume_from_checkpoint=str(checkpoint))
    assert mended.state.global_step == 120
    assert mended.surrogate is not None


def test_a_misaligned_surrogate_stops_auto_with_the_model_saved(tmp_path):
    def wrong_way_round(evaluation):
        return {"accuracy": -accuracy(evaluation)["accuracy"]}

    trainer = make_trainer(tmp_path, metric="accuracy", compute_metrics=wrong_way_round, surrogate_warmup=30)
    with pytest.raises(MisalignedSurrogateError, match="accuracy"):
        trainer.train()
    assert (tmp_path / "checkpoint-30" / "model.safetensors").exists()


def test_the_best_checkpoint_is_chosen_by_the_users_metric(tmp_path):
    trainer = make_trainer(
        tmp_path, surrogate=SurrogateForClassification(SurrogateConfig()), eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="accuracy",
    )  # fmt: skip
    trainer.train()
    seen = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert trainer.state.best_metric == max(seen)
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(max(seen))


def test_each_run_learns_its_own_surrogate(tmp_path):
    trainer = make_trainer(tmp_path, metric="accuracy", surrogate_warmup=0.5)
    trainer.train()
    first = trainer.surrogate
    trainer.train()
    assert trainer.surrogate is not first
    assert trainer.surrogate.config.record["predictions"] == 0.8 * 480
    assert trainer.recorder.rows()["stage"].max() < 0.5


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


@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_models_that_put_out_no_dict_are_evaluated_whole(tmp_path, form):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 4)

        def forward(self, features, labels=None):
            logits = self.head(features)
            return logits if form == "tensor" else (logits, features)

    trainer = make_trainer(tmp_path, model=Plain(), surrogate=SurrogateForClassification(SurrogateConfig()))
    trainer.train()
    assert trainer.predict(tiny_rows(30)).predictions.shape == (30, 4)
    assert trainer.evaluate()["eval_accuracy"] > 0.5


def test_what_fails_in_compute_metrics_is_not_mistaken_for_a_missing_key(tmp_path, caplog):
    def broken(evaluation):
        return {}["x"]

    trainer = make_trainer(tmp_path, metric="accuracy", compute_metrics=broken, surrogate_warmup=30)
    with caplog.at_level("WARNING", logger="hf_reloss"), pytest.raises(KeyError, match="x"):
        trainer.train()
    assert "cannot score the first batch (KeyError('x'))" in caplog.text
    assert (tmp_path / "checkpoint-30").exists()


def test_auto_looks_at_the_first_batch_before_it_trains_on_more(tmp_path):
    trainer = make_trainer(tmp_path, metric="accuracy")
    trainer.train_dataset = [row | {"labels": row["labels"] * 2} for row in tiny_rows(80)]
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.mean()
    with pytest.raises(ValueError, match=r"0 to 3.*are not"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_bf16_trains(tmp_path):
    trainer = make_trainer(tmp_path, metric="accuracy", bf16=True, use_cpu=True, surrogate_warmup=0.5)
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.5
    assert next(trainer.surrogate.parameters()).dtype == torch.float32


def test_a_surrogate_is_loaded_from_its_folder(tmp_path):
    surrogate = surrogate_with_random_weights(5)
    surrogate.save_pretrained(tmp_path / "surrogate")
    trainer = make_trainer(tmp_path / "run", surrogate=str(tmp_path / "surrogate"))
    assert_same(trainer.surrogate.state_dict(), surrogate.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surrogate": "auto"}, "wants one"),
        ({"surrogate": nn.Linear(2, 2)}, "got Linear"),
        ({"surrogate": "auto", "metric": "accuracy", "label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ({"surrogate": "auto", "metric": "accuracy", "model_loss_share": 1.5}, "between 0 and 1"),
        ({"surrogate": "auto", "metric": "accuracy", "batch_eval_metrics": True}, "batch_eval_metrics"),
        ({"surrogate": "auto", "metric": "f7", "compute_metrics": None}, "Unknown metric 'f7'"),
        (
            {
                "surrogate": "auto", "metric": "accuracy", "load_best_model_at_end": True,
                "save_strategy": "epoch", "eval_strategy": "epoch",
            },
            "set metric_for_best_model",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_say_what_is_wanted(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)


def test_label_smoothing_with_a_given_surrogate_is_refused(tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        make_trainer(tmp_path, surrogate=SurrogateForClassification(SurrogateConfig()), label_smoothing_factor=0.1)


def test_batches_without_labels_cannot_be_trained_on(tmp_path):
    trainer = make_trainer(tmp_path, surrogate=SurrogateForClassification(SurrogateConfig()))
    trainer.train_dataset = [{"features": row["features"]} for row in tiny_rows(16)]
    with pytest.raises(ValueError, match=r"label_names is \['labels'\]"):
        trainer.train()


def test_a_surrogate_for_another_kind_of_model_is_refused_at_the_first_batch(tmp_path):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 4)

        def forward(self, features, labels=None):
            return SequenceClassifierOutput(logits=self.head(features[..., None]))

    trainer = make_trainer(tmp_path, model=Tagger(), surrogate=SurrogateForClassification(SurrogateConfig()))
    with pytest.raises(ValueError, match="one label per example"):
        trainer.train()


def test_a_named_metric_object_is_learned(tmp_path):
    trainer = make_trainer(tmp_path, metric=load_metric("accuracy"), surrogate_warmup=0.5)
    trainer.train()
    assert trainer.surrogate.config.metric == "accuracy"
