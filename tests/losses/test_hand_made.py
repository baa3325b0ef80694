"""Hand-made losses are those of their papers, and surrogates like any other."""

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from transformers import TrainingArguments

from hf_reloss import AutoSurrogate, ReLossTrainer, hand_made_loss, hand_made_losses

from ..conftest import TinyClassifier, tiny_rows

NAMES = sorted(hand_made_losses())
LOGITS = torch.tensor(
    [[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [-1.0, 0.0, 3.0], [1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [1.0, 1.0, 0.0]]
)
LABELS = torch.tensor([0, 1, 2, 0, 2, 0])


def made(name: str, classes: int = 3, **options):
    if name == "class_correlation":
        options.setdefault("classes", classes)
    return hand_made_loss(name, torch.arange(2 * classes) % classes, **options)


def test_label_smoothing_and_focal_and_poly1_and_weights():
    p = LOGITS.softmax(-1).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(made("cross_entropy")(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS))
    torch.testing.assert_close(
        made("label_smoothing", epsilon=0.2)(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2)
    )
    torch.testing.assert_close(made("focal", gamma=3.0)(LOGITS, LABELS), -((1 - p) ** 3 * p.log()).mean())
    torch.testing.assert_close(made("poly1", epsilon=2.0)(LOGITS, LABELS), (-p.log() + 2 * (1 - p)).mean())
    weights = 1 / (3 * torch.tensor([3, 1, 2]) / 6)
    torch.testing.assert_close(
        hand_made_loss("class_weights", LABELS)(LOGITS, LABELS), -(weights[LABELS] * p.log()).mean()
    )
    adjusted = LOGITS + 0.5 * torch.tensor([3 / 6, 1 / 6, 2 / 6]).log()
    torch.testing.assert_close(
        hand_made_loss("logit_adjustment", LABELS, tau=0.5)(LOGITS, LABELS), F.cross_entropy(adjusted, LABELS)
    )


def test_losses_of_several_labels_are_those_of_their_papers():
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    logits = LOGITS[:3]
    usual = F.binary_cross_entropy_with_logits(logits, labels)
    for found in (
        hand_made_loss("cross_entropy", task="multilabel"),
        hand_made_loss("asymmetric", gamma_negative=0.0, margin=0.0),
    ):
        torch.testing.assert_close(found(logits, labels), usual)
    p = logits.sigmoid()
    right = torch.where(labels > 0, p, 1 - p)
    torch.testing.assert_close(
        hand_made_loss("focal", task="multilabel")(logits, labels), -((1 - right) ** 2 * right.log()).mean()
    )
    q = (p - 0.05).clamp(min=0)
    expected = -(labels * p.log() + (1 - labels) * q**4 * (1 - q).log()).mean()
    torch.testing.assert_close(hand_made_loss("asymmetric")(logits, labels), expected)


def test_weights_of_labels_make_both_sides_of_each_as_heavy():
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, -100.0]])
    loss = hand_made_loss("class_weights", labels, task="multilabel")
    torch.testing.assert_close(loss.network.frequencies, torch.tensor([1 / 4, 2 / 3]))
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    each = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0), reduction="none")
    weights = torch.tensor([[2.0, 1.5], [2 / 3, 0.75], [2 / 3, 0.75], [2 / 3, 0.0]])
    torch.testing.assert_close(loss(logits, labels), (each * weights).sum() / 7)
    with pytest.raises(ValueError, match=r"all or none have the labels \[0\]"):
        hand_made_loss("class_weights", torch.tensor([[1, 0], [1, 1]]), task="multilabel")
    with pytest.raises(ValueError, match="above 0 and below 1"):
        hand_made_loss("class_weights", task="multilabel", frequencies=[0.5, 1.0])


def test_the_class_correlation_loss_is_that_of_a_hand_worked_case():
    loss = made("class_correlation")
    p = LOGITS.softmax(-1).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(loss(LOGITS, LABELS), -(p / (1 + p)).mean())  # σ(log p) with the identity
    loss.network.correlations[0, 1] = loss.network.correlations[1, 0] = 0.5
    logits, label = torch.tensor([[1.0, 0.0, 0.0]]).log_softmax(-1), torch.tensor([0])
    expected = -torch.sigmoid(logits[0, 0] + 0.5 * logits[0, 1])
    torch.testing.assert_close(loss(logits, label), expected)
    unlikely = torch.tensor([[5.0, 0.0, 0.0]])  # 0.1 / 3 is the least that counts
    expected = -torch.sigmoid(unlikely.log_softmax(-1)[0, 0] + 0.5 * torch.tensor(0.1 / 3).log())
    torch.testing.assert_close(loss(unlikely, label), expected)
    loss = made("class_correlation", floor=0.0)
    loss.network.correlations[0, 1] = 0.5
    torch.testing.assert_close(
        loss(unlikely, label), -torch.sigmoid(unlikely.log_softmax(-1)[0] @ torch.tensor([1.0, 0.5, 0.0]))
    )


def test_losses_of_decisions_that_are_certain_are_the_metrics_they_are_named_for():
    decided, labels = torch.tensor([0, 1, 2, 2, 0, 1, 1, 0]), torch.tensor([0, 1, 2, 0, 0, 1, 2, 1])
    certain = 100 * F.one_hot(decided).float()
    f1 = f1_score(labels, decided, average="macro")
    assert made("soft_f1")(certain, labels).item() == pytest.approx(1 - f1, abs=1e-6)
    jaccard = jaccard_score(labels, decided, average="macro")
    assert made("lovasz")(certain, labels).item() == pytest.approx(1 - jaccard, abs=1e-6)


def test_smooth_average_precision_is_that_of_scikit_learn_as_its_temperature_falls():
    logits, labels = torch.randn(40, 3), torch.arange(40) % 3
    scores = logits.softmax(-1).numpy()
    exact = np.mean([average_precision_score(labels.numpy() == c, scores[:, c]) for c in range(3)])
    assert made("smooth_ap", tau=1e-5)(logits, labels).item() == pytest.approx(1 - exact, abs=2e-3)


def test_the_margin_of_the_area_is_that_of_a_loop_over_pairs():
    probabilities = LOGITS.softmax(-1)
    of_classes = []
    for c in range(3):
        own, other = probabilities[c == LABELS, c], probabilities[c != LABELS, c]
        of_classes.append(np.mean([max(0.0, 0.8 - float(a - b)) ** 2 for a in own for b in other]))
    assert made("auc_margin", margin=0.8)(LOGITS, LABELS).item() == pytest.approx(np.mean(of_classes), abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(scale=st.floats(0, 1e4), seed=st.integers(0, 99), counted=st.integers(0, 12))
def test_values_and_gradients_are_finite_and_what_does_not_count_has_no_part(name, scale, seed, counted):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(12, 3, generator=generator) * scale).requires_grad_()
    labels = torch.randint(3, (12,), generator=generator)
    labels[counted:] = -100
    loss = made(name)(logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert not logits.grad[counted:].any()
    if counted:
        alone = made(name)(logits[:counted].detach(), labels[:counted])
        torch.testing.assert_close(loss.detach(), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_groups_side_by_side_have_the_losses_that_they_have_alone(name):
    loss = made(name)
    logits, labels = torch.randn(4, 12, 3), torch.randint(3, (4, 12))
    together = loss(loss.evidence({"logits": logits}, labels))
    alone = torch.stack([loss(*group) for group in zip(logits, labels, strict=True)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_saved_and_loaded_and_has_nothing_to_learn(tmp_path, name):
    loss = made(name)
    loss.save_pretrained(tmp_path)
    again = AutoSurrogate.from_pretrained(tmp_path)
    assert torch.equal(loss(LOGITS, LABELS), again(LOGITS, LABELS))
    assert loss.num_parameters() == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_model_learns_on_it(tmp_path, name):
    args = TrainingArguments(
        str(tmp_path), num_train_epochs=12, per_device_train_batch_size=32, learning_rate=0.05, save_strategy="no",
        disable_tqdm=True, use_cpu=True, seed=3,
    )  # fmt: skip
    surrogate = made(name, classes=4) if name == "class_correlation" else name
    trainer = ReLossTrainer(TinyClassifier(), args, train_dataset=tiny_rows(200), surrogate=surrogate)
    trainer.train()
    rows = {key: torch.stack([row[key] for row in tiny_rows(300, seed=1)]) for key in ("features", "labels")}
    right = trainer.model(rows["features"]).logits.argmax(-1) == rows["labels"]
    assert right.float().mean() > 0.75


def test_frequencies_are_those_of_the_training_data(tmp_path):
    rows = datasets.Dataset.from_dict({"features": [[0.0] * 6] * 8, "label": [0, 0, 0, 0, 1, 1, 2, 3]})
    for data in (rows, tiny_rows(200)):
        trainer = ReLossTrainer(
            TinyClassifier(),
            TrainingArguments(str(tmp_path), use_cpu=True),
            train_dataset=data,
            surrogate="class_weights",
        )
        labels = torch.tensor(data["label"][:] if data is rows else [row["labels"] for row in data])
        torch.testing.assert_close(trainer.surrogate.network.frequencies, labels.bincount() / len(labels))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hand_made_loss("vocal"), "choose one of auc_margin, "),
        (lambda: hand_made_loss("focal", delta=1.0), "has no options \\['delta'\\]: there are gamma"),
        (lambda: hand_made_loss("class_weights"), r"hand_made_loss\(.class_weights., labels\)"),
        (lambda: hand_made_loss("class_weights", torch.tensor([0, 2])), "\\[1\\] have no label"),
        (lambda: hand_made_loss("class_weights", LABELS)(torch.randn(2, 5), torch.tensor([0, 1])), "of 3 classes, but"),
        (
            lambda: hand_made_loss("soft_f1")(LOGITS, LABELS, reduction="none"),
            "loss of the architecture 'soft_f1' is that",
        ),
        (lambda: made("class_correlation")(torch.randn(2, 5), torch.tensor([0, 1])), "make it with classes=5"),
    ],
)
def test_what_is_wrong_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
