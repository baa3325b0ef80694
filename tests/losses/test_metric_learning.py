"""Losses of embeddings are those of pytorch-metric-learning, and can be adapted."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import TrainingArguments
from transformers.utils import ModelOutput

from hf_reloss import AutoSurrogate, ReLossTrainer, SurrogateForEmbeddings, hand_made_loss, hand_made_losses
from hf_reloss.losses.hand_made.metric_learning import pair_distances
from hf_reloss.metrics import load_metric

from ..conftest import tiny_rows

pytest.importorskip("pytorch_metric_learning")
NAMES = sorted(hand_made_losses("embeddings"))
EMBEDDINGS = torch.tensor([[1.0, 0.0], [1.0, 0.5], [0.0, 2.0], [-1.0, 1.0], [0.5, -1.0], [1.0, 0.2]])
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


class TinyEmbedder(nn.Module):
    """A linear map to embeddings, without a loss of its own."""

    def __init__(self, features: int = 6, size: int = 3):
        super().__init__()
        self.projection = nn.Linear(features, size)

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> ModelOutput:
        return ModelOutput(embeddings=self.projection(features))


def recall(model: nn.Module, rows: list[dict]) -> float:
    with torch.no_grad():
        embeddings = model.eval()(torch.stack([row["features"] for row in rows])).embeddings
    return load_metric("recall_at_k").compute(embeddings, torch.stack([row["labels"] for row in rows]))


def by_a_loop(name: str, embeddings: torch.Tensor, labels: torch.Tensor, margin: float, beta: float) -> float:
    unit, parts, pairs = F.normalize(embeddings, dim=-1), [], 0
    distance = (unit[:, None] - unit[None]).norm(dim=-1)
    number = range(len(labels))
    for a, p, n in ((a, p, n) for a in number for p in number for n in number):
        if a == p or labels[a] != labels[p] or labels[a] == labels[n]:
            continue
        if name == "triplet":
            each = [distance[a, p] - distance[a, n] + margin]
        else:
            each = [distance[a, p] - beta + margin, beta - distance[a, n] + margin]
        parts += [float(part) for part in each if part > 0]
        pairs += 1
    assert pairs == 24
    return sum(parts) / len(parts)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_what_a_loop_over_triplets_gives(name):
    given_options = {"margin": 0.3} if name == "triplet" else {"margin": 0.3, "beta": 0.9}
    loss = hand_made_loss(name, **given_options)
    expected = by_a_loop(name, EMBEDDINGS, LABELS, 0.3, 0.9)
    assert loss(EMBEDDINGS, LABELS).item() == pytest.approx(expected, abs=1e-5)
    assert loss(7.0 * EMBEDDINGS, LABELS + 1_000).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e4), seed=st.integers(0, 99), counted=st.integers(0, 12))
def test_values_and_gradients_are_finite_and_what_does_not_count_has_no_part(name, scale, seed, counted):
    generator = torch.Generator().manual_seed(seed)
    embeddings = (torch.randn(12, 3, generator=generator) * scale).requires_grad_()
    labels = torch.randint(3, (12,), generator=generator)
    labels[counted:] = -100
    loss = hand_made_loss(name)(embeddings, labels)
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()
    assert not embeddings.grad[counted:].any()
    alone = hand_made_loss(name)(embeddings[:counted].detach(), labels[:counted])
    torch.testing.assert_close(loss.detach(), alone)


@pytest.mark.parametrize("name", NAMES)
def test_groups_side_by_side_have_the_losses_that_they_have_alone(name):
    loss = hand_made_loss(name)
    embeddings, labels = torch.randn(2, 3, 12, 4), torch.randint(3, (2, 3, 12))
    together = loss(embeddings, labels)
    assert together.shape == (2, 3)
    for row, of_row in zip(embeddings, labels, strict=True):
        torch.testing.assert_close(
            loss(row, of_row), torch.stack([loss(e, y) for e, y in zip(row, of_row, strict=True)])
        )
    torch.testing.assert_close(together[1, 2], loss(embeddings[1, 2], labels[1, 2]))


@pytest.mark.parametrize("name", NAMES)
def test_a_change_moves_its_options_and_is_saved(tmp_path, name):
    loss = hand_made_loss(name)
    network = loss.network
    start = torch.tensor(list(network.options.values()))
    torch.testing.assert_close(network.distances(), start)
    changes = torch.tensor([0.1, -0.1])[: len(start)]
    network.adjust(changes)
    moved = network.distances() - start
    assert torch.equal(moved.sign(), changes.sign())
    assert (moved.abs() <= 0.05).all()
    loss.save_pretrained(tmp_path)
    again = AutoSurrogate.from_pretrained(tmp_path)
    assert type(again) is SurrogateForEmbeddings
    assert torch.equal(again.network.values(), network.values())
    assert torch.equal(again(EMBEDDINGS, LABELS), loss(EMBEDDINGS, LABELS))
    assert not torch.equal(again(EMBEDDINGS, LABELS), hand_made_loss(name)(EMBEDDINGS, LABELS))
    network.adjust(torch.full_like(start, 100.0))
    assert (network.distances() <= 2).all()


def test_statistics_are_mean_distances_of_one_class_and_to_the_nearest_of_another():
    unit = F.normalize(EMBEDDINGS, dim=-1)
    distance = torch.tensor([[float((a - b).norm()) for b in unit] for a in unit])
    of_same = (distance[0, 1] + distance[2, 3] + distance[4, 5]) / 3
    of_nearest = sum(distance[i][LABELS[i] != LABELS].min() for i in range(6)) / 6
    found = hand_made_loss("margin_loss").network.statistics(EMBEDDINGS, LABELS)
    torch.testing.assert_close(found, torch.stack([of_same, of_nearest])[:, None].expand(2, 2), atol=1e-5, rtol=0)


def test_classes_with_one_example_are_told_of():
    network = hand_made_loss("triplet").network
    assert network.doubts(torch.tensor([0, 0, 1, 1])) == ""
    assert "1 of its 4 examples are the only ones" in network.doubts(torch.tensor([0, 0, 0, 1]))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_learns_on_it(tmp_path, name):
    args = TrainingArguments(
        str(tmp_path), num_train_epochs=10, per_device_train_batch_size=32, learning_rate=0.05, save_strategy="no",
        disable_tqdm=True, use_cpu=True, seed=3,
    )  # fmt: skip
    model, unseen = TinyEmbedder(), tiny_rows(300, seed=1)
    before = recall(model, unseen)
    trainer = ReLossTrainer(
        model, args, train_dataset=tiny_rows(200), eval_dataset=unseen, surrogate=name, metric="recall_at_k"
    )
    trainer.train()
    assert recall(model, unseen) > max(before + 0.05, 0.7)
    assert -1 <= trainer.evaluate()["eval_alignment"] <= 1


def test_approximation_is_refused_in_the_first_step(tmp_path):
    args = TrainingArguments(str(tmp_path), save_strategy="no", disable_tqdm=True, use_cpu=True)
    options = {"surrogate": "approximation", "metric": "recall_at_k"}
    trainer = ReLossTrainer(WithLoss(), args, train_dataset=tiny_rows(2_000), **options)
    with pytest.raises(ValueError, match="Unknown architecture 'set' for embeddings"):
        trainer.train()
    assert trainer.state.global_step == 0


class WithLoss(TinyEmbedder):
    """With a loss of its own."""

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> ModelOutput:
        return ModelOutput(loss=self.projection.weight.square().sum(), **super().forward(features))


def test_the_outputs_of_usual_names_are_read():
    loss, labels = hand_made_loss("triplet"), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = loss(EMBEDDINGS, labels)
    for name in ("embeddings", "sentence_embedding", "text_embeds", "image_embeds", "logits"):
        assert torch.equal(loss({"token_embeddings": torch.zeros(6, 3, 2), name: EMBEDDINGS}, labels), expected)
    assert torch.equal(loss((torch.tensor(0.3), EMBEDDINGS), labels), expected)
    assert AutoSurrogate.reading({"image_embeds": EMBEDDINGS}, labels) is SurrogateForEmbeddings
    assert AutoSurrogate.reading({"logits": EMBEDDINGS}, labels).task == "classification"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hand_made_loss("triplet", margin=0.0), "above 0 and below 2, but got {'margin': 0.0}"),
        (lambda: hand_made_loss("margin_loss", beta=2.5), "{'beta': 2.5}"),
        (lambda: hand_made_loss("triplet", beta=1.0), "has no options \\['beta'\\]: there are margin"),
        (lambda: hand_made_loss("triplet")(EMBEDDINGS, LABELS[:4]), r"got \[6, 2\] and \[4\]"),
        (lambda: hand_made_loss("triplet")(EMBEDDINGS, LABELS - 1), "class indices from 0 on"),
        (lambda: hand_made_loss("triplet")(EMBEDDINGS / 0, LABELS), "the model has diverged"),
        (lambda: hand_made_loss("triplet")({"hidden": EMBEDDINGS}, LABELS), r"outputs are \['hidden'\]"),
        (lambda: pair_distances(EMBEDDINGS, torch.arange(6)), "has 6 of 6 classes"),
        (lambda: pair_distances(EMBEDDINGS, torch.zeros(6)), "has 6 of 1 classes"),
    ],
)
def test_what_is_wrong_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-reloss\[metric-learning\]'"):
        hand_made_loss("triplet")


def test_what_was_saved_under_its_former_name_is_loaded(tmp_path):
    loss = hand_made_loss("margin_loss", beta=1.0)
    loss.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "margin"}))
    again = AutoSurrogate.from_pretrained(tmp_path)
    assert again.config.architecture == "margin_loss"
    assert again(EMBEDDINGS, LABELS) == loss(EMBEDDINGS, LABELS)
