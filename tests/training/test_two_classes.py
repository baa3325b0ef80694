"""With two classes every way to train works as with more."""

import math

import pytest
import torch

from hf_reloss import (
    AdaptiveLossTrainer,
    ReLossTrainer,
    ReLossTrainingArguments,
    SurrogateTrainer,
    load_metric,
)

from ..conftest import TinyClassifier, tiny_rows
from ..losses.test_two_classes import EMBEDDINGS, HAND_MADE, LEARNED, fresh


def make_trainer(folder, kind=ReLossTrainer, model=None, **options):
    passed = {name: options.pop(name) for name in ("surrogate", "metric", "loss") if name in options}
    args = ReLossTrainingArguments(
        str(folder), **{
            "max_steps": 24, "per_device_train_batch_size": 16, "learning_rate": 0.1, "save_strategy": "no",
            "logging_steps": 5, "disable_tqdm": True, "use_cpu": True, "seed": 3,
        } | options,
    )  # fmt: skip
    return kind(
        model or TinyClassifier(classes=2), args, train_dataset=tiny_rows(300, classes=2),
        eval_dataset=tiny_rows(150, classes=2, seed=1), **passed,
    )  # fmt: skip


def assert_it_learns(trainer) -> None:
    trainer.train()
    assert all(weight.isfinite().all() for weight in trainer.model.state_dict().values())
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses
    assert all(map(math.isfinite, losses))
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    rows = tiny_rows(300, classes=2, seed=2)
    features, labels = (torch.stack([row[name] for row in rows]) for name in ("features", "labels"))
    with torch.no_grad():
        outputs = trainer.model.eval()(features)
    score = (
        load_metric("accuracy").compute(outputs.logits, labels)
        if "logits" in outputs
        else load_metric("recall_at_k").compute(outputs.embeddings, labels)
    )
    assert score > 0.85


@pytest.mark.parametrize("name", ["margin", "counts of f1 binary", "counts of a mixture", *HAND_MADE])
def test_a_model_learns_on_a_given_loss(tmp_path, name):
    surrogate = fresh(name) if name in LEARNED or name == "class_correlation" else name
    assert_it_learns(make_trainer(tmp_path, surrogate=surrogate, metric="accuracy"))


@pytest.fixture
def few_groups(monkeypatch):
    """Surrogates are learned from fewer groups, in less time."""
    init = SurrogateTrainer.__init__

    def shortened(self, model, args, **options):
        args.num_groups, args.num_eval_groups, args.num_train_epochs = 512, 128, 4
        init(self, model, args, **options)

    monkeypatch.setattr(SurrogateTrainer, "__init__", shortened)


@pytest.mark.usefixtures("few_groups")
@pytest.mark.parametrize("metric", ["accuracy", "f1", "average_precision"])
def test_a_surrogate_is_learned_in_a_run(tmp_path, metric):
    trainer = make_trainer(tmp_path, surrogate="auto", metric=metric, surrogate_warmup=20, max_steps=40)
    assert_it_learns(trainer)
    assert trainer.surrogate.config.record["alignment"] > 0.8
    assert all(parameter.isfinite().all() for parameter in trainer.surrogate.parameters())


@pytest.mark.usefixtures("few_groups")
def test_the_metric_is_approximated_in_a_run(tmp_path):
    trainer = make_trainer(tmp_path, surrogate="approximation", metric="f1", surrogate_warmup=15, max_steps=29)
    assert_it_learns(trainer)
    assert trainer.surrogate.config.architecture == "set"


@pytest.mark.parametrize("loss", [None, "class_correlation", *EMBEDDINGS])
def test_a_controller_adapts_the_loss_in_a_run(tmp_path, loss):
    model, metric = None, "accuracy"
    if loss in EMBEDDINGS:
        pytest.importorskip("pytorch_metric_learning")
        from ..losses.test_metric_learning import TinyEmbedder

        model, metric = TinyEmbedder(), "recall_at_k"
    trainer = make_trainer(
        tmp_path, AdaptiveLossTrainer, model, loss=loss, metric=metric, adapt_steps=5, surrogate_warmup=0.0
    )
    assert_it_learns(trainer)
    assert len(trainer.strategy.rewards) == 3
    assert all(values.isfinite().all() for _, values in trainer.strategy.history)


def test_a_controller_is_named_by_a_word(tmp_path):
    trainer = make_trainer(tmp_path, surrogate="ala", metric="f1", adapt_steps=5)
    assert_it_learns(trainer)
    assert trainer.strategy.network.correlations.shape == (2, 2)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_model_learns_embeddings_of_two_classes(tmp_path, name):
    pytest.importorskip("pytorch_metric_learning")
    from ..losses.test_metric_learning import TinyEmbedder

    assert_it_learns(make_trainer(tmp_path, model=TinyEmbedder(), surrogate=name))
