"""With two classes every loss and every surrogate works as with more."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_reloss import (
    SurrogateConfig,
    SurrogateForClassification,
    SurrogateForTokens,
    SurrogateTrainer,
    SurrogateTrainingArguments,
    hand_made_loss,
    hand_made_losses,
    load_metric,
)
from hf_reloss.losses.base import Evidence
from hf_reloss.losses.learned.counts import GENERAL_SCORES
from hf_reloss.predictions.recorder import PredictionRecorder
from hf_reloss.surrogates.base import Surrogate

from ..conftest import synthetic_predictions

LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0])
RIGHT = F.one_hot(LABELS).float()
HALF_RIGHT = torch.where(torch.arange(12)[:, None] % 2 == 0, RIGHT, 1 - RIGHT)
EXAMPLES = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
LOGITS = {
    "random": 3 * EXAMPLES,
    "right": 9 * RIGHT,
    "wrong": 9 * (1 - RIGHT),
    "equal": torch.zeros(12, 2),
    "extreme": 1e4 * EXAMPLES.sign(),
    "extreme and right": 2e4 * RIGHT - 1e4,
    "extreme and wrong": 1e4 - 2e4 * RIGHT,
    "sure": 50 * (1 - HALF_RIGHT),  # probabilities whose squares float32 does not hold
    "one class": torch.tensor([90.0, 0.0]).expand(12, 2),
}
LABELLINGS = {
    "both classes": LABELS,
    "the first class only": torch.zeros_like(LABELS),
    "the second class only": torch.ones_like(LABELS),
    "some ignored": LABELS.masked_fill(torch.arange(12) % 3 == 0, -100),
    "one example": LABELS.masked_fill(torch.arange(12) > 0, -100),
}
COUNT_METRICS = {
    "f1": [{"average": average} for average in ("binary", "micro", "macro", "weighted")],
    "precision": [{"average": average} for average in ("binary", "macro")],
    "recall": [{"average": average} for average in ("binary", "micro", "macro")],
    "fbeta": [{"beta": 0.5}, {"average": "macro", "beta": 2.0}],
    "balanced_accuracy": [{}, {"adjusted": True}],
    "matthews_correlation": [{}],
    "mean_iou": [{}],
    "dice": [{}],
    "pixel_accuracy": [{}],
}
SCORES = {
    f"{name} {' '.join(map(str, options.values()))}".strip(): {name: options}
    for name, cases in COUNT_METRICS.items()
    for options in cases
} | {"a mixture": GENERAL_SCORES}
LEARNED = {
    "margin": {"architecture": "margin"},
    "credit": {"architecture": "credit", "loss_options": {"classes": 2}},
    "paper": {"architecture": "paper", "hidden_size": 8},
    "set": {"architecture": "set", "hidden_size": 8},
} | {f"counts of {name}": {"architecture": "counts", "scores": scores} for name, scores in SCORES.items()}
HAND_MADE = sorted(hand_made_losses())
EMBEDDINGS = sorted(hand_made_losses("embeddings"))

CASES = [f"{logits}, {labels}" for logits in LOGITS for labels in LABELLINGS]
ALL_LOGITS = torch.stack([logits for logits in LOGITS.values() for _ in LABELLINGS])  # as many groups
ALL_LABELS = torch.stack([labels for _ in LOGITS for labels in LABELLINGS.values()])

every_loss = pytest.mark.parametrize("name", [*LEARNED, *HAND_MADE])


def fresh(name: str) -> Surrogate:
    """A loss for two classes, learned or hand-made, at its start."""
    torch.manual_seed(0)
    if name in LEARNED:
        return SurrogateForClassification(SurrogateConfig(**LEARNED[name]))
    options = {"classes": 2} if name == "class_correlation" else {}
    if name in EMBEDDINGS and name not in HAND_MADE:
        pytest.importorskip("pytorch_metric_learning")
    return hand_made_loss(name, torch.tensor([0, 1, 1, 1]), **options)


def as_if_learned(surrogate: Surrogate, seed: int = 0) -> Surrogate:
    """The loss with random values of all that is learned, or that a controller changes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.normal_(generator=generator)
    if surrogate.config.architecture == "class_correlation":
        surrogate.network.adjust(torch.randn(3, generator=generator))
    return surrogate


def every_state(name: str) -> list[Surrogate]:
    return [fresh(name), as_if_learned(fresh(name), 0), as_if_learned(fresh(name), 1)]


def not_finite(values: torch.Tensor) -> list[str]:
    """The cases, one for each of the groups [m, ...], in which some are not finite."""
    wrong = ~values.flatten(1).isfinite().all(1) if values.dim() > 1 else ~values.isfinite()
    return [case for case, is_wrong in zip(CASES, wrong, strict=True) if is_wrong]


def assert_losses_are_finite(surrogate: Surrogate, evidence: Evidence) -> None:
    outputs = evidence.outputs.clone().requires_grad_()
    losses = surrogate(evidence._replace(outputs=outputs))
    assert not not_finite(losses)
    (gradients,) = torch.autograd.grad(losses.sum(), outputs)
    assert not not_finite(gradients)


def assert_penalty_is_finite(surrogate: Surrogate, evidence: Evidence) -> None:
    groups = Evidence(*(tensor.repeat_interleave(8, 0) for tensor in evidence))  # of some, every eighth is looked at
    norms, wanted = surrogate.network.gradient_norms(groups)
    each = len(norms) // len(CASES)
    assert not not_finite(norms[::each])
    assert not not_finite(wanted[::each])
    weights = list(surrogate.parameters())
    for gradient in torch.autograd.grad((norms - wanted).square().mean(), weights, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


# Losses


@every_loss
def test_losses_and_their_gradients_are_finite(name):
    for surrogate in every_state(name):
        assert_losses_are_finite(surrogate, surrogate.evidence(ALL_LOGITS, ALL_LABELS))


@pytest.mark.parametrize("name", LEARNED)
def test_the_gradient_penalty_can_be_learned_from(name):
    for surrogate in every_state(name):
        evidence = surrogate.evidence(ALL_LOGITS, ALL_LABELS)
        canonical = surrogate.network.canonical(evidence)
        assert not not_finite(canonical.outputs)
        assert_losses_are_finite(surrogate, canonical)
        assert_penalty_is_finite(surrogate, evidence)
        assert_penalty_is_finite(surrogate, canonical)


# The networks "paper" and "set" start from random weights.
@pytest.mark.parametrize("name", [name for name in (*LEARNED, *HAND_MADE) if name not in ("paper", "set")])
def test_right_decisions_cost_less_than_wrong_ones(name):
    loss = fresh(name)
    right, half_right, wrong = (loss(3 * logits, LABELS) for logits in (RIGHT, HALF_RIGHT, 1 - RIGHT))
    assert right < half_right < wrong


@pytest.mark.parametrize("name", LEARNED)
def test_steps_of_learning_leave_no_nan(tmp_path, name):
    of_sets = LEARNED[name]["architecture"] == "set"
    scores = LEARNED[name].get("scores", {"accuracy": {}})
    metric = load_metric(next(iter(scores)), **next(iter(scores.values())))
    args = SurrogateTrainingArguments(
        str(tmp_path), num_groups=32, num_eval_groups=32, group_size=32, per_device_train_batch_size=16, max_steps=3,
        objective="approximation" if of_sets else "relational", min_alignment=-1.0, logging_steps=1,
        load_best_model_at_end=False, save_strategy="no", eval_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    start = fresh(name)
    before = [parameter.clone() for parameter in start.parameters()]
    trainer = SurrogateTrainer(start, args, train_dataset=synthetic_predictions(400, classes=2), metric=metric)
    trainer.train()
    after = list(trainer.model.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))
    logged = [log for log in trainer.state.log_history if "penalty" in log]
    assert len(logged) == 3
    assert all(math.isfinite(log[key]) for log in logged for key in ("loss", "penalty", "grad_norm"))
    assert math.isfinite(trainer.model.config.record["alignment"])


def test_a_pull_under_which_no_decision_would_rest_is_refused():
    for architecture in ({"architecture": "margin"}, {"architecture": "counts", "scores": SCORES["f1 macro"]}):
        for classes, most in ((2, 0.707), (3, 0.816)):
            logits, labels = torch.randn(6, classes), torch.arange(6) % classes
            below = SurrogateForClassification(SurrogateConfig(scale_weight=most - 0.01, **architecture))
            canonical = below.network.canonical(below.evidence(logits, labels))
            assert torch.equal(canonical.outputs.argmax(-1), logits.argmax(-1))
            above = SurrogateForClassification(SurrogateConfig(scale_weight=most + 0.01, **architecture))
            with pytest.raises(ValueError, match=f"logits of {classes} classes to 0.* below {most}"):
                above.network.canonical(above.evidence(logits, labels))


def test_what_is_not_defined_for_one_class_alone_has_no_part_in_a_soft_score():
    loss = fresh("counts of balanced_accuracy True")
    logits = torch.tensor([[90.0, 0.0], [60.0, 0.0]])
    pull = loss.network.pull * (logits - logits.mean(-1, keepdim=True)).norm(dim=-1).mean()
    torch.testing.assert_close(loss(logits, torch.tensor([0, 0])), pull)


# Labels


@every_loss
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool])
def test_labels_of_any_integer_type_are_read(name, dtype):
    loss = fresh(name)
    assert torch.equal(loss(LOGITS["random"], LABELS.to(dtype)), loss(LOGITS["random"], LABELS))
    if dtype.is_signed:
        ignored = LABELLINGS["some ignored"]
        assert torch.equal(loss(LOGITS["random"], ignored.to(dtype)), loss(LOGITS["random"], ignored))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_labels_of_any_integer_type_are_counted_and_recorded(dtype):
    for name in ("class_weights", "logit_adjustment"):
        frequencies = hand_made_loss(name, LABELS.to(dtype)).network.frequencies
        torch.testing.assert_close(frequencies, torch.tensor([7 / 12, 5 / 12]))
    recorder = PredictionRecorder()
    recorder.add({"logits": LOGITS["random"]}, LABELS.to(dtype), 0.5)
    assert recorder.dataset()["labels"][:] == LABELS.tolist()


# Embeddings


@pytest.mark.parametrize("name", EMBEDDINGS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_losses_of_embeddings_are_finite(name, scale):
    pytest.importorskip("pytorch_metric_learning")
    loss = hand_made_loss(name)
    for outputs in (RIGHT, RIGHT + 0.1 * EXAMPLES, EXAMPLES, torch.ones(12, 2)):
        for labels in LABELLINGS.values():
            embeddings = (scale * outputs).requires_grad_()
            value = loss(embeddings, labels)
            (gradient,) = torch.autograd.grad(value, embeddings)
            assert value.isfinite()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_two_classes_that_are_apart_cost_less_than_two_that_are_mixed(name):
    pytest.importorskip("pytorch_metric_learning")
    loss = hand_made_loss(name)
    embeddings = RIGHT + 0.1 * EXAMPLES
    assert loss(embeddings, LABELS) < loss(embeddings, torch.arange(12) % 2)


@pytest.mark.parametrize("name", EMBEDDINGS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_classes_of_embeddings_are_of_any_integer_type(name, dtype):
    pytest.importorskip("pytorch_metric_learning")
    loss = hand_made_loss(name)
    assert torch.equal(loss(EXAMPLES, LABELS.to(dtype)), loss(EXAMPLES, LABELS))


# Tokens


@pytest.mark.parametrize("options", [
    {"architecture": "ngrams"},
    {"architecture": "ngrams", "max_order": 2, "level": "sentence", "reach": 2},
    {"architecture": "paper", "hidden_size": 8},
], ids=["ngrams", "ngrams of sentences", "paper"])  # fmt: skip
def test_losses_of_two_tags_are_finite(options):
    for seed in (None, 0, 1):
        torch.manual_seed(0)
        loss = SurrogateForTokens(SurrogateConfig(task="tokens", **options))
        loss = loss if seed is None else as_if_learned(loss, seed)
        logits, labels = ALL_LOGITS.reshape(-1, 4, 2).requires_grad_(), ALL_LABELS.reshape(-1, 4)
        sentences = loss.evidence(logits, labels.int())
        groups = Evidence(*(tensor.unflatten(0, (-1, 3)) for tensor in sentences))
        (gradient,) = torch.autograd.grad(loss(groups).sum(), logits)
        assert not not_finite(gradient.view_as(ALL_LOGITS))
        groups = groups._replace(outputs=groups.outputs.detach())
        assert_losses_are_finite(loss, groups)
        assert_penalty_is_finite(loss, loss.network.canonical(groups))


def test_right_tags_cost_less_than_wrong_ones():
    loss = SurrogateForTokens(SurrogateConfig(task="tokens"))
    right, half_right, wrong = (
        loss(3 * logits.view(3, 4, 2), LABELS.view(3, 4)) for logits in (RIGHT, HALF_RIGHT, 1 - RIGHT)
    )
    assert right < half_right < wrong
