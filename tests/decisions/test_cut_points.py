"""Cut points between grades, in place of rounding."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from hf_reloss import DecisionRule, load_metric, tune_decision
from hf_reloss.decisions import fitting
from hf_reloss.decisions.cut_points import CutPoints

KAPPA = load_metric("cohen_kappa", weights="quadratic")


def world(seed: int, squeezed: float):
    """Draws values that are drawn to the middle, as squared errors make them, with grades 1 to 5."""
    generator = torch.Generator().manual_seed(seed)

    def draw(number: int):
        true = 3 + 1.2 * torch.randn(number, generator=generator)
        seen = true + 0.7 * torch.randn(number, generator=generator)
        return (3 + squeezed * (seen - 3))[:, None], true.round().clamp(1, 5)

    return draw


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """No search ends by the clock, so that a busy machine finds what an idle one does."""
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: 0.0))


@functools.cache
def tuned_by_name(number: int):
    """What quadratic kappa, known by its name, makes of values that are drawn to the middle."""
    return tune_decision(*world(0, squeezed=0.5)(number), KAPPA)


def kappa(decided, labels):
    return cohen_kappa_score(labels.long(), decided, weights="quadratic")


@pytest.mark.parametrize("number", [300, 1_000])
def test_kappa_gains_over_rounding_on_other_examples(number):
    found = tuned_by_name(number)
    assert isinstance(found.rule, CutPoints)
    values, labels = world(1, squeezed=0.5)(20_000)
    gain = kappa(found.rule.decide(values), labels) - kappa(values[:, 0].round().clamp(1, 5).long(), labels)
    assert gain > 0.05
    assert found.low - 0.02 < gain < found.high + 0.02


def test_grades_may_begin_below_0():
    values, labels = world(0, squeezed=0.5)(300)
    below, above = tune_decision(values - 3, labels - 3, KAPPA), tuned_by_name(300)
    assert below.after == pytest.approx(above.after)
    assert torch.equal(below.rule.decide(values - 3) + 3, above.rule.decide(values))


def test_where_rounding_is_right_it_is_kept():
    labels = torch.arange(300) % 5
    found = tune_decision(labels + 0.3 * (torch.rand(300) - 0.5), labels, KAPPA)
    assert found.rule is None
    assert "rounding is kept" in str(found)


def test_scores_round_to_what_is_decided_and_keep_the_order(tmp_path):
    rule = CutPoints([1.1, 2.2, 2.3, 4.0], lowest=1)
    rule.save(tmp_path)
    values = torch.linspace(-3, 9, 5_001)[:, None]
    loaded = DecisionRule.load(tmp_path)
    assert torch.equal(loaded.decide(values), rule.decide(values))
    assert torch.equal(rule.scores(values)[:, 0].round().long(), rule.decide(values))
    assert (rule.scores(values).diff(dim=0) >= 0).all()
    assert rule.scores(values).shape == values.shape
    assert set(rule.decide(values).tolist()) == {1, 2, 3, 4, 5}
    assert rule.classes == 5


def quick_kappa(grades, truth):
    """Quadratic kappa, 1 less the mean squared difference over what it is by chance: without sklearn's checks."""
    by_chance = grades.var() + truth.var() + (grades.mean() - truth.mean()) ** 2
    return 1 - ((grades - truth) ** 2).mean() / by_chance


def of_grades(evaluation):
    assert evaluation.predictions.shape == (len(evaluation.label_ids), 1)
    return {"qwk": quick_kappa(np.rint(evaluation.predictions[:, 0]), evaluation.label_ids)}


def test_ones_own_function_that_rounds_has_the_cut_points_that_it_has_by_its_name():
    values, labels = world(0, squeezed=0.5)(300)
    assert quick_kappa(values[:, 0].round().numpy(), labels.numpy()) == pytest.approx(kappa(values.round(), labels))
    wanted = tuned_by_name(300)

    def rounded(predictions, references):
        return quick_kappa(np.rint(predictions), references)

    for metric in (load_metric(rounded), load_metric(of_grades, key="qwk")):
        found = tune_decision(values, labels, metric)
        assert torch.allclose(found.rule.cut_points, wanted.rule.cut_points)
        assert (found.before, found.after) == pytest.approx((wanted.before, wanted.after))
        assert metric.direction_known  # asked of numbers, [n] or [n, 1]


def test_what_has_no_grades_is_refused():
    values, labels = world(0, 1.0)(100)
    with pytest.raises(ValueError, match="2 to 20 grades, but the labels, rounded, are 1 to 1"):
        tune_decision(values, torch.ones(100), KAPPA)
    with pytest.raises(ValueError, match="there is no decision to tune by it"):
        tune_decision(values, labels, load_metric("pearsonr"))
    with pytest.raises(ValueError, match="there is no decision to tune by it"):
        tune_decision(values, labels, load_metric(lambda evaluation: {"mean": evaluation.predictions.mean()}))
