import math

import pytest
import torch

from hf_reloss import (
    Surrogate,
    SurrogateForClassification,
    SurrogateForKeypoints,
    SurrogateForSpans,
    SurrogateForTokens,
    load_metric,
)
from hf_reloss.losses.layers import MonotoneSpline, ScoreMixture, class_margins, label_margin


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


def test_within_its_trust_region_a_spline_is_the_identity_whatever_is_learned_above():
    spline = MonotoneSpline(8, 3.0, trust_region=True).double()
    with torch.no_grad():
        spline.log_slopes.normal_()
    x = torch.linspace(-6, 6, 121, dtype=torch.float64, requires_grad=True)
    values = spline(x)
    (slope,) = torch.autograd.grad(values.sum(), x)
    torch.testing.assert_close(spline.slope(x), slope)
    wrong = x < 0
    assert torch.equal(values[wrong], x[wrong])
    assert (slope[wrong] == 1).all()
    assert not torch.allclose(values[~wrong], x[~wrong], atol=0.1)
    assert (values.diff() > 0).all()


def pulls(surrogate: Surrogate, outputs: object, labels: torch.Tensor, read: str) -> torch.Tensor:
    """The gradient of the loss at what a model puts out."""
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in outputs.items()}
    surrogate(tensors, labels).backward()
    return tensors[read].grad


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_what_is_learned_pulls_at_wrong_predictions_as_the_soft_metric_does(classes):
    soft, learned = (SurrogateForClassification.for_metric("accuracy", trust_region=True) for _ in range(2))
    free = SurrogateForClassification.for_metric("accuracy")
    logits, labels = 4 * torch.randn(200, classes), torch.randint(classes, (200,))
    with torch.no_grad():
        for surrogate in (learned, free):
            surrogate.network.spline.log_slopes.copy_(torch.linspace(-2, 2, 16))
    found = [pulls(each, {"logits": logits}, labels, "logits").norm(dim=-1) for each in (soft, learned, free)]
    wrong = label_margin(logits, labels) < 0
    assert wrong.sum() > 20
    torch.testing.assert_close(found[1][wrong], found[0][wrong])
    assert not torch.allclose(found[1][~wrong], found[0][~wrong])
    assert (found[2] < 0.7 * found[0])[wrong].any()  # without it, the curve lets go of some


@pytest.mark.parametrize("metric", ["bleu", "squad_f1", "pck", "f1"])
def test_every_curve_has_the_trust_region(metric):
    kinds = {"bleu": SurrogateForTokens, "squad_f1": SurrogateForSpans, "pck": SurrogateForKeypoints}
    metric = load_metric(metric, average="macro") if metric == "f1" else metric
    surrogate = kinds.get(metric, SurrogateForClassification).for_metric(metric, trust_region=True)
    with torch.no_grad():
        surrogate.network.spline.log_slopes.normal_()
    points = torch.linspace(-5, 5, 41)
    soft = torch.nn.functional.softplus(-points)
    curve = surrogate.curve(points)
    torch.testing.assert_close(curve[points < 0], soft[points < 0])
    assert not torch.allclose(curve[points > 0], soft[points > 0])
