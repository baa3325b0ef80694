import math

import pytest
import torch

from hf_reloss.surrogates.layers import ScoreMixture, class_margins, label_margin


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


def test_a_mixture_is_a_weighted_geometric_mean():
    mixture = ScoreMixture(2)
    scores = torch.tensor([[0.5, 0.9], [1.0, 1.0], [0.0, 1.0]])
    torch.testing.assert_close(mixture(scores).exp(), 1 / (scores + 1e-4).prod(-1).sqrt(), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        mixture.weights[0] = 50.0
    torch.testing.assert_close(mixture(scores)[0].exp(), torch.tensor(2.0), rtol=1e-3, atol=1e-3)
    assert mixture(scores).isfinite().all()
