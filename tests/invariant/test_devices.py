"""What is computed on a GPU is what the CPU computes, and every way to train works there."""

from pathlib import Path

import pytest
import torch

from hf_reloss import (
    AdaptiveLossTrainer,
    AutoSurrogate,
    ReLossTrainer,
    ReLossTrainingArguments,
    hand_made_loss,
    hand_made_losses,
    load_metric,
    soft_rank,
)

from ..conftest import TinyClassifier, tiny_rows
from ..losses.test_metric_learning import TinyEmbedder, recall
from ..training.strategies.test_minimum_risk import copy_of, right
from ..training.test_text_trainers import make_tokenizer, translating
from .programs import PROGRAMS, Trajectory, settings
from .test_precision import CARDS, made_up

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

HAND_MADE = [(task, name) for task in ("classification", "embeddings") for name in sorted(hand_made_losses(task))]


def moved(given, device: str):
    """A tensor or a dict of them, elsewhere."""
    if isinstance(given, dict):
        return {name: moved(tensor, device) for name, tensor in given.items()}
    return given.to(device)


def assert_same_on_both(surrogate) -> None:
    """The loss and its gradient."""
    outputs, leaves, labels = made_up(surrogate, torch.float32, 3.0)
    expected = surrogate(outputs, labels)
    expected.backward()
    gradients = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    found = surrogate.to("cuda")(moved(outputs, "cuda"), labels.to("cuda"))
    assert found.device.type == "cuda"
    found.backward()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item())


@pytest.mark.parametrize("name", CARDS)
def test_a_surrogate_is_the_same(name):
    assert_same_on_both(AutoSurrogate.from_pretrained(f"reloss/{name}").freeze())


@pytest.mark.parametrize(("task", "name"), HAND_MADE)
def test_a_hand_made_loss_is_the_same(task, name):
    options = {"classes": 10} if name == "class_correlation" else {}
    assert_same_on_both(hand_made_loss(name, torch.arange(20) % 10, **options))


LOGITS, CLASSES = (1_000, 5), (1_000,)
METRICS = [
    (load_metric("accuracy"), LOGITS, CLASSES),
    (load_metric("f1", average="macro"), LOGITS, CLASSES),
    (load_metric("matthews_correlation"), LOGITS, CLASSES),
    (load_metric("cohen_kappa", weights="quadratic"), LOGITS, CLASSES),
    (load_metric("mean_iou"), LOGITS, CLASSES),
    (load_metric("roc_auc"), LOGITS, CLASSES),
    (load_metric("recall_at_k"), LOGITS, CLASSES),
    (load_metric("pck"), (1_000, 17, 2), (1_000, 17, 3)),
]


@pytest.mark.parametrize(("metric", "shape", "of_references"), METRICS, ids=[metric.name for metric, *_ in METRICS])
def test_a_metric_is_the_same(metric, shape, of_references):
    predictions = torch.randn(shape)
    references = torch.randint(5, of_references) if of_references == CLASSES else torch.randn(of_references)
    index = torch.randint(1_000, (50, 64))
    expected = metric.score_groups(predictions, references, index)
    for order in (index, index.to("cuda")):
        found = metric.score_groups(predictions.to("cuda"), references.to("cuda"), order)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)


def test_soft_ranks_are_the_same():
    values, weights = torch.randn(3, 100), torch.randn(3, 100)
    ranks, gradients = [], []
    for device in ("cpu", "cuda"):
        given = values.detach().to(device).requires_grad_()
        found = soft_rank(given)
        (found * weights.to(device)).sum().backward()
        ranks.append(found.detach().cpu()), gradients.append(given.grad.cpu())
    torch.testing.assert_close(*ranks, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_training_follows_the_same_trajectory(program, tmp_path):
    seen = {}
    for device in ("cpu", "cuda"):
        spy = Trajectory()
        PROGRAMS[program](tmp_path / device, spy, **settings(16, 1) | {"use_cpu": device == "cpu"})
        seen[device] = {name: weight.cpu() for name, weight in spy.seen.items()}
    for name, weight in seen["cpu"].items():
        torch.testing.assert_close(seen["cuda"][name], weight, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


WAYS = ["auto", "approximation", "reloss/accuracy", "reloss/macro-f1", "soft_f1", "lovasz", "smooth_ap", "ala"]


@pytest.mark.parametrize("precision", [{}, {"bf16": True}, {"fp16": True}], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_learns(way, precision, tmp_path):
    args = ReLossTrainingArguments(
        str(tmp_path), num_train_epochs=12, per_device_train_batch_size=32, learning_rate=0.05, save_strategy="no",
        disable_tqdm=True, seed=3, model_loss_share=0.5 if way == "ala" else 0.0, **precision,
    )  # fmt: skip
    options = {} if way in hand_made_losses() else {"metric": "accuracy"}
    trainer = ReLossTrainer(
        TinyClassifier(),
        args,
        train_dataset=tiny_rows(600),
        eval_dataset=tiny_rows(300, seed=1),
        surrogate=way,
        **options,
    )
    assert trainer.args.device.type == "cuda"
    trainer.train()
    rows = {key: torch.stack([row[key] for row in tiny_rows(300, seed=1)]) for key in ("features", "labels")}
    chosen = trainer.model.cpu()(rows["features"]).logits.argmax(-1)
    assert (chosen == rows["labels"]).float().mean() > 0.75


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path):
    def trainer(folder: Path) -> AdaptiveLossTrainer:
        torch.manual_seed(0)
        args = ReLossTrainingArguments(
            str(folder), max_steps=80, adapt_steps=10, per_device_train_batch_size=16, learning_rate=0.02,
            save_steps=50, disable_tqdm=True, seed=3, surrogate_warmup=20,
        )  # fmt: skip
        data = {"train_dataset": tiny_rows(300), "eval_dataset": tiny_rows(150, seed=1)}
        return AdaptiveLossTrainer(TinyClassifier(dropout=0.1), args, metric="accuracy", **data)

    whole, resumed = trainer(tmp_path / "whole"), trainer(tmp_path / "resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-50"))
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight)
    assert torch.equal(whole.strategy.network.values().cpu(), resumed.strategy.network.values().cpu())


@pytest.mark.parametrize("name", sorted(hand_made_losses("embeddings")))
def test_embeddings_learn(name, tmp_path):
    args = ReLossTrainingArguments(
        str(tmp_path), num_train_epochs=10, per_device_train_batch_size=32, learning_rate=0.05, save_strategy="no",
        disable_tqdm=True, seed=3,
    )  # fmt: skip
    unseen = tiny_rows(300, seed=1)
    trainer = ReLossTrainer(
        TinyEmbedder(), args, train_dataset=tiny_rows(200), eval_dataset=unseen, surrogate=name, metric="recall_at_k"
    )
    trainer.train()
    assert -1 <= trainer.evaluate()["eval_alignment"] <= 1
    assert recall(trainer.model.cpu(), unseen) > 0.7


def test_a_model_writes_better_for_minimum_risk(tmp_path):
    tokenizer = make_tokenizer()
    options = {"surrogate": "minimum_risk", "metric": "bleu", "logging_steps": 1_000}
    first = translating(
        tmp_path / "first", tokenizer, surrogate_warmup=999, **options | {"num_train_epochs": 8, "learning_rate": 5e-3}
    )
    first.train()
    before = right(copy_of(first.model.cpu()), tokenizer)
    then = translating(
        tmp_path / "then", tokenizer, copy_of(first.model), risk_candidates=8, risk_alpha=1.0, learning_rate=3e-3,
        num_train_epochs=6, generation_max_length=9, **options | {"per_device_train_batch_size": 16},
    )  # fmt: skip
    assert then.args.device.type == "cuda"
    then.train()
    assert right(then.model.cpu(), tokenizer) > before + 0.1
