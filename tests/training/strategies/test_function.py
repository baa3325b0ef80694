"""A loss that is any function or module of outputs and labels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, Trainer, TrainingArguments

from hf_reloss import ReLossTrainer, ReLossTrainingArguments

from ...conftest import TinyClassifier, tiny_rows


def mean(outputs, labels):
    return F.cross_entropy(outputs.logits, labels, ignore_index=-100)


def divided(outputs, labels, num_items_in_batch):
    return F.cross_entropy(outputs.logits, labels, ignore_index=-100, reduction="sum") / num_items_in_batch


class Criterion(nn.Module):
    def forward(self, outputs, labels):
        return mean(outputs, labels)


def trained(folder, kind=ReLossTrainer, batch=8, accumulation=1, rows=37, **options):
    arguments = TrainingArguments if kind is Trainer else ReLossTrainingArguments
    args = arguments(
        str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_train_epochs=2,
        learning_rate=0.1, optim="sgd", max_grad_norm=0, disable_tqdm=True, report_to="none", save_strategy="no",
        use_cpu=True, logging_steps=1,
    )  # fmt: skip
    torch.manual_seed(0)
    data = tiny_rows(rows)
    for row in data[::5]:
        row["labels"] = torch.tensor(-100)
    trainer = kind(TinyClassifier(), args, train_dataset=data, eval_dataset=tiny_rows(20, seed=1), **options)
    trainer.train()
    return trainer


def weights(trainer):
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])


@pytest.mark.parametrize("loss", [mean, divided, Criterion()], ids=["mean", "divided", "module"])
def test_a_step_is_the_mean_of_what_counts_in_it_however_it_is_divided(tmp_path, loss):
    whole = trained(tmp_path / "whole", batch=8, surrogate=loss)
    divided = trained(tmp_path / "divided", batch=2, accumulation=4, surrogate=loss)
    assert torch.allclose(weights(whole), weights(divided), atol=1e-6)
    stock = trained(tmp_path / "stock", Trainer)  # whose loss is the model's own, cross-entropy
    assert torch.allclose(weights(whole), weights(stock), atol=1e-6)


def test_it_is_the_loss_in_evaluation_and_on_the_page(tmp_path):
    trainer = trained(tmp_path, surrogate=lambda outputs, labels: 3 * mean(outputs, labels))
    measured = trainer.evaluate()
    rows = tiny_rows(20, seed=1)
    logits = trainer.model(torch.stack([row["features"] for row in rows])).logits
    labels = torch.stack([row["labels"] for row in rows])
    assert measured["eval_loss"] == pytest.approx(3 * F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert trainer.surrogate is None
    trainer.model.config = BertConfig()  # which Trainer reads for the page
    trainer.create_model_card()
    assert "on the loss function test_it_is" in (tmp_path / "README.md").read_text()


def test_half_of_it_and_a_warm_up(tmp_path, capsys):
    args = {"model_loss_share": 0.5, "surrogate_warmup": 4}
    trainer = ReLossTrainer(
        TinyClassifier(),
        ReLossTrainingArguments(
            str(tmp_path), per_device_train_batch_size=8, max_steps=10, logging_steps=1, use_cpu=True, **args
        ),
        train_dataset=tiny_rows(40),
        surrogate=mean,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert ["loss/surrogate" in log for log in logs] == [False] * 4 + [True] * 6
    assert all(log["loss/surrogate"] == pytest.approx(log["loss/model"], abs=1e-5) for log in logs[4:])
    assert "switched at step 4 to mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs: 0.0, "function of .outputs, labels"),
        (lambda outputs, labels: 1.0, "returned float"),
        (lambda outputs, labels: torch.zeros(3), r"returned a tensor \[3\]"),
    ],
)
def test_what_is_no_loss_is_refused(tmp_path, loss, message):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, surrogate=loss)


def test_weights_that_nobody_trains_and_a_metric_that_nobody_reads_are_told_of(tmp_path, caplog):
    class Weighted(Criterion):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

    with caplog.at_level("WARNING", logger="hf_reloss"):
        trained(tmp_path, surrogate=Weighted(), metric="accuracy")
    assert "has 4 weights of its own" in caplog.text
    assert "no alignment is measured" in caplog.text
