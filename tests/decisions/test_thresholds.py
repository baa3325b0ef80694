"""Thresholds of labels, where each example may have several."""

import pytest
import torch
from sklearn.metrics import f1_score

from hf_reloss import load_metric
from hf_reloss.decisions.base import DecisionRule
from hf_reloss.decisions.thresholds import LabelThresholds
from hf_reloss.decisions.tuning import tune_decision
from hf_reloss.metrics import ComputeMetrics

LABELS = 5


def world(seed: int, biased: float = 0.0):
    """Draws logits of labels, true ones less a bias of each label, and labels, of which some are rare."""
    generator = torch.Generator().manual_seed(seed)
    bias = biased * torch.randn(LABELS, generator=generator)
    rare = torch.linspace(-4, 0, LABELS)

    def draw(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        logits = 2 * torch.randn(number, LABELS, generator=generator) + rare
        return logits + bias, torch.bernoulli(logits.sigmoid(), generator=generator).long()

    return draw


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize("biased", [0.0, 1.5])
def test_f1_gains_and_thresholds_are_about_half_of_it(average, biased):
    metric, draw = load_metric("f1", average=average, threshold=0.5), world(0, biased)
    found = tune_decision(*draw(3_000), metric)
    assert isinstance(found.rule, LabelThresholds)
    logits, labels = draw(20_000)
    decided = found.rule.decide(logits)
    before, after = (f1_score(labels, chosen, average=average) for chosen in ((logits > 0).long(), decided))
    assert after > before + 0.01
    assert found.low - 0.02 < after - before < found.high + 0.02
    bias = (world(0, biased)(1)[0] - world(0, 0.0)(1)[0])[0]
    probabilities = (found.rule.thresholds - bias).sigmoid()  # the thresholds, of true probabilities
    best = f1_score(labels, decided, average=None) if average == "macro" else torch.full((LABELS,), after)
    assert (probabilities - torch.as_tensor(best) / 2).abs().max() < 0.1


def test_of_a_function_thresholds_are_tuned_by_what_it_says():
    def compute_metrics(prediction):
        decided = prediction.predictions > 0  # whether the logits are those of the model or decisions
        return {"f1": f1_score(prediction.label_ids, decided, average="macro", zero_division=0)}

    metric, draw = ComputeMetrics(compute_metrics, "f1"), world(0)
    found = tune_decision(*draw(1_000), metric)
    logits, labels = draw(5_000)
    before, after = (f1_score(labels, chosen, average="macro") for chosen in (logits > 0, found.rule.decide(logits)))
    assert after > before + 0.01


def test_where_nothing_is_to_be_gained_half_is_kept():
    _, labels = world(1)(2_000)
    easy = 20.0 * (labels - 0.5)  # nothing is wrong
    assert tune_decision(easy, labels, load_metric("f1", average="micro", threshold=0.5)).rule is None


def test_they_are_saved_and_are_offsets_of_the_last_layer(tmp_path):
    made, logits = LabelThresholds([0.5, -1.0, 0.0]), torch.randn(50, 3)
    made.save(tmp_path)
    loaded = DecisionRule.load(tmp_path)
    assert torch.equal(loaded.decide(logits), made.decide(logits))
    assert torch.equal((logits + made.offsets() > 0).long(), made.decide(logits))
    assert made.classes == 3


def test_other_metrics_are_refused():
    logits, labels = world(0)(200)
    with pytest.raises(ValueError, match="there is no decision to tune by it"):
        tune_decision(logits, labels, load_metric("roc_auc", average="macro"))
    with pytest.raises(ValueError, match="Labels must be 0 to 1"):
        tune_decision(logits, 2 * labels, load_metric("f1", average="macro", threshold=0.5))
