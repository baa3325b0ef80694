"""What confusions are worth: gradients against differences, and what is asked of functions."""

import pytest
import torch

from hf_reloss import load_metric
from hf_reloss.metrics.credits import ask, confusion_matrix, gradient, is_differentiable

CLASSES = 5


def predictions(number: int = 400):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (number,), generator=generator)
    logits = torch.randn(number, CLASSES, generator=generator) + 2 * torch.nn.functional.one_hot(labels, CLASSES)
    return logits.double().softmax(-1), labels


@pytest.mark.parametrize(("name", "options"), [
    ("accuracy", {}), ("f1", {"average": "macro"}), ("f1", {"average": "weighted"}), ("balanced_accuracy", {}),
    ("cohen_kappa", {"weights": "quadratic"}), ("matthews_correlation", {}),
])  # fmt: skip
def test_gradients_are_differences(name, options):
    metric, (probabilities, labels) = load_metric(name, **options), predictions()
    assert is_differentiable(metric, CLASSES)
    decided = probabilities.argmax(-1)
    confusion = confusion_matrix(labels, decided, CLASSES)
    score, slopes = gradient(metric, confusion)
    assert score == pytest.approx(metric.compute(decided, labels))
    assert slopes.diagonal().abs().max() == 0
    few = 1e-4
    for label in range(CLASSES):
        for other in range(CLASSES):
            moved = confusion.clone()
            moved[label, label] -= few
            moved[label, other] += few
            difference = (gradient(metric, moved)[0] - score) * len(labels) / few
            assert difference == pytest.approx(float(slopes[label, other]), abs=1e-3)


def test_soft_confusions_add_up():
    probabilities, labels = predictions()
    decided = probabilities.argmax(-1)
    soft, hard = (confusion_matrix(each, decided, CLASSES) for each in (probabilities, labels))
    assert torch.allclose(soft.sum(0), hard.sum(0))
    assert soft.sum() == pytest.approx(len(labels))


def test_a_mean_of_credits_is_found_exactly_and_what_is_not_asked_is_the_mean_of_its_row():
    probabilities, labels = predictions()
    credit = torch.rand(CLASSES, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    credit -= credit.diagonal().clone()[:, None]
    calls = 0

    def of_credits(predictions, references):
        nonlocal calls
        calls += 1
        return float(credit[torch.as_tensor(references), torch.as_tensor(predictions)].mean())

    # Where it is said that more is better, no call is made to find that out.
    metric, decided = load_metric(of_credits, higher_is_better=True), probabilities.argmax(-1)
    assert not is_differentiable(metric, CLASSES)
    assert torch.allclose(ask(metric, labels, decided, probabilities), credit, atol=1e-9)
    assert calls == CLASSES**2

    found = ask(metric, labels, decided, probabilities, calls=10)
    right = torch.isclose(found, credit, atol=1e-9)
    assert 10 <= int(right.sum()) < CLASSES**2
    for label in range(CLASSES):
        asked = right[label].clone()
        asked[label] = False
        if asked.any():
            assert torch.allclose(found[label][~right[label]], found[label][asked].mean())


def test_a_class_without_examples_costs_what_others_do():
    probabilities, labels = predictions()
    kept = labels != 2
    accuracy = load_metric(lambda predictions, references: float((predictions == references).mean()))
    found = ask(accuracy, labels[kept], probabilities[kept].argmax(-1), probabilities[kept])
    assert torch.allclose(found, torch.eye(CLASSES, dtype=torch.float64) - 1)
