"""What a run by "auto" makes of labels that are bad, and of a model that keeps its logits to itself in training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import IterableDataset
from transformers.utils import ModelOutput

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, load_metric


class Tiny(nn.Module):
    """Logits of its input's last dimension, with the usual loss of labels of their kind."""

    def __init__(self, outputs: int, keeps_logits: bool = False):
        super().__init__()
        self.head, self.keeps_logits = nn.Linear(4, outputs), keeps_logits

    def forward(self, x, labels=None):
        logits = self.head(x)
        if labels.is_floating_point():
            loss = (logits.view_as(labels) - labels).square().mean()
        else:
            loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return ModelOutput(loss=loss) if self.keeps_logits and self.training else ModelOutput(loss=loss, logits=logits)


class InOrder(IterableDataset):
    """Rows in the order that they have."""

    def __init__(self, rows: list):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def made_trainer(folder, metric, labels, *, keeps_logits=False, outputs=3, parts=()):
    """For 10 steps of 8 examples, in order."""
    torch.manual_seed(0)
    rows = [{"x": x, "labels": label} for x, label in zip(torch.randn(len(labels), *parts, 4), labels, strict=True)]
    args = ReLossTrainingArguments(
        str(folder), max_steps=10, per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True, save_strategy="no",
        report_to="none",
    )  # fmt: skip
    return ReLossTrainer(Tiny(outputs, keeps_logits), args, train_dataset=InOrder(rows), metric=metric)


@pytest.mark.parametrize(
    ("metric", "parts"),
    [(load_metric("f1", average="macro"), ()), (load_metric("accuracy"), (5,))],
    ids=["classes", "tokens"],
)
def test_batches_in_which_nothing_counts_stop_no_run(tmp_path, metric, parts):
    labels = torch.randint(3, (80, *parts), generator=torch.Generator().manual_seed(0))
    labels[:16] = -100  # two batches
    trainer = made_trainer(tmp_path, metric, labels, parts=parts)
    trainer.train()
    assert trainer.state.global_step == 10
    assert len(trainer.strategy.recorder) == 64
    assert trainer.metric.name == metric.name


def test_a_model_without_logits_in_training_stays_on_its_own_loss(tmp_path):
    trainer = made_trainer(tmp_path, "accuracy", torch.arange(80) % 3, keeps_logits=True)
    trainer.train()
    assert trainer.state.global_step == 10
    assert "no surrogate for a model with the outputs {'loss': []}" in trainer.loss_report.reason


@pytest.mark.parametrize(
    ("shape", "row", "error", "message"),
    [
        ((80,), 0, ValueError, "1 of 8 labels are not finite: leave such examples out"),
        ((80,), 20, FloatingPointError, "at step 3, for 1 of 8 labels of the batch are not finite: leave such"),
        ((80, 3), 0, ValueError, "1 of 24 labels are not finite: leave such examples out"),
    ],
    ids=["number, first batch", "number, later", "several labels"],
)
def test_labels_that_are_no_numbers_end_a_run_and_it_says_why(tmp_path, shape, row, error, message):
    labels = torch.randint(2, shape, generator=torch.Generator().manual_seed(0)).float()
    labels.view(80, -1)[row, 0] = torch.nan
    outputs, metric = (1, load_metric("mse")) if len(shape) == 1 else (3, load_metric("f1", average="macro"))
    with pytest.raises(error, match=message):
        made_trainer(tmp_path, metric, labels, outputs=outputs).train()
