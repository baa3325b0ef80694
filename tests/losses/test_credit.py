"""Margins over what confusions cost."""

import pytest
import torch
import torch.nn.functional as F

from hf_reloss import AutoSurrogate, SurrogateForClassification, load_metric
from hf_reloss.losses.base import Evidence
from hf_reloss.losses.learned.credit import CreditNetwork
from hf_reloss.losses.learned.margin import MarginNetwork
from hf_reloss.predictions.dataset import recorded_dataset

CLASSES = 5


def evidence(number: int = 64, seed: int = 0) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    logits, labels = (
        torch.randn(number, CLASSES, generator=generator),
        torch.randint(CLASSES, (number,), generator=generator),
    )
    return Evidence(2 * logits, labels, torch.ones(number, dtype=torch.bool))


def predictions(number: int = 1_000):
    """Of grades that are taken for their neighbours."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(CLASSES, (number,), generator=generator)
    logits = torch.randn(number, CLASSES, generator=generator) - (torch.arange(CLASSES) - labels[:, None]) ** 2
    columns = {"logits": logits, "labels": labels, "stage": torch.rand(number, generator=generator)}
    return recorded_dataset(SurrogateForClassification, columns)


def with_costs(costs: torch.Tensor) -> CreditNetwork:
    network = CreditNetwork(classes=CLASSES)
    network.costs.copy_(costs)
    return network


def test_without_costs_it_is_the_soft_form_of_accuracy():
    of_margin, of_credit = MarginNetwork(), CreditNetwork()
    assert torch.equal(of_credit(evidence()), of_margin(evidence()))
    for ours, theirs in zip(of_credit.gradient_norms(evidence()), of_margin.gradient_norms(evidence()), strict=True):
        assert torch.equal(ours, theirs)


def test_it_is_the_softmax_margin_loss():
    costs = 3 * torch.rand(CLASSES, CLASSES).fill_diagonal_(0.0)
    given = evidence()
    raised = given.outputs + costs[given.labels]
    wanted = F.cross_entropy(raised, given.labels, reduction="none")
    scale = (raised - raised.mean(-1, keepdim=True)).norm(dim=-1)
    torch.testing.assert_close(with_costs(costs).losses(given), wanted + 0.1 * scale, rtol=1e-4, atol=1e-5)


def test_its_gradient_norms_are_those_of_autograd():
    network, given = with_costs(2 * torch.rand(CLASSES, CLASSES).fill_diagonal_(0.0)), evidence()
    with torch.no_grad():
        network.spline.log_slopes.normal_(std=0.5)
    outputs = given.outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network.losses(given._replace(outputs=outputs)).sum(), outputs)
    torch.testing.assert_close(network.gradient_norms(given)[0], gradient.norm(dim=-1), rtol=1e-3, atol=1e-4)


def test_what_costs_more_is_left_further_behind():
    costs = torch.zeros(CLASSES, CLASSES)
    costs[0, 1] = 4.0
    logits = torch.zeros(1, CLASSES, requires_grad=True)
    given = Evidence(logits, torch.tensor([0]), torch.ones(1, dtype=torch.bool))
    network = with_costs(costs)
    network.pull = 0.01
    network(given).backward()
    assert logits.grad[0, 1] > 5 * logits.grad[0, 2] > 0


def test_kappa_is_read_off_its_gradient_and_a_function_is_asked():
    def mean_credit(predicted, true):
        return float((1 - (torch.as_tensor(predicted) - torch.as_tensor(true)).abs().double() / 4).mean())

    grades = torch.arange(float(CLASSES))
    for metric, wanted in (
        (load_metric("cohen_kappa", weights="quadratic"), None),
        (load_metric(mean_credit, higher_is_better=True), (grades[:, None] - grades).abs()),
    ):
        surrogate = SurrogateForClassification.for_metric(metric)
        assert surrogate.config.architecture == "credit"
        surrogate.begin(predictions(), metric)
        costs = surrogate.network.costs
        assert torch.equal(costs.diff(dim=1) > 0, grades[1:] > grades[:, None])  # the dearer, the further off
        if wanted is not None:
            torch.testing.assert_close(costs / costs.max(), wanted / wanted.max(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("function", [lambda logits, labels: 1.0 / 0, lambda logits, labels: float("nan")])
def test_a_function_that_says_nothing_of_decisions_leaves_it_the_soft_form_of_accuracy(function):
    metric = load_metric(function, higher_is_better=True)
    surrogate = SurrogateForClassification.for_metric(metric)
    surrogate.begin(predictions(), metric)
    given = evidence()
    assert surrogate.config.loss_options is None or not surrogate.network.costs.any()
    torch.testing.assert_close(surrogate.network(given), MarginNetwork(scale_weight=0.01)(given))


def test_it_is_saved_with_its_costs_and_refuses_other_classes(tmp_path):
    metric = load_metric("cohen_kappa", weights="quadratic")
    surrogate = SurrogateForClassification.for_metric(metric)
    surrogate.begin(predictions(), metric)
    surrogate.save_pretrained(tmp_path)
    loaded = AutoSurrogate.from_pretrained(tmp_path)
    assert torch.equal(loaded.network.costs, surrogate.network.costs)
    assert loaded(2 * torch.eye(CLASSES), torch.arange(CLASSES)) == surrogate(
        2 * torch.eye(CLASSES), torch.arange(CLASSES)
    )
    with pytest.raises(ValueError, match="confusions of 5 classes cost, but the model puts out 3 logits"):
        loaded(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match="classes is a number up to 2,000, but got -1"):
        CreditNetwork(classes=-1)


def test_of_a_vocabulary_of_classes_no_costs_are_asked_for():
    labels = torch.randint(2_001, (200,))
    columns = {"logits": torch.randn(200, 2_001), "labels": labels, "stage": torch.rand(200)}
    metric = load_metric(lambda decided, right: float((decided == right).mean()), higher_is_better=True)
    surrogate = SurrogateForClassification.for_metric(metric)
    surrogate.begin(recorded_dataset(SurrogateForClassification, columns), metric)
    assert surrogate.network.costs.shape == (0, 0)
