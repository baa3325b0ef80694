import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from hf_reloss import SurrogateConfig
from hf_reloss.losses.learned.overlap import boundary_f1
from hf_reloss.surrogates.spans import SurrogateForSpans, best_spans

credits = pytest.mark.parametrize("credit", ["f1", "exact"])


def fresh(**config) -> SurrogateForSpans:
    return SurrogateForSpans(SurrogateConfig(task="spans", **config))


def with_random_weights(seed: int, **config) -> SurrogateForSpans:
    surrogate = fresh(**config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.normal_(generator=generator)
    return surrogate.freeze()


def questions(seed: int, n: int = 6, length: int = 12) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random logits, and answers of which some are none and some do not count."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, n, length, generator=generator)
    positions = torch.randint(length, (n, 2), generator=generator).sort(-1).values
    positions[torch.rand(n, generator=generator) < 0.2] = 0
    return dict(zip(("start_logits", "end_logits"), logits, strict=True)), positions


def f1_of(span: tuple[int, int], gold: tuple[int, int]) -> float:
    """F1 of the tokens, as sets of positions."""
    if gold == (0, 0):
        return float(span == gold)
    predicted, right = (set(range(first, last + 1)) for first, last in (span, gold))
    return 2 * len(predicted & right) / (len(predicted) + len(right))


def expected_credits(start, end, gold, credit=lambda f1: f1**16) -> torch.Tensor:
    """Those of the start and of the end, written out position by position."""
    first, last = gold.tolist()
    starts = [(s, last) if s <= last else None for s in range(len(start))]
    ends = [(first, e) if e >= first else None for e in range(len(end))]
    expected = []
    for side, spans in ((start, starts), (end, ends)):
        f1 = [0.0 if span is None else f1_of(span, (first, last)) for span in spans]
        expected.append(sum(share * credit(value) for share, value in zip(side.softmax(0), f1, strict=True)))
    return torch.stack(expected)


# Values


def test_four_tokens_by_hand():
    # All positions are as likely, and tokens 1 and 2 are right. As start, 2 leaves one token of two, an F1 of 2/3, and
    # 0 takes one too many, 4/5; as end, 1 and 3 do the same.
    flat = {"start_logits": torch.zeros(1, 4), "end_logits": torch.zeros(1, 4)}
    gold = torch.tensor([[1, 2]])
    expected = (1 + (2 / 3) ** 16 + (4 / 5) ** 16) / 4
    assert fresh()(flat, gold).item() == pytest.approx(-math.log(expected))
    assert fresh(credit="exact")(flat, gold).item() == pytest.approx(math.log(4))
    # That there is no answer is right or wrong, and nothing in between.
    assert fresh()(flat, torch.tensor([[0, 0]])).item() == pytest.approx(math.log(4))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9))
def test_at_its_start_it_is_the_expected_credit_of_both_boundaries_and_for_exact_match_cross_entropy(seed, length):
    outputs, gold = questions(seed, n=3, length=length)
    losses = fresh(scale_weight=0.0)(outputs, gold, reduction="none")
    expected = [
        -expected_credits(*logits, answer).log().mean() for *logits, answer in zip(*outputs.values(), gold, strict=True)
    ]
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-4, atol=1e-5)
    exact = fresh(credit="exact", scale_weight=0.0)
    own = exact.original_losses(exact.evidence(outputs, gold))
    torch.testing.assert_close(exact(outputs, gold, reduction="none"), own, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_what_is_learned_is_a_power_of_f1_and_a_curve_of_the_margin_of_its_expectation(seed):
    surrogate = with_random_weights(seed, scale_weight=0.0)
    outputs, gold = questions(seed, n=3, length=8)
    power = 16 * float(surrogate.network.log_power.exp())
    credit = torch.stack(
        [
            expected_credits(*(x.double() for x in logits), answer, lambda f1: f1**power)
            for *logits, answer in zip(*outputs.values(), gold, strict=True)
        ]
    )
    expected = surrogate.curve(torch.logit(credit).float()).mean(-1)
    torch.testing.assert_close(surrogate(outputs, gold, reduction="none"), expected, rtol=1e-3, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_pull_is_on_the_standard_deviation_of_the_logits(seed):
    outputs, gold = questions(seed)
    without, pulled = (with_random_weights(seed, scale_weight=weight) for weight in (0.0, 0.3))
    scale = sum(logits.std(-1, correction=0) for logits in outputs.values()) / 2
    difference = pulled(outputs, gold, reduction="none") - without(outputs, gold, reduction="none")
    torch.testing.assert_close(difference, 0.3 * scale, rtol=1e-3, atol=1e-4)


def test_original_loss_is_the_models_own():
    outputs, gold = questions(0, n=8)
    surrogate = fresh()
    own = sum(F.cross_entropy(logits, gold[:, side]) for side, logits in enumerate(outputs.values())) / 2
    evidence = surrogate.evidence(outputs, gold)
    torch.testing.assert_close(surrogate.original_losses(evidence).mean(), own)


def test_best_spans_are_those_that_a_search_of_all_finds():
    for seed in range(30):
        outputs, _ = questions(seed, n=1, length=7)
        start, end = (logits[0] for logits in outputs.values())
        start[seed % 7] = -torch.inf
        for longest in (1, 3, 7, 30):
            spans = [(s, e) for s in range(7) for e in range(s, min(s + longest, 7))]
            best = max(spans, key=lambda span: start[span[0]] + end[span[1]])
            found, score = best_spans(start, end, longest)
            assert tuple(found.tolist()) == best
            assert score == start[best[0]] + end[best[1]]


# Monotone by construction


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["f1", "exact"]))
def test_probability_that_goes_to_a_better_boundary_never_costs_more_whatever_was_learned(seed, credit):
    surrogate = with_random_weights(seed, credit=credit, scale_weight=0.0).double()
    outputs, gold = questions(seed, n=4)
    evidence = surrogate.evidence(outputs, gold)
    probability = evidence.outputs.double().softmax(-1).requires_grad_()
    surrogate(evidence._replace(outputs=probability.log()), reduction="none").sum().backward()
    f1 = boundary_f1(evidence.labels, torch.arange(12)[None])
    worth = -probability.grad.gather(-1, f1.argsort(-1))
    assert (worth.diff(dim=-1) >= -1e-9 * worth.abs().amax(-1, keepdim=True)).all()


@credits
def test_higher_scores_of_the_right_boundaries_never_cost_more(credit):
    for seed in range(20):
        surrogate = with_random_weights(seed, credit=credit, scale_weight=0.0)
        outputs, gold = questions(seed)
        right = [F.one_hot(gold[:, side], 12) for side in (0, 1)]
        losses = []
        for height in (6.0, 8.0, 10.0, 15.0, 30.0):
            raised = [logits + height * at for logits, at in zip(outputs.values(), right, strict=True)]
            losses.append(surrogate(dict(zip(outputs, raised, strict=True)), gold, reduction="none"))
        assert (torch.stack(losses).diff(dim=0) <= 1e-6).all()


@credits
def test_lower_scores_of_what_shares_nothing_with_the_answer_never_cost_more(credit):
    surrogate = with_random_weights(3, credit=credit, scale_weight=0.0)
    outputs, gold = questions(1, n=1, length=12)
    gold[:] = torch.tensor([4, 6])
    before = surrogate(outputs, gold)
    outputs["start_logits"][:, 7:] -= 2.0
    outputs["end_logits"][:, :4] -= 2.0
    assert surrogate(outputs, gold) <= before


# What does not count, and what cannot be


@credits
def test_answers_that_were_cut_off_do_not_count(credit):
    surrogate = with_random_weights(0, credit=credit)
    outputs, gold = questions(2, n=5)
    gold[1], gold[3] = torch.tensor([10, 12]), -100
    counts = torch.tensor([True, False, True, False, True])
    for logits in outputs.values():
        logits.requires_grad_()
    loss = surrogate(outputs, gold)
    torch.testing.assert_close(loss, surrogate({k: v[counts] for k, v in outputs.items()}, gold[counts]))
    assert (surrogate(outputs, gold, reduction="none")[~counts] == 0).all()
    loss.backward()
    for logits in outputs.values():
        assert (logits.grad[~counts] == 0).all()
        assert (logits.grad[counts] != 0).any()


@credits
def test_a_batch_of_which_all_was_cut_off_costs_nothing(credit):
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = fresh(credit=credit)({"start_logits": logits[0], "end_logits": logits[1]}, torch.full((3, 2), 7))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


@credits
@pytest.mark.parametrize("low", [-torch.inf, torch.finfo(torch.float32).min, -1e9])
def test_masked_positions_are_as_if_they_were_not_there(credit, low):
    surrogate = with_random_weights(1, credit=credit)
    outputs, gold = questions(4)
    masked = {name: F.pad(logits, (0, 5), value=low).requires_grad_() for name, logits in outputs.items()}
    loss = surrogate(masked, gold)
    torch.testing.assert_close(loss, surrogate(outputs, gold))
    loss.backward()
    for logits in masked.values():
        assert logits.grad.isfinite().all()
        assert (logits.grad[:, 12:] == 0).all()


@credits
def test_an_answer_at_masked_positions_has_a_finite_loss(credit):
    logits = torch.zeros(2, 2, 6).index_fill(2, torch.tensor([3, 4]), -torch.inf).requires_grad_()
    loss = fresh(credit=credit)({"start_logits": logits[0], "end_logits": logits[1]}, torch.tensor([[3, 4], [1, 2]]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@credits
def test_where_everything_is_wrong_the_gradient_is_as_large_as_elsewhere(credit):
    logits = torch.zeros(2, 1, 20)
    logits[0, 0, 15], logits[1, 0, 1] = 40.0, 40.0
    logits.requires_grad_()
    fresh(credit=credit)({"start_logits": logits[0], "end_logits": logits[1]}, torch.tensor([[3, 4]])).backward()
    for side, wrong in enumerate((15, 1)):
        assert logits.grad[side, 0, wrong] > 0.45  # half of the loss is a boundary's
        assert logits.grad[side, 0].clamp(max=0).sum() < -0.45


@credits
@pytest.mark.parametrize("confident", [1.0, 1e4, 1e15])
def test_extreme_logits_have_finite_losses_and_gradients(credit, confident):
    surrogate = with_random_weights(6, credit=credit)
    logits = confident * torch.tensor([[1.0, 0, 0, -1], [0, 0, 0, 0], [0, -1, 1, 0]])
    logits.requires_grad_()
    outputs = {"start_logits": logits, "end_logits": -logits}
    loss = surrogate(outputs, torch.tensor([[0, 0], [1, 2], [1, 3]]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@credits
def test_one_token_is_always_right(credit):
    surrogate = fresh(credit=credit)
    logits = torch.randn(1, 1, requires_grad=True)
    loss = surrogate({"start_logits": logits, "end_logits": logits}, torch.tensor([[0, 0]]))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad == 0


# Recordings
