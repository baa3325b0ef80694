import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss import SurrogateConfig, SurrogateForClassification, load_metric
from hf_reloss.losses.base import Evidence
from hf_reloss.losses.layers import label_margin

architectures = pytest.mark.parametrize("architecture", ["margin", "counts", "paper"])
SCORES = {"f1": {"average": "macro"}, "matthews_correlation": {}}


def surrogate_with_random_weights(seed: int, **config) -> SurrogateForClassification:
    if config.get("architecture") == "counts":
        config.setdefault("scores", SCORES)
    surrogate = SurrogateForClassification(SurrogateConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.normal_(generator=generator)
    return surrogate.freeze()


def scale(logits: torch.Tensor) -> torch.Tensor:
    return (logits - logits.mean(-1, keepdim=True)).norm(dim=-1)


def test_at_its_start_it_is_cross_entropy_with_a_pull_on_the_scale():
    logits, labels = torch.randn(20, 7), torch.randint(7, (20,))
    loss = SurrogateForClassification(SurrogateConfig(scale_weight=0.2))(logits, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels) + 0.2 * scale(logits).mean(), rtol=1e-5, atol=1e-5)


def norms_by_autograd(surrogate: SurrogateForClassification, evidence: Evidence) -> torch.Tensor:
    outputs = evidence.outputs.clone().requires_grad_()
    losses = surrogate.network(evidence._replace(outputs=outputs)) * evidence.counts.sum(-1)
    return torch.autograd.grad(losses.sum(), outputs, create_graph=True)[0].norm(dim=-1)


@architectures
def test_gradient_norms_and_their_gradients_are_those_of_autograd(architecture):
    surrogate = surrogate_with_random_weights(0, architecture=architecture, hidden_size=8).requires_grad_(True)
    evidence = surrogate.evidence(3 * torch.randn(10, 20, 7), torch.randint(7, (10, 20)))
    ours, expected = surrogate.network.gradient_norms(evidence)[0], norms_by_autograd(surrogate, evidence)
    if architecture == "counts":
        expected = expected[::8]  # a sample of the groups
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    weights = dict(surrogate.named_parameters())
    our_gradients, expected_gradients = (
        torch.autograd.grad(norms.square().sum(), weights.values(), allow_unused=True) for norms in (ours, expected)
    )
    for name, one, two in zip(weights, our_gradients, expected_gradients, strict=True):
        assert (one is None) == (two is None), name
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_the_norms_it_is_held_to_are_those_of_its_start():
    start = SurrogateForClassification(SurrogateConfig())
    evidence = start.evidence(torch.randn(20, 7), torch.randint(7, (20,)))
    learned = surrogate_with_random_weights(0)
    torch.testing.assert_close(learned.network.gradient_norms(evidence)[1], norms_by_autograd(start, evidence).detach())
    start = SurrogateForClassification(SurrogateConfig(architecture="counts", scores=SCORES))
    learned = surrogate_with_random_weights(0, architecture="counts")
    groups = Evidence(*(tensor[None] for tensor in evidence))
    torch.testing.assert_close(learned.network.gradient_norms(groups)[1], norms_by_autograd(start, groups).detach())
    assert (surrogate_with_random_weights(0, architecture="paper").network.gradient_norms(evidence)[1] == 1.0).all()


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_it_is_learned_where_a_right_prediction_rests_at_the_start(classes):
    surrogate = SurrogateForClassification(SurrogateConfig()).freeze().double()
    logits = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        loss = surrogate.network.losses(surrogate.evidence(logits, torch.tensor([0]))._replace(outputs=logits)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    evidence = surrogate.network.canonical(
        surrogate.evidence(9 * torch.randn(5, classes), torch.zeros(5, dtype=torch.int64))
    )
    torch.testing.assert_close(scale(evidence.outputs), scale(logits.detach()).float().expand(5), rtol=1e-3, atol=0)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(3, 20), st.floats(0.5, 20))
def test_margin_surrogates_decrease_whatever_their_weights(seed, knots, reach):
    # In float64: where a curve is as good as flat, float32 goes up and down by its rounding.
    surrogate = surrogate_with_random_weights(seed, num_knots=knots, knot_range=reach).double()
    losses = surrogate.curve(torch.linspace(-3 * reach, 3 * reach, 500, dtype=torch.float64))
    assert (losses.diff() <= 1e-12).all()
    assert losses[0] > losses[-1]
    assert (losses >= 0).all()


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_at_one_scale_a_larger_margin_never_costs_more(seed):
    surrogate = surrogate_with_random_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(60, 5, generator=generator), torch.randint(5, (60,), generator=generator)
    evidence = surrogate.network.canonical(surrogate.evidence(logits, labels))
    order = label_margin(evidence.outputs, evidence.labels).argsort()
    assert (surrogate.network.losses(evidence)[order].diff() <= 1e-5).all()


def soft_f1_of_classes(logits, labels):
    """Written out class by class, those that are due."""
    p = logits.softmax(-1)
    due = [k for k in range(logits.shape[-1]) if (labels == k).any()]
    of_class = [2 * p[labels == k, k].sum() / (p[:, k].sum() + (labels == k).sum()) for k in due]
    return torch.stack(of_class)


def test_at_its_start_the_counts_surrogate_is_the_soft_metric_with_a_pull_on_the_scale():
    logits, labels = torch.randn(30, 6), torch.randint(5, (30,))  # class 5 is never due
    config = SurrogateConfig(architecture="counts", scores={"f1": {"average": "macro"}}, scale_weight=0.2)
    expected = -soft_f1_of_classes(logits, labels).log().mean() + 0.2 * scale(logits).mean()
    torch.testing.assert_close(SurrogateForClassification(config)(logits, labels), expected, rtol=1e-3, atol=1e-4)


def test_soft_metrics_of_hard_decisions_give_the_metric_itself():
    logits, labels = 200 * torch.randn(40, 4), torch.randint(4, (40,))
    group = Evidence(logits, labels, torch.ones(40, dtype=torch.bool))
    for name, options in {"matthews_correlation": {}, "recall": {"average": "micro"}}.items():  # of one part each
        metric = load_metric(name, **options)
        network = SurrogateForClassification.for_metric(metric).network
        value = network(group) - network.pull * scale(logits).mean()
        expected = max((metric.compute(logits, labels) - metric.zero_point) / (1 - metric.zero_point), 1e-4)
        assert math.exp(-value) == pytest.approx(expected, abs=1e-2), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["f1", "recall", "balanced_accuracy"]))
def test_more_for_the_label_never_costs_more_whatever_was_learned(seed, name):
    options = {} if name == "balanced_accuracy" else {"average": "macro"}
    surrogate = surrogate_with_random_weights(seed, architecture="counts", scores={name: options})
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(20, 5, generator=generator), torch.randint(5, (20,), generator=generator)
    evidence = surrogate.evidence(logits.requires_grad_(), labels)
    (surrogate.network(evidence) - surrogate.network.pull * scale(logits).mean()).backward()
    assert (logits.grad.gather(1, labels[:, None]) <= 1e-6).all()


def test_the_structure_fits_the_metric():
    def config_for(metric):
        return SurrogateForClassification.for_metric(metric).config

    assert config_for(load_metric("accuracy")).architecture == "margin"
    f1 = load_metric("f1", average="weighted")
    assert config_for(f1).scores == {"f1": f1.options}
    for own in (load_metric(lambda predictions, references: 0.0), load_metric("cohen_kappa", weights="quadratic")):
        assert config_for(own).architecture == "credit"
    of_scores = config_for(load_metric("roc_auc"))
    assert of_scores.architecture == "counts"
    assert len(of_scores.scores) > 3


def test_a_group_loss_has_no_losses_of_predictions():
    with pytest.raises(ValueError, match="'counts' is that of a group"):
        surrogate_with_random_weights(0, architecture="counts")(
            torch.randn(4, 3), torch.zeros(4).long(), reduction="none"
        )


def test_a_shift_of_all_logits_is_not_seen():
    surrogate = surrogate_with_random_weights(0)
    logits, labels = torch.randn(20, 5), torch.randint(5, (20,))
    torch.testing.assert_close(surrogate(logits, labels), surrogate(logits - 4, labels), rtol=1e-4, atol=1e-4)


def test_the_paper_network_is_the_authors():
    surrogate = surrogate_with_random_weights(1, architecture="paper", hidden_size=8)
    layers = {"logits_fcs.0": (8, 1), "logits_fcs.2": (8, 8), "loss.0": (8, 8), "loss.2": (1, 8)}
    expected = {f"{layer}.weight": shape for layer, shape in layers.items()}
    expected |= {f"{layer}.bias": shape[:1] for layer, shape in layers.items()}
    assert {name: tuple(weight.shape) for name, weight in surrogate.network.state_dict().items()} == expected
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    w = surrogate.network.state_dict()
    x = logits.softmax(1).gather(1, labels[:, None])
    for layer in ("logits_fcs.0", "logits_fcs.2", "loss.0"):
        x = F.elu(x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"])
    expected = (x @ w["loss.2.weight"].T + w["loss.2.bias"]).abs().mean()
    torch.testing.assert_close(surrogate(logits, labels), expected)


@architectures
def test_any_form_of_outputs_is_read(architecture):
    surrogate = surrogate_with_random_weights(2, architecture=architecture)
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    expected = surrogate(logits, labels)
    own_loss = torch.tensor(3.0)
    hidden = torch.randn(6, 2, 2)
    for outputs in (
        SequenceClassifierOutput(loss=own_loss, logits=logits),
        {"logits": logits},
        (own_loss, logits, hidden),
        (logits, hidden),
    ):
        assert surrogate(outputs, labels) == expected


@architectures
def test_labels_of_minus_100_do_not_count(architecture):
    surrogate = surrogate_with_random_weights(3, architecture=architecture)
    logits, labels = torch.randn(6, 4, requires_grad=True), torch.tensor([0, -100, 2, -100, 1, 3])
    counts = labels != -100
    loss = surrogate(logits, labels)
    torch.testing.assert_close(loss, surrogate(logits[counts], labels[counts]))
    loss.backward()
    assert (logits.grad[~counts] == 0).all()
    assert (logits.grad[counts] != 0).any()
    assert surrogate(logits, torch.full_like(labels, -100)) == 0


@pytest.mark.parametrize(("dtype", "label"), [(torch.uint8, 156), (torch.int8, 100), (torch.int32, 199)])
def test_labels_of_a_short_type_are_not_mistaken_for_what_is_out_of_its_range(dtype, label):
    """In uint8, -100 is 156; in int8, 200 is -56."""
    surrogate, logits, labels = surrogate_with_random_weights(3), torch.randn(2, 200), torch.tensor([label, 3])
    evidence = surrogate.evidence(logits, labels.to(dtype))
    assert evidence.labels.tolist() == [label, 3]
    assert evidence.labels.dtype == torch.int64
    assert evidence.counts.all()
    assert surrogate(logits, labels.to(dtype)) == surrogate(logits, labels)


@architectures
def test_it_computes_in_float32_under_autocast_and_for_bfloat16(architecture):
    surrogate = surrogate_with_random_weights(4, architecture=architecture)
    logits, labels = torch.randn(6, 4).bfloat16().requires_grad_(), torch.randint(4, (6,))
    plain = surrogate(logits.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = surrogate(logits, labels)
    assert mixed.dtype == torch.float32
    assert mixed == plain
    mixed.backward()
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad.isfinite().all()


@architectures
def test_gradients_are_exact(architecture):
    surrogate = surrogate_with_random_weights(5, architecture=architecture).double()
    evidence = surrogate.evidence(torch.randn(4, 5), torch.randint(5, (4,)))
    inputs = evidence.outputs.double().requires_grad_()
    losses = lambda z: surrogate.network(evidence._replace(outputs=z))  # noqa: E731
    assert torch.autograd.gradcheck(losses, inputs)
    assert torch.autograd.gradgradcheck(losses, inputs)


@architectures
@pytest.mark.parametrize("confident", [1.0, 1e4, 1e15])
def test_extreme_logits_have_finite_losses_and_gradients(architecture, confident):
    surrogate = surrogate_with_random_weights(6, architecture=architecture)
    logits = torch.tensor([[confident, 0.0, 0.0], [0.0, 0.0, 0.0], [confident, -confident, 0.0]], requires_grad=True)
    loss = surrogate(logits, torch.tensor([0, 1, 1]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@architectures
def test_classes_that_a_model_has_ruled_out_are_read(architecture):
    surrogate = surrogate_with_random_weights(6, architecture=architecture)
    logits = torch.tensor([[2.0, 0.0, -torch.inf], [-torch.inf, 1.0, 0.5]], requires_grad=True)
    labels = torch.tensor([0, 2])
    loss = surrogate(logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad[logits.isneginf()].eq(0).all()
    usual = surrogate.original_losses(surrogate.evidence(logits, labels))
    assert torch.allclose(usual, F.cross_entropy(logits, labels, reduction="none"))
    with pytest.raises(ValueError, match="not finite"):  # nothing is left of the first
        surrogate(torch.tensor([[-torch.inf, -torch.inf], [0.0, 1.0]]), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.randn(3, 4), torch.tensor([0, 4, 1]), "0 to 3.*such as 4"),
        (torch.randn(3, 4), torch.tensor([0, -1, 1]), "such as -1"),
        (torch.randn(3, 4), torch.tensor([0.0, 1.0, 1.0]), "integer labels"),
        (torch.tensor([[0.0, torch.nan, 1.0]]), torch.tensor([0]), "not finite"),
        (torch.randn(3, 7, 4), torch.tensor([0, 1, 1]), r"one label per example.*\[3, 7, 4\]"),
        (torch.randn(3, 7, 4), torch.zeros(3, 7, dtype=torch.int64), r"labels \[3, 7\]: a model that labels tokens"),
        (torch.randn(3, 4), None, "None"),
        ({"start_logits": torch.randn(3, 4)}, torch.tensor([0, 1, 1]), "start_logits"),
        (torch.randn(3, 1), torch.tensor([0, 0, 0]), "two classes or more"),
        ("text", torch.tensor([0]), "str"),
    ],
)
def test_bad_input_says_what_is_wanted(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        SurrogateForClassification(SurrogateConfig())(logits, labels)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="'paper'"):
        SurrogateForClassification(SurrogateConfig(architecture="transformer"))
    with pytest.raises(ValueError, match="'none'"):
        SurrogateForClassification(SurrogateConfig())(torch.randn(2, 3), torch.tensor([0, 1]), reduction="sum")
    with pytest.raises(ValueError, match="3 intervals"):
        SurrogateForClassification(SurrogateConfig(num_knots=1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        SurrogateForClassification(SurrogateConfig(scale_weight=0.0))
    with pytest.raises(ValueError, match="'counts' wants scores"):
        SurrogateForClassification(SurrogateConfig(architecture="counts"))
    with pytest.raises(ValueError, match="'accuracy' is not"):
        SurrogateForClassification(SurrogateConfig(architecture="counts", scores={"accuracy": {}}))
