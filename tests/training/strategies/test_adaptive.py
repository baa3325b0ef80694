"""Training on a loss that a controller adapts."""

import itertools
import logging

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from hf_reloss import (
    AdaptiveLossTrainer,
    AutoSurrogate,
    LossController,
    ReLossTrainer,
    ReLossTrainingArguments,
    hand_made_loss,
)
from hf_reloss.compare.pictures import plot_correlations

from ...conftest import TinyClassifier, tiny_rows
from ...losses.test_metric_learning import TinyEmbedder, recall


def make_trainer(folder, kind=AdaptiveLossTrainer, model=None, train=None, validation=None, **options):
    settings = {
        name: options.pop(name) for name in ("surrogate", "metric", "validation_dataset", "loss") if name in options
    }
    torch.manual_seed(0)
    args = ReLossTrainingArguments(
        str(folder), **{
            "max_steps": 120, "adapt_steps": 10, "per_device_train_batch_size": 16, "learning_rate": 0.02,
            "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 3, "surrogate_warmup": 0.0, **options,
        },
    )  # fmt: skip
    return kind(
        model or TinyClassifier(dropout=0.1), args, train_dataset=train or tiny_rows(300),
        eval_dataset=tiny_rows(150, seed=1) if validation is None else validation, **{"metric": "accuracy"} | settings,
    )  # fmt: skip


def accuracy(trainer, rows) -> float:
    data = {key: torch.stack([row[key] for row in rows]) for key in ("features", "labels")}
    with torch.no_grad():
        return (trainer.model.eval()(data["features"]).logits.argmax(-1) == data["labels"]).float().mean().item()


def test_a_model_learns_on_it_and_the_loss_is_adapted(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    assert accuracy(trainer, tiny_rows(300, seed=2)) > 0.75
    steps = [step for step, _ in trainer.strategy.history]
    assert steps == list(range(0, 121, 10))
    for (_, before), (_, after) in zip(trainer.strategy.history, trainer.strategy.history[1:], strict=False):
        assert ((after - before).abs() < 0.1001).all()
        assert not torch.equal(before, after)
    assert trainer.strategy.history[0][1].tolist() == [1, 0, 0, 0, 1, 0, 0, 1, 0, 1]
    assert torch.equal(trainer.strategy.network.values(), trainer.strategy.history[-1][1])
    rewards = [log["adaptation/reward"] for log in trainer.state.log_history if "adaptation/reward" in log]
    assert rewards == trainer.strategy.rewards
    assert len(rewards) == 11
    assert rewards[0] == 1  # from what an untrained model gets


def test_half_of_the_run_is_on_cross_entropy_unless_told_otherwise(tmp_path):
    trainer = make_trainer(tmp_path, surrogate_warmup=None, logging_steps=20)
    seen = []
    predictions = trainer.strategy._predictions
    trainer.strategy._predictions = lambda: seen.append(trainer.state.global_step) or predictions()
    trainer.train()
    assert [step for step, _ in trainer.strategy.history] == [0, *range(60, 121, 10)]
    assert seen == [0, *range(42, 121, 2)]  # 10 readings are in the first state
    on = [log["step"] for log in trainer.state.log_history if "loss/model" in log]
    assert on == [20, 40, 60]


@pytest.mark.parametrize(("steps", "every"), [(20_000, 200), (800, 20), (40, 5)])
def test_actions_are_200_steps_apart_or_less_in_a_short_run(tmp_path, steps, every):
    trainer = make_trainer(tmp_path, adapt_steps=None)
    trainer.state.max_steps = steps
    trainer.strategy.begin()
    assert trainer.strategy.every == every


def test_the_reward_is_the_sign_of_the_errors_fall(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.strategy.begin()
    rewards = []
    for errors in ([0.5, 0.5], [0.4, 0.5], [0.2, 0.6], [0.6, 0.2], [0.6, 0.2]):
        trainer.strategy.errors = errors
        trainer.strategy._act(10, 0.5)
        rewards = trainer.strategy.rewards
    # Discounted by 0.9: 0.5, 0.453, 0.411, 0.389, 0.389.
    assert rewards == [1.0, 1.0, 1.0, 0.0]
    trainer.strategy.errors = [0.3, 0.5]
    trainer.strategy._act(10, 0.5)
    assert trainer.strategy.rewards[-1] == -1.0


def test_its_correlations_can_be_drawn(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    trainer.train()
    plot_correlations(tmp_path / "phi.png", trainer.strategy.history, ["ant", "bee", "cow", "dog"])
    picture = imread(tmp_path / "phi.png")
    assert picture.shape[1] > 1000
    assert picture.std() > 0.05
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    plot_correlations(tmp_path / "phi.png", trainer.strategy.history, ["ant", "bee", "cow", "dog"], shown=3)
    lines = drawn[0].axes[0].get_legend_handles_labels()
    most = int((trainer.strategy.history[-1][1] - trainer.strategy.history[0][1]).abs().argmax())
    i, j = torch.triu_indices(4, 4)[:, most].tolist()
    names = ["ant", "bee", "cow", "dog"]
    assert len(lines[1]) == 3
    assert lines[1][0] == (names[i] if i == j else f"{names[i]} and {names[j]}")


@pytest.mark.parametrize("checkpoint", [40, 95])
def test_a_run_that_is_resumed_is_one_that_was_not_broken(tmp_path, checkpoint):
    unbroken = make_trainer(tmp_path / "unbroken", save_strategy="steps", save_steps=checkpoint)
    unbroken.train()
    resumed = make_trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "unbroken" / f"checkpoint-{checkpoint}"))
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert torch.equal(unbroken.strategy.network.correlations, resumed.strategy.network.correlations)
    assert unbroken.strategy.rewards == resumed.strategy.rewards
    for one, two in zip(
        unbroken.strategy.controller.parameters(), resumed.strategy.controller.parameters(), strict=True
    ):
        assert torch.equal(one, two)


def test_a_checkpoint_of_another_loss_is_refused(tmp_path):
    make_trainer(
        tmp_path, kind=ReLossTrainer, surrogate="focal", save_strategy="steps", save_steps=60, max_steps=60
    ).train()
    with pytest.raises(ValueError, match="was not trained on surrogate='ala'"):
        make_trainer(tmp_path / "other").train(resume_from_checkpoint=str(tmp_path / "checkpoint-60"))


def test_a_controller_goes_on_with_another_model(tmp_path):
    first = make_trainer(tmp_path)
    first.train()
    first.save_model(str(tmp_path / "saved"))
    assert AutoSurrogate.from_pretrained(tmp_path / "saved" / "surrogate").config.architecture == "class_correlation"
    controller = LossController.from_pretrained(tmp_path / "saved" / "controller")
    second = make_trainer(
        tmp_path / "second", kind=ReLossTrainer, surrogate=controller, model=TinyClassifier(classes=3),
        train=tiny_rows(200, classes=3), validation=tiny_rows(90, classes=3, seed=1),
    )  # fmt: skip
    second.train()
    assert second.strategy.network.correlations.shape == (3, 3)
    assert second.strategy.controller is controller


def test_any_trainer_takes_it_by_name_and_any_metric_rewards_it(tmp_path):
    by_name = make_trainer(tmp_path, kind=ReLossTrainer, surrogate="ala")
    by_name.train()
    own = make_trainer(tmp_path)
    own.train()
    assert torch.equal(by_name.strategy.network.correlations, own.strategy.network.correlations)
    other = make_trainer(tmp_path, metric="matthews_correlation")
    other.train()
    assert len(other.strategy.rewards) == 11


def test_the_validation_data_may_be_other_than_what_is_evaluated(tmp_path):
    trainer = make_trainer(tmp_path, validation_dataset=tiny_rows(60, seed=5), validation=tiny_rows(100, seed=1))
    assert len(trainer.strategy.dataset) == 60
    assert len(trainer.eval_dataset) == 100
    args = ReLossTrainingArguments(str(tmp_path), use_cpu=True)
    alone = AdaptiveLossTrainer(
        TinyClassifier(), args, train_dataset=tiny_rows(60), validation_dataset=tiny_rows(30), metric="accuracy"
    )
    assert alone.eval_dataset is None
    assert len(alone.adaptation.dataset) == 30


def test_a_reward_that_is_constant_is_told_of(tmp_path, caplog):
    rows = tiny_rows(80, seed=1)
    with caplog.at_level(logging.WARNING, logger="hf_reloss"):
        trainer = make_trainer(tmp_path, validation=rows, metric=lambda predictions, references: 0.5)
        trainer.train()
    assert not any(trainer.strategy.rewards)
    assert caplog.text.count("there is nothing to adapt it by") == 1
    assert accuracy(trainer, tiny_rows(300, seed=2)) > 0.75


def test_validation_data_without_a_class_is_told_of_and_works(tmp_path, caplog):
    rows = [row for row in tiny_rows(150, seed=1) if row["labels"] != 2]
    with caplog.at_level(logging.WARNING, logger="hf_reloss"):
        trainer = make_trainer(tmp_path, validation=rows)
        trainer.train()
    assert caplog.text.count("no example of the classes [2]") == 1
    assert all(reading.isfinite().all() for reading in trainer.strategy.readings)
    assert accuracy(trainer, tiny_rows(300, seed=2)) > 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": {"one": []}}, "pass eval_dataset="),
        ({"adapt_steps": 3}, "at least 5"),
        ({"metric": "no metric"}, "no metric"),
        ({"metric": None}, "rewards its controller by a metric"),
        (
            {
                "load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps",
                "loss": hand_made_loss("class_correlation", classes=4),
            },
            "set metric_for_best_model",
        ),
        ({"loss": "focal"}, "one of class_correlation, margin_loss, triplet, or .* but got 'focal'"),
        ({"loss": hand_made_loss("focal")}, "but got 'focal'"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)


@pytest.mark.parametrize("loss", ["triplet", "margin_loss"])
def test_losses_of_embeddings_are_adapted_from_the_start(tmp_path, loss):
    pytest.importorskip("pytorch_metric_learning")
    options = {"metric": "recall_at_k", "surrogate_warmup": None}
    trainer = make_trainer(tmp_path, model=TinyEmbedder(), loss=loss, save_strategy="steps", save_steps=55, **options)
    trainer.train()
    assert recall(trainer.model, tiny_rows(300, seed=2)) > 0.7
    history = trainer.strategy.history
    assert [step for step, _ in history] == list(range(0, 121, 10))
    start = hand_made_loss(loss).network
    assert torch.equal(history[0][1], start.values())
    assert all(((after - before).abs() < 0.1001).all() for (_, before), (_, after) in itertools.pairwise(history))
    assert torch.equal(trainer.strategy.network.values(), history[-1][1])
    assert not torch.equal(start.values(), history[-1][1])
    assert len(trainer.strategy.rewards) == 11
    resumed = make_trainer(tmp_path / "resumed", model=TinyEmbedder(), loss=loss, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-55"))
    assert torch.equal(resumed.model.projection.weight, trainer.model.projection.weight)
    assert torch.equal(resumed.strategy.network.values(), history[-1][1])


def test_a_loss_may_have_options_of_its_own_and_the_controller_be_one_of_classes(tmp_path):
    first = make_trainer(tmp_path)
    first.train()
    options = {"model": TinyClassifier(), "surrogate": first.strategy.controller}
    loss = hand_made_loss("class_correlation", classes=4, floor=0.05)
    second = make_trainer(tmp_path / "second", loss=loss, **options)
    second.train()
    assert second.surrogate.network.floor == 0.05
    assert len(second.strategy.rewards) == 11


def test_validation_data_without_a_batch_is_told(tmp_path):
    trainer = make_trainer(tmp_path, validation=tiny_rows(5), dataloader_drop_last=True)
    with pytest.raises(ValueError, match="gives no batch: with dataloader_drop_last=True"):
        trainer.train()


@pytest.mark.parametrize("loss", [None, "given"])
def test_each_call_of_train_is_a_run_of_its_own(tmp_path, loss):
    """As in a search for hyperparameters, where model_init makes a fresh model for each."""
    loss = loss and hand_made_loss("class_correlation", classes=4, floor=0.05)
    options = {} if loss is None else {"loss": loss}
    trainer = make_trainer(tmp_path, max_steps=40, kind=AdaptiveLossTrainer, **options)
    trainer.model_init = lambda: TinyClassifier(dropout=0.1)
    found = []
    for _ in range(2):
        trainer.train()
        found.append((trainer.strategy.rewards, [values for _, values in trainer.strategy.history]))
    assert found[0][0] == found[1][0]
    assert len(found[0][1]) == 5
    assert all(torch.equal(one, two) for one, two in zip(found[0][1], found[1][1], strict=True))


def test_it_goes_on_from_a_checkpoint_that_holds_the_model_only(tmp_path):
    whole = make_trainer(tmp_path / "whole", save_strategy="steps", save_steps=60, save_only_model=True)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-60"))
    steps = [step for step, _ in whole.strategy.history]
    assert [step for step, _ in resumed.strategy.history] == steps
    for (_, one), (_, two) in zip(whole.strategy.history[:6], resumed.strategy.history[:6], strict=True):
        assert torch.equal(one, two)


def test_a_second_run_adapts_the_loss_that_was_given_also_after_a_best_model_of_the_warm_up(tmp_path):
    given = hand_made_loss("class_correlation", classes=4)
    trainer = make_trainer(tmp_path, loss=given, surrogate_warmup=0.5, max_steps=20, adapt_steps=5)
    trainer.train()
    trainer.has_best_model, trainer.state.best_global_step = True, 5
    trainer.strategy.end(tmp_path / "checkpoint-5")
    assert trainer.surrogate is None  # that model has been trained on its own loss alone
    trainer.train()
    assert len(trainer.strategy.history) > 1
