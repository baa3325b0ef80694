"""Metrics of probabilities are those of scikit-learn, of torch, and loops that are written out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from hf_reloss import load_metric
from hf_reloss.metrics import probabilities as module

SEEDS, SIZES, CLASSES = st.integers(0, 10_000), st.integers(1, 30), st.integers(2, 5)


def drawn(seed, size, classes):
    """Wild logits, their probabilities, and labels, of which some do not count."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(size, classes)) * 10.0 ** generator.integers(-2, 3, (size, 1))
    probabilities = torch.tensor(logits).softmax(-1).numpy()
    return logits, probabilities, generator.choice([-100, *range(classes)], size)


def calibration_error(confidence, right, n_bins, norm):
    """Guo et al. (2017), bin by bin."""
    parts, ends = [], np.linspace(0, 1, n_bins + 1)
    for place in range(n_bins):
        inside = (confidence >= ends[place]) & ((confidence < ends[place + 1]) | (place == n_bins - 1))
        if inside.any():
            parts.append((abs(right[inside].mean() - confidence[inside].mean()), inside.mean()))
    if not parts:
        return math.nan
    if norm == "max":
        return max(error for error, _ in parts)
    if norm == "l2":
        return math.sqrt(sum(share * error**2 for error, share in parts))
    return sum(share * error for error, share in parts)


@settings(deadline=None, max_examples=60)
@given(SEEDS, SIZES, CLASSES, st.sampled_from(["auto", True, False]))
def test_the_brier_score_is_that_of_scikit_learn(seed, size, classes, scale_by_half):
    logits, probabilities, labels = drawn(seed, size, classes)
    counts = labels != -100
    wanted = math.nan
    if counts.any():
        wanted = brier_score_loss(
            labels[counts], probabilities[counts], labels=list(range(classes)), scale_by_half=scale_by_half
        )
    for name in ("brier_score", "brier"):
        metric = load_metric(name, scale_by_half=scale_by_half)
        for predictions in (logits, probabilities):
            assert metric.compute(predictions, labels) == pytest.approx(wanted, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("pos_label", [0, 1])
def test_the_brier_score_of_the_probability_of_one_class(pos_label):
    references, predictions = np.array([0, 0, 1, 1, -100]), np.array([0.1, 0.9, 0.8, 0.3, 7.0])
    wanted = brier_score_loss(references[:4], predictions[:4], pos_label=pos_label)
    metric = load_metric("brier_score", pos_label=pos_label)
    assert metric.compute(predictions, references) == pytest.approx(wanted)
    assert metric.compute(predictions[:, None], references) == pytest.approx(wanted)
    assert metric.compute(predictions[:4], references[:4].astype(float)) == pytest.approx(wanted)


@settings(deadline=None, max_examples=80)
@given(SEEDS, SIZES, CLASSES, st.sampled_from([1, 2, 10, 15]), st.sampled_from(["l1", "l2", "max"]))
def test_the_calibration_error_is_that_of_the_definition(seed, size, classes, n_bins, norm):
    logits, probabilities, labels = drawn(seed, size, classes)
    if seed % 2:  # at the ends of bins
        probabilities = F.one_hot(torch.tensor(logits).argmax(-1), classes).double().numpy()
    counts = labels != -100
    confidence, right = probabilities.max(-1)[counts], (probabilities.argmax(-1) == labels)[counts]
    wanted = calibration_error(confidence, right, n_bins, norm)
    for name in ("ece", "expected_calibration_error"):
        found = load_metric(name, n_bins=n_bins, norm=norm).compute(probabilities, labels)
        assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    of_one = calibration_error(probabilities[counts, 1], labels[counts] == 1, n_bins, norm)
    for predictions in (probabilities[:, 1], probabilities[:, 1:2]):
        found = load_metric("ece", n_bins=n_bins, norm=norm).compute(predictions, labels)
        assert found == pytest.approx(of_one, abs=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=60)
@given(SEEDS, SIZES, CLASSES)
def test_perplexity_is_the_exponential_of_the_loss(seed, size, classes):
    logits, probabilities, labels = drawn(seed, size * 3, classes)
    logits, labels = torch.tensor(logits).view(size, 3, -1), torch.tensor(labels).view(size, 3)
    wanted = F.cross_entropy(logits.flatten(0, 1), labels.flatten()).exp()
    found = load_metric("perplexity").compute(logits, labels)
    assert found == pytest.approx(float(wanted), rel=1e-9, nan_ok=True)
    sequences = (labels != -100).any(-1)
    of_each = [float(F.cross_entropy(*pair).exp()) for pair in zip(logits[sequences], labels[sequences], strict=True)]
    found = load_metric("perplexity", average="sequences").compute(logits, labels)
    assert found == pytest.approx(np.mean(of_each) if of_each else math.nan, rel=1e-9, nan_ok=True)
    tame = torch.tensor(probabilities).clamp(min=1e-9)
    again = load_metric("perplexity").compute(tame / tame.sum(-1, keepdim=True), labels.flatten())
    assert again == pytest.approx(load_metric("perplexity").compute(tame.log(), labels.flatten()), nan_ok=True)


@pytest.mark.parametrize("name", ["brier_score", "ece", "perplexity"])
def test_groups_and_blocks_are_scored_as_they_are_alone(name, monkeypatch):
    torch.manual_seed(0)
    logits, labels, index = torch.randn(40, 5, 3), torch.randint(3, (40, 5)), torch.randint(40, (6, 12))
    labels = labels.where(torch.rand(40, 5) > 0.2, -100)
    metric = load_metric(name)
    assert not metric.higher_is_better
    expected = [metric.compute(logits[rows], labels[rows]) for rows in index]
    np.testing.assert_allclose(metric.score_groups(logits, labels, index), expected, rtol=1e-12)
    monkeypatch.setattr(module, "MOST_LOGITS", 50)
    np.testing.assert_allclose(metric.score_groups(logits, labels, index), expected, rtol=1e-12)
    flat = metric.compute(logits.flatten(0, 1), labels.flatten())  # all positions count alike
    assert metric.compute(logits, labels) == pytest.approx(flat)
    in_bfloat16 = metric.compute(logits.softmax(-1).bfloat16(), labels)
    assert in_bfloat16 == pytest.approx(flat, abs=0.02)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("brier_score", {"scale_by_half": "no"}, "True, False or 'auto', but got 'no'"),
        ("ece", {"n_bins": 0}, "1 or more, but got 0"),
        ("ece", {"norm": "l3"}, "'l1', 'l2' or 'max', but got 'l3'"),
        ("perplexity", {"average": "macro"}, "'tokens' or 'sequences', but got 'macro'"),
    ],
)
def test_options_that_are_wrong_are_said(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_metric(name, **options)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0.2, 3.0], [0, 1], "0 to 1, but got 3: take the sigmoid"),
        ([0, 1], [0, 1], "logits or probabilities, floats, but got torch.int64"),
        (torch.zeros(2, 3), torch.zeros(2, 3).long(), r"\[2, 3\] and references \[2, 3\]"),
        (torch.zeros(2, 3), [0, 3], "a reference is 3, of 3 classes"),
        (torch.zeros(2, 3), [0, 0.5], "class indices as references, integers, but got"),
    ],
)
def test_bad_input_is_said_what_it_is(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        load_metric("brier_score").compute(predictions, references)
