import math

import pytest
import torch

from hf_reloss.surrogates.layers import MonotoneSpline, ScoreMixture, class_margins, label_margin


@pytest.mark.parametrize("anchored", [True, False])
def test_a_spline_increases_by_its_slope_and_is_the_identity_at_its_start(anchored):
    spline = MonotoneSpline(8, 3.0, anchored=anchored).double()
    x = torch.linspace(-6, 6, 101, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(spline(x), x)
    with torch.no_grad():
        for parameter in spline.parameters():
            parameter.normal_()
    (slope,) = torch.autograd.grad(spline(x).sum(), x)
    torch.testing.assert_close(spline.slope(x), slope)
    assert (slope > 0).all()
    at_zero = spline(torch.zeros(1, dtype=torch.float64)).item()
    assert at_zero == pytest.approx(0, abs=1e-12) if anchored else abs(at_zero) > 1e-3


def test_the_sigmoid_of_class_margins_is_the_softmax():
    logits = 5 * torch.randn(50, 7, dtype=torch.float64)
    torch.testing.assert_close(class_margins(logits).sigmoid(), logits.softmax(-1))
    assert torch.autograd.gradcheck(class_margins, logits[:5].requires_grad_())


def test_class_margins_keep_their_digits_where_probabilities_are_one():
    logits = torch.tensor([[40.0, 0.0, 0.0], [1e6, 0.0, -1e6]], requires_grad=True)
    margins = class_margins(logits)
    torch.testing.assert_close(margins[:, 0], label_margin(logits, torch.tensor([0, 0])))
    assert margins[0, 0].item() == pytest.approx(40 - math.log(2), abs=1e-5)
    margins.sum().backward()
    assert logits.grad.isfinite().all()


def test_a_mixture_is_a_weighted_geometric_mean_of_the_parts_of_scores():
    mixture = ScoreMixture(2)
    parts, weights = (
        torch.tensor([[0.5, 0.25], [1.0, 1.0], [0.3, 0.0]]),
        torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 0.0]]),
    )
    alone = torch.tensor([[0.9], [0.4], [0.0]])
    losses = mixture([(parts, weights), (alone, torch.ones(3, 1))])
    expected = [0.125**0.25 * 0.9**0.5, 0.4**0.5, (0.3 * 1e-4) ** 0.5]
    torch.testing.assert_close((-losses).exp(), torch.tensor(expected), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        mixture.weights[1] = 50.0
    torch.testing.assert_close(
        mixture([(parts, weights), (alone, torch.ones(3, 1))])[0].exp(), torch.tensor(1 / 0.9), rtol=1e-3, atol=0
    )
    nothing = torch.zeros(1, 2)
    assert mixture([(nothing, nothing), (nothing[:, :1], nothing[:, :1])]).tolist() == [0.0]
