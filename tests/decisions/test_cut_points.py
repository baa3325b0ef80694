"""Cut points between grades, in place of rounding."""

import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from hf_reloss import DecisionRule, load_metric, tune_decision
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


def kappa(decided, labels):
    return cohen_kappa_score(labels.long(), decided, weights="quadratic")


@pytest.mark.parametrize("number", [300, 1_000])
def test_kappa_gains_over_rounding_on_other_examples(number):
    draw = world(0, squeezed=0.5)
    found = tune_decision(*draw(number), KAPPA)
    assert isinstance(found.rule, CutPoints)
    values, labels = draw(20_000)
    gain = kappa(found.rule.decide(values), labels) - kappa(values[:, 0].round().clamp(1, 5).long(), labels)
    assert gain > 0.05
    assert found.low - 0.02 < gain < found.high + 0.02


def test_grades_may_begin_below_0():
    values, labels = world(0, squeezed=0.5)(300)
    below, above = tune_decision(values - 3, labels - 3, KAPPA), tune_decision(values, labels, KAPPA)
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


def test_what_has_no_grades_is_refused():
    values, labels = world(0, 1.0)(100)
    with pytest.raises(ValueError, match="2 to 20 grades, but the labels, rounded, are 1 to 1"):
        tune_decision(values, torch.ones(100), KAPPA)
    with pytest.raises(ValueError, match="there is no decision to tune by it"):
        tune_decision(values, labels, load_metric("pearsonr"))
