"""Pictures of decision rules: what is drawn is what is decided by."""

import pytest
import torch
from matplotlib.image import imread

from hf_reloss.decisions.base import DecisionRule
from hf_reloss.decisions.credit import ExpectedCredit
from hf_reloss.decisions.cut_points import CutPoints
from hf_reloss.decisions.pictures import plot_rule
from hf_reloss.decisions.thresholds import LabelThresholds

CREDIT = [[1.0, 0.2, 0.0], [0.0, 1.0, 0.5], [0.1, 0.0, 1.0]]


def test_offsets_are_drawn_where_there_are_some_and_costs_where_not():
    logits = torch.randn(50, 3, dtype=torch.float64)
    likeliest = ExpectedCredit(2.0, [0.5, -0.5, 0.0], torch.eye(3))
    ((what, offsets),) = likeliest.drawn().items()
    assert what == "added to the logit"
    assert torch.equal((logits + offsets).argmax(-1), likeliest.decide(logits))
    rule = ExpectedCredit(2.0, [0.5, -0.5, 0.0], CREDIT)
    biases, costs = rule.drawn().values()
    assert torch.equal(((logits + biases) / 2.0).softmax(-1).matmul(costs).argmin(-1), rule.decide(logits))
    assert list(ExpectedCredit(1.0, torch.zeros(3), CREDIT).drawn()) == ["what a decision costs"]
    (thresholds,) = LabelThresholds([0.0, 1.0]).drawn().values()
    assert thresholds.tolist() == pytest.approx([0.5, torch.tensor(1.0).sigmoid().item()])


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        (ExpectedCredit(1.0, [0.5, -0.5, 0.0], CREDIT), ["a", "$b", "c" * 200]),
        (LabelThresholds([-0.3] * 40), None),
        (CutPoints([0.5, 1.5]), None),
    ],
)
def test_a_picture_is_drawn(tmp_path, rule, names):
    assert plot_rule(tmp_path / "rule.png", rule, names)
    picture = imread(tmp_path / "rule.png")
    assert picture.shape[0] > 400
    assert picture[..., :3].std() > 0.05


class Coin(DecisionRule):
    word = "coin"
    classes = 2

    def scores(self, logits):
        return torch.rand_like(logits)

    def to_dict(self):
        return {}


def test_of_a_rule_without_numbers_there_is_none(tmp_path):
    assert not plot_rule(tmp_path / "rule.png", Coin())
    assert not (tmp_path / "rule.png").exists()
    del DecisionRule.defined["coin"]
