import pytest
import scipy.stats
import torch

from hf_reloss.learning.objectives import RelationalObjective


def test_the_correlation_of_the_negated_loss_is_close_to_spearmans():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(64, generator=generator, dtype=torch.float64)
    losses = 3 - scores + 0.2 * torch.randn(64, generator=generator, dtype=torch.float64)
    soft = RelationalObjective(1.0).correlation(losses, scores).item()
    assert soft == pytest.approx(scipy.stats.spearmanr(-losses, scores).statistic, abs=0.05)
    assert RelationalObjective(1.0).correlation(-losses, scores).item() == pytest.approx(-soft, abs=1e-3)


def test_climbing_it_sorts_the_losses():
    torch.manual_seed(0)
    scores = torch.rand(32)
    losses = torch.randn(32, requires_grad=True)
    optimizer = torch.optim.Adam([losses], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (-RelationalObjective(1.0).correlation(losses, scores)).backward()
        optimizer.step()
    assert scipy.stats.spearmanr(-losses.detach(), scores).statistic > 0.99


def test_it_does_not_see_scale_or_shift_of_the_losses():
    losses, scores = torch.randn(16, dtype=torch.float64), torch.rand(16)
    one = RelationalObjective(1.0).correlation(losses, scores)
    torch.testing.assert_close(
        RelationalObjective(1.0).correlation(1e-3 * losses + 7, scores), one, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("losses", "scores"), [(torch.randn(8), torch.ones(8)), (torch.ones(8), torch.rand(8))])
def test_where_nothing_can_be_ranked_it_is_zero(losses, scores):
    losses.requires_grad_()
    rho = RelationalObjective(1.0).correlation(losses, scores)
    assert rho == 0
    assert not rho.requires_grad


def test_the_penalty_is_the_mean_square_distance_of_the_norms():
    norms = torch.tensor([[0.5, 2.0], [1.0, 1.0]])
    assert RelationalObjective(1.0).penalty(norms) == pytest.approx((0.25 + 1) / 4)
    assert RelationalObjective(1.0).penalty(norms, norms) == 0
