"""Surrogates for spans as models: recordings of them, learning, saving, precision, what is refused."""

import pytest
import torch
import torch.nn.functional as F
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from hf_reloss import AutoSurrogate
from hf_reloss.losses.base import Evidence
from hf_reloss.surrogates.spans import SurrogateForSpans

from .test_spans import credits, fresh, questions, with_random_weights


def recorded(seed: int, scale: float = 1.0) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
    outputs, gold = questions(seed, n=40, length=40)
    outputs = {name: scale * logits for name, logits in outputs.items()}
    gold[:, 1] = torch.minimum(gold[:, 1], gold[:, 0] + 4)
    ids = torch.arange(100, 140).expand(40, -1)
    return outputs, gold, SurrogateForSpans.recorded(outputs, gold, {"input_ids": ids})


def test_recordings_give_the_losses_of_the_outputs_that_they_were_taken_of_but_for_the_pull():
    outputs, gold, columns = recorded(0, scale=2.0)
    assert columns["start_logits"].shape == columns["end_places"].shape == (40, 10)
    exact, f1 = (with_random_weights(0, credit=credit, scale_weight=0.0) for credit in ("exact", "f1"))
    live, kept = exact.evidence(outputs, gold), exact.evidence(columns, columns["labels"])
    torch.testing.assert_close(exact.original_losses(live), exact.original_losses(kept))
    torch.testing.assert_close(exact.network.losses(live), exact.network.losses(kept))
    pulled = with_random_weights(0, credit="exact", scale_weight=0.3)
    torch.testing.assert_close(pulled.network.losses(kept), exact.network.losses(kept))
    # The credit of what was not recorded is left out, which is little.
    losses = torch.stack([f1.network.losses(evidence) for evidence in (live, kept)])
    assert torch.corrcoef(losses)[0, 1] > 0.95


def test_all_positions_of_a_short_text_are_recorded_and_nothing_is_lost():
    outputs, gold = questions(3, n=10, length=9)
    columns = SurrogateForSpans.recorded(outputs, gold, {"input_ids": torch.ones(10, 9, dtype=torch.long)})
    for credit in ("f1", "exact"):
        surrogate = with_random_weights(1, credit=credit, scale_weight=0.0)
        expected = surrogate(outputs, gold, reduction="none")
        torch.testing.assert_close(surrogate(columns, columns["labels"], reduction="none"), expected)
        padded = {name: F.pad(columns[name], (0, 6), value=-100) for name in surrogate.read_columns}
        torch.testing.assert_close(surrogate(padded, columns["labels"], reduction="none"), expected)
        groups = {name: column.view(2, 5, *column.shape[1:]) for name, column in columns.items()}
        torch.testing.assert_close(surrogate(groups, groups["labels"]), expected.view(2, 5).mean(-1))


def test_what_a_metric_scores_are_the_tokens_of_predicted_and_right_answers():
    at = 9.0 * torch.eye(6)
    outputs = {"start_logits": at[[2, 0, 1, 4]], "end_logits": at[[4, 0, 1, 4]]}
    gold = torch.tensor([[2, 3], [4, 4], [0, 0], [5, 6]])  # the last one was cut off
    ids = torch.arange(10, 16).expand(4, -1)
    columns = SurrogateForSpans.recorded(outputs, gold, {"input_ids": ids})
    assert columns["answer_ids"].tolist() == [[12, 13, 14], [-100] * 3, [11, -100, -100], [14, -100, -100]]
    assert columns["gold_ids"].tolist() == [[12, 13], [14, -100], [-100, -100], [-100, -100]]
    assert columns["labels"].tolist() == [[2, 3], [4, 4], [0, 0], [-100, -100]]
    with pytest.raises(ValueError, match="input_ids"):
        SurrogateForSpans.recorded(outputs, gold, {"inputs_embeds": ids})


# What learning asks for


@credits
def test_gradients_are_exact_and_can_be_differentiated(credit):
    surrogate = with_random_weights(5, credit=credit).double()
    evidence = surrogate.evidence(*questions(7, n=2, length=4))
    inputs = evidence.outputs.double().requires_grad_()
    losses = lambda z: surrogate.network(evidence._replace(outputs=z))  # noqa: E731
    assert torch.autograd.gradcheck(losses, inputs)
    assert torch.autograd.gradgradcheck(losses, inputs)


@credits
def test_its_gradients_are_held_to_those_of_its_start(credit):
    learned, start = with_random_weights(0, credit=credit), fresh(credit=credit)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.zero_()
    columns = recorded(3)[2]
    groups = {name: column[None] for name, column in columns.items()}
    evidence = learned.evidence(groups, groups["labels"])
    norms, wanted = learned.network.gradient_norms(evidence)
    assert norms.shape == wanted.shape == (1, 40)
    torch.testing.assert_close(wanted, start.network.gradient_norms(evidence)[0].detach())
    assert not torch.allclose(norms, wanted, rtol=0.05)


@credits
@pytest.mark.parametrize("power", [-200.0, -5.0, 5.0, 60.0])
def test_no_weights_make_it_nan(credit, power):
    surrogate = fresh(credit=credit)
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.fill_(power if parameter.dim() == 0 else 0.1)
    logits = torch.randn(2, 4, 9, requires_grad=True)
    loss = surrogate(
        {"start_logits": logits[0], "end_logits": logits[1]}, torch.tensor([[0, 0], [1, 1], [2, 5], [0, 8]])
    )
    loss.backward()
    assert loss.isfinite()
    for tensor in (logits, *surrogate.parameters()):
        assert tensor.grad.isfinite().all()


# Forms of outputs, and words


def test_any_form_of_outputs_is_read():
    surrogate = with_random_weights(2)
    outputs, gold = questions(5)
    expected = surrogate(outputs, gold)
    start, end = outputs.values()
    for given_outputs in (
        QuestionAnsweringModelOutput(loss=torch.tensor(3.0), start_logits=start, end_logits=end),
        (torch.tensor(3.0), start, end, torch.randn(6, 2, 2)),
        (start, end),
    ):
        assert surrogate(given_outputs, gold) == expected
    shifted = {name: logits + 5.0 for name, logits in outputs.items()}
    torch.testing.assert_close(surrogate(shifted, gold), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_positions_of_any_integer_type_are_read(dtype):
    outputs, gold = questions(0, length=240)
    assert fresh()(outputs, gold.to(dtype)) == fresh()(outputs, gold)


def test_it_is_found_for_its_outputs_only():
    outputs, gold = questions(0)
    assert AutoSurrogate.reading(outputs, gold) is SurrogateForSpans
    assert AutoSurrogate.reading(QuestionAnsweringModelOutput(**outputs), gold) is SurrogateForSpans
    assert not SurrogateForSpans.reads({"logits": torch.randn(6, 2, 5)}, gold)
    assert not SurrogateForSpans.reads(outputs, gold.float())
    assert not SurrogateForSpans.reads(outputs, gold[:, 0])


@credits
def test_a_saved_surrogate_is_the_same(tmp_path, credit):
    surrogate = with_random_weights(9, credit=credit, scale_weight=0.4)
    surrogate.save_pretrained(tmp_path)
    loaded = AutoSurrogate.from_pretrained(tmp_path)
    assert loaded.config.scale_weight == 0.4
    assert loaded(*questions(1)) == surrogate(*questions(1))


def test_it_computes_in_float32_under_autocast_and_for_bfloat16():
    surrogate = with_random_weights(4)
    outputs, gold = questions(3)
    outputs = {name: logits.bfloat16().requires_grad_() for name, logits in outputs.items()}
    plain = surrogate({name: logits.float() for name, logits in outputs.items()}, gold)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = surrogate(outputs, gold)
    assert mixed.dtype == torch.float32
    assert mixed == plain


@pytest.mark.parametrize(
    ("metric", "credit"),
    [
        *((name, "f1") for name in ("squad_f1", "squad_v2_f1", "cmrc_f1", "rougeL")),
        *((name, "exact") for name in ("squad_exact_match", "squad_v2_exact", "cmrc_exact_match")),
    ],
)
def test_the_structure_fits_the_metric(metric, credit):
    assert SurrogateForSpans.for_metric(metric).config.credit == credit
    assert SurrogateForSpans.for_metric(lambda predictions, references: 0.0).config.credit == "f1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([[3, 2]])}, r"1 answers end before they start, such as \[3, 2\]"),
        ({"labels": torch.tensor([[1.0, 2.0]])}, "integer labels, positions"),
        ({"labels": torch.tensor([1])}, r"labels \[..., N, 2\].*\[1, 5\], \[1, 5\] and \[1\]"),
        ({"labels": None}, "and None"),
        ({"end_logits": torch.zeros(1, 4)}, r"\[1, 5\], \[1, 4\]"),
        ({"end_logits": torch.tensor([[0.0, torch.nan, 0, 0, 0]])}, "1 of 10 logits are not finite"),
        ({"start_logits": torch.tensor([[0.0, torch.inf, 0, 0, 0]])}, "1 of 10 logits are not finite"),
        ({"start_logits": None}, "'start_logits'"),
    ],
)
def test_bad_input_says_what_is_wanted(change, message):
    given_input = {"start_logits": torch.zeros(1, 5), "end_logits": torch.zeros(1, 5), "labels": torch.tensor([[1, 2]])}
    given_input |= change
    with pytest.raises(ValueError, match=message):
        fresh()(given_input, given_input.pop("labels"))


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="'f1' or 'exact', but got 'bleu'"):
        fresh(credit="bleu")
    with pytest.raises(ValueError, match="'overlap'"):
        fresh(architecture="margin")


def test_evidence_is_passed_through():
    surrogate = fresh()
    evidence = surrogate.evidence(*questions(0))
    assert isinstance(evidence, Evidence)
    assert surrogate(evidence) == surrogate(*questions(0))
