"""Offsets of classes that are fitted by a metric, and kept only where they gain."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_reloss import load_metric
from hf_reloss.decisions.base import DecisionRule
from hf_reloss.decisions.folding import fold, unfold
from hf_reloss.decisions.offsets import ClassOffsets, calibrating_temperature
from hf_reloss.decisions.tuning import tune_decision

from ..processes import python

CLASSES = 6


def world(seed: int, biased: float = 0.0):
    """Draws logits that are log-posteriors, less what a bias of the classes does to them, with their labels."""
    generator = torch.Generator().manual_seed(seed)
    frequencies = torch.logspace(0, -1, CLASSES)
    frequencies /= frequencies.sum()
    centres = 2.2 * torch.randn(CLASSES, 10, generator=generator)
    bias = biased * torch.randn(CLASSES, generator=generator)

    def draw(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.multinomial(frequencies, number, replacement=True, generator=generator)
        points = centres[labels] + 4.0 * torch.randn(number, 10, generator=generator)
        return -(torch.cdist(points, centres) ** 2) / 32 + frequencies.log() + bias, labels

    return draw


METRICS = [
    ("f1", {"average": "macro"}),
    ("accuracy", {}),
    ("balanced_accuracy", {}),
    ("cohen_kappa", {"weights": "quadratic"}),
]


@pytest.mark.parametrize(("name", "options"), METRICS, ids=[name for name, _ in METRICS])
def test_where_classes_are_biased_offsets_gain_what_the_interval_says(name, options):
    metric, draw = load_metric(name, **options), world(1, biased=1.5)
    found = tune_decision(*draw(1_500), metric)
    assert found.rule is not None
    logits, labels = draw(20_000)
    gain = metric.compute(found.rule.decide(logits), labels) - metric.compute(logits.argmax(-1), labels)
    assert gain > 0.02
    assert found.low - 0.02 < gain < found.high + 0.02


@pytest.mark.parametrize("seed", range(4))
def test_where_nothing_is_to_be_gained_argmax_is_kept(seed):
    draw = world(seed)  # these are the true posteriors, whose argmax has the best accuracy there is
    found = tune_decision(*draw(1_000), load_metric("accuracy"))
    assert found.rule is None
    assert "argmax is kept" in str(found)


def test_an_error_rate_and_a_function_are_metrics_too():
    logits, labels = world(2, biased=2.0)(1_200)

    def mistakes(predictions, references):
        return float(np.mean(predictions != references))

    found = tune_decision(logits, labels, load_metric(mistakes, higher_is_better=False))
    assert found.after <= found.before + 0.01  # of a function, frequencies only are tried
    rare = load_metric(lambda predictions, references: float(np.mean(predictions[references == 5] == 5)), name="rare")
    found = tune_decision(*world(3)(1_200), rare)
    assert found.rule is not None
    assert found.after > found.before


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_scale_of_logits_does_not_matter(scale):
    metric, (logits, labels) = load_metric("f1", average="macro"), world(1, biased=1.5)(800)
    one, other = (ClassOffsets.fit(factor * logits, labels, metric) for factor in (1.0, scale))
    assert torch.allclose(scale * one.offsets, other.offsets, rtol=0.05, atol=0.05 * scale)


def test_the_temperature_is_that_of_the_likeliest_probabilities():
    logits, labels = world(0)(20_000)
    assert calibrating_temperature(logits, labels) == pytest.approx(1.0, abs=0.05)
    assert calibrating_temperature(5 * logits, labels) == pytest.approx(5.0, abs=0.25)
    easy = 9.0 * F.one_hot(labels, CLASSES).double()  # without an error there is no temperature
    assert 0 < calibrating_temperature(easy, labels) < 1


@pytest.mark.parametrize(("logits", "labels", "message"), [
    (torch.randn(60), torch.zeros(60).long(), r"logits \[n, C\] and labels"),
    (torch.randn(60, 3, 2), torch.zeros(60, 3).long(), r"but got \[60, 3, 2\]"),
    (torch.randn(60, 3), torch.full((60,), -100), "0 examples are too few"),
        (torch.randn(60, 3), torch.arange(60) % 4, "Labels must be 0 to 2.*but they are 0 to 3"),
])  # fmt: skip
def test_what_cannot_be_tuned_is_told(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        tune_decision(logits, labels, load_metric("accuracy"))


def test_a_class_that_is_not_there_does_no_harm():
    logits, labels = world(0)(400)
    found = tune_decision(logits[:, [0, 1, 2, 3, 4, 5, 5]], labels, load_metric("f1", average="macro"))
    assert found.rule is None or found.rule.offsets.isfinite().all()


def test_a_rule_is_saved_and_loaded(tmp_path):
    rule = ClassOffsets([0.5, -0.25, 0.0])
    rule.save(tmp_path)
    logits = torch.randn(20, 3)
    assert torch.equal(DecisionRule.load(tmp_path).decide(logits), rule.decide(logits))
    for content, message in (('{"rule": "dice"}', "'dice', which is not known"), ('{"rule": "offsets"}', "damaged")):
        (tmp_path / "decision.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            DecisionRule.load(tmp_path)


def test_offsets_are_in_the_bias_of_the_last_layer_of_as_many_classes():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))
    rule, inputs = ClassOffsets([1.0, 0.0, -1.0]), torch.randn(5, 4)
    before = model(inputs)
    assert fold(model, rule)
    assert torch.allclose(model(inputs), rule.scores(before))
    unfold(model, rule)
    assert torch.allclose(model(inputs), before, atol=1e-6)
    assert not fold(nn.Linear(4, 3, bias=False), rule)
    assert not fold(nn.Linear(4, 2), rule)


def test_a_saved_rule_is_known_in_a_process_that_has_imported_nothing_else(tmp_path):
    ClassOffsets([0.5, -0.5]).save(tmp_path)
    code = f"from hf_reloss import DecisionRule; print(type(DecisionRule.load({str(tmp_path)!r})).__name__)"
    done = python(code)
    assert done.stdout.strip() == "ClassOffsets", done.stderr
