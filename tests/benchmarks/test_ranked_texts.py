"""The losses that rank a model's own texts."""

import pytest
import torch
from scipy.stats import kendalltau


@pytest.fixture
def ranked(program):
    return program("ranked_texts")


def test_the_margin_loss_is_zero_only_in_the_metrics_order(ranked):
    risks = torch.tensor([0.1, 0.4, 0.8, 0.8])
    counts = torch.tensor([True] * 4)
    assert ranked.margin_loss(-2 * risks, risks, counts) == 0
    for order in ([1, 0, 2, 3], [0, 2, 1, 3], [3, 1, 2, 0]):
        shuffled = -2 * risks[order]
        assert kendalltau(shuffled, -risks).statistic < 1
        assert ranked.margin_loss(shuffled, risks, counts) > 0


def test_the_margin_loss_and_its_gradient_by_hand(ranked):
    f = torch.tensor([-1.0, -1.5, -9.0, -torch.inf], requires_grad=True)
    counts = torch.tensor([True, True, False, True])
    found = ranked.margin_loss(f, torch.tensor([0.9, 0.1, 0.0, 0.9]), counts & f.isfinite())
    assert found.item() == pytest.approx(-1.0 + 1.5 + 0.8)  # the second is the better one of the one pair
    found.backward()
    assert f.grad.tolist() == [1.0, -1.0, 0.0, 0.0]
    assert ranked.margin_loss(f.detach(), torch.full((4,), 0.5), counts) == 0  # nothing to compare


def test_the_rank_correlation_loss_is_least_in_the_metrics_order(ranked):
    risks = torch.tensor([[0.1, 0.4, 0.8, 0.9], [0.5, 0.5, 0.5, 0.5]])
    likelihoods = torch.stack([-risks[0], -risks[0]]).requires_grad_()
    ordered = ranked.rank_correlation_loss(likelihoods, risks)
    assert ordered[0] < 0.05
    assert ordered[1] == 0
    assert ranked.rank_correlation_loss(-likelihoods, risks)[0] > 1.9
    ordered.sum().backward()
    assert likelihoods.grad.isfinite().all()
    assert not likelihoods.grad[1].any()
