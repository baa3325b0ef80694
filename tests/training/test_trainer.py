from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, SurrogateConfig, SurrogateForClassification

from ..conftest import TinyClassifier, tiny_rows
from ..surrogates.test_classification import surrogate_with_random_weights


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


def test_the_best_checkpoint_is_chosen_by_the_users_metric(tmp_path):
    trainer = make_trainer(
        tmp_path, surrogate=SurrogateForClassification(SurrogateConfig()), eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="accuracy",
    )  # fmt: skip
    trainer.train()
    seen = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert trainer.state.best_metric == max(seen)
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(max(seen))


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
        ({"surrogate": nn.Linear(2, 2)}, r"takes a function of \(outputs, labels\)"),
        ({"surrogate": 7}, "got int"),
        ({"surrogate": "auto", "metric": "accuracy", "model_loss_share": 1.5}, "between 0 and 1"),
        ({"metric": "f7", "compute_metrics": None, "batch_eval_metrics": True}, "no key of what it returns"),
        ({"surrogate": "auto", "metric": "f7", "compute_metrics": None}, "Unknown metric 'f7'"),
        (
            {
                "surrogate": "auto", "metric": "accuracy", "load_best_model_at_end": True,
                "save_strategy": "epoch", "eval_strategy": "epoch", "metric_for_best_model": "loss/surrogate",
            },
            "a surrogate that stays what it is",
        ),
        ({"surrogate": "auto", "metric": "accuracy", "max_recorded_predictions": 200}, "320 or more"),
    ],
)  # fmt: skip
def test_bad_arguments_say_what_is_wanted(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)


def test_with_auto_the_own_loss_is_smoothed_as_a_trainers_is(tmp_path):
    options = {"label_smoothing_factor": 0.1, "max_steps": 6}
    models = [TinyClassifier(), TinyClassifier()]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model.config = PreTrainedConfig()  # which Trainer reads
    usual = make_trainer(tmp_path, Trainer, TrainingArguments, models[0], **options)
    learning = {"surrogate": "auto", "metric": "accuracy", "surrogate_warmup": 6}
    auto = make_trainer(tmp_path, model=models[1], **learning, **options)
    for trainer in (usual, auto):
        trainer.train()
    assert_same(weights(usual), weights(auto))
    assert auto.evaluate()["eval_loss"] == pytest.approx(usual.evaluate()["eval_loss"], rel=1e-5)


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
