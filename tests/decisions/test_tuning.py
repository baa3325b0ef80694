"""Decision rules that are fitted by a metric, and kept only where they gain."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_reloss import load_metric
from hf_reloss.decisions.credit import ExpectedCredit
from hf_reloss.decisions.tuning import judges_decisions, tune_decision
from hf_reloss.metrics.adapters import ComputeMetrics

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
    draw = world(seed)  # these are the true posteriors: their argmax has the best accuracy there is
    found = tune_decision(*draw(1_000), load_metric("accuracy"))
    assert found.rule is None
    assert "argmax is kept" in str(found)


def test_an_error_rate_is_a_metric_too():
    draw = world(2, biased=2.0)

    def mistakes(predictions, references):
        return float(np.mean(np.asarray(predictions != references)))

    found = tune_decision(*draw(1_200), load_metric(mistakes, higher_is_better=False))
    assert found.rule is not None
    assert found.after < found.before
    assert found.low < found.after - found.before < found.high < 0
    logits, labels = draw(10_000)
    assert mistakes(found.rule.decide(logits).numpy(), labels.numpy()) < mistakes(
        logits.argmax(-1).numpy(), labels.numpy()
    )


COST = torch.ones(CLASSES, CLASSES).fill_diagonal_(0)
COST[0, 1] = COST[2, :2] = 9


def hidden_cost(predictions, references):
    return float(COST[references, predictions].float().mean())


def compute_metrics(prediction: EvalPrediction):
    return {"cost": hidden_cost(prediction.predictions.argmax(-1), prediction.label_ids)}


@pytest.mark.parametrize("metric", [
    load_metric(hidden_cost, higher_is_better=False), ComputeMetrics(compute_metrics, "cost", higher_is_better=False),
], ids=["function", "compute_metrics"])  # fmt: skip
def test_costs_that_a_function_hides_are_found(metric):
    draw = world(1)
    found = tune_decision(*draw(1_500), metric)
    assert isinstance(found.rule, ExpectedCredit)
    found_costs = -found.rule.credit / found.rule.credit.abs().max() * 9
    assert torch.allclose(found_costs, COST.double(), atol=1e-3)  # a mean of costs is found exactly
    logits, labels = draw(10_000)
    before, after = (hidden_cost(chosen, labels) for chosen in (logits.argmax(-1), found.rule.decide(logits)))
    best = hidden_cost((logits.softmax(-1) @ -COST.float()).argmax(-1), labels)  # these are the true posteriors
    assert after - best < 0.2 * (before - best)


def test_a_class_that_is_never_right_may_be_the_best_decision():
    logits, labels = world(3)(1_500)
    logits = torch.cat([logits, torch.full((len(logits), 1), -20.0)], dim=1)

    def with_hand_over(predictions, references):
        return float(np.where(predictions == CLASSES, 0.8, predictions == references).mean())

    found = tune_decision(logits, labels, load_metric(with_hand_over))
    assert found.rule is not None
    assert found.after > found.before + 0.02
    handed_over = found.rule.decide(logits) == CLASSES
    assert 0.02 < handed_over.double().mean() < 0.9
    assert with_hand_over(found.rule.decide(logits).numpy(), labels.numpy()) > 0.8


def test_a_function_that_is_no_mean_is_asked_around_the_decisions():
    def macro_f1(predictions, references):
        return load_metric("f1", average="macro").compute(torch.as_tensor(predictions), torch.as_tensor(references))

    draw = world(1, biased=1.5)
    examples = draw(1_500)
    found, known = (tune_decision(*examples, metric) for metric in (macro_f1, load_metric("f1", average="macro")))
    assert found.rule is not None
    logits, labels = draw(10_000)
    of_function, of_known = (macro_f1(rule.decide(logits), labels) for rule in (found.rule, known.rule))
    usual = macro_f1(logits.argmax(-1), labels)
    assert of_function - usual > 0.75 * (of_known - usual)


def test_what_is_no_metric_of_decisions_is_refused():
    logits, labels = world(0)(200)
    assert judges_decisions(load_metric("accuracy"), logits, labels)
    for metric in (
        load_metric("top_k_accuracy", k=2),
        load_metric(lambda predictions, references: float(predictions.mean()), class_indices=False),
    ):
        assert not judges_decisions(metric, logits, labels)
        with pytest.raises(ValueError, match="there is no decision to tune by it"):
            tune_decision(logits, labels, metric)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_scale_of_logits_does_not_matter(scale):
    metric, (logits, labels) = load_metric("f1", average="macro"), world(1, biased=1.5)(800)
    one, other = (tune_decision(factor * logits, labels, metric).rule for factor in (1.0, scale))
    assert (one.decide(logits) == other.decide(scale * logits)).double().mean() > 0.995


@pytest.mark.parametrize(("logits", "labels", "message"), [
    (torch.randn(60), torch.zeros(50).long(), r"logits \[n, C\] and labels"),
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
    assert found.rule is None or found.rule.scores(logits[:, [0, 1, 2, 3, 4, 5, 5]]).isfinite().all()


@pytest.mark.parametrize("number", [500, 2_000])
def test_kept_rules_gain_on_other_examples_too(number):
    """Over many worlds, the mean gain on new examples is above 0, and no world loses much."""
    gains = []
    metric = load_metric("f1", average="macro")
    for seed in range(8):
        draw = world(seed, biased=0.5 * (seed % 3))
        found = tune_decision(*draw(number), metric)
        logits, labels = draw(10_000)
        if found.rule is not None:
            gains.append(metric.compute(found.rule.decide(logits), labels) - metric.compute(logits.argmax(-1), labels))
    assert len(gains) >= 4
    assert np.mean(gains) > 0.005
    assert min(gains) > -0.01


@pytest.mark.parametrize("metric", ["accuracy", load_metric("f1", average="macro"), load_metric(lambda d, r: 0.0)])
def test_of_a_vocabulary_of_classes_no_decision_is_tuned(metric):
    logits, labels = torch.randn(60, 2_001), torch.arange(60)
    with pytest.raises(ValueError, match=r"2,000 classes at most, but the model has 2,001.*tune_decision=False"):
        tune_decision(logits, labels, metric)
