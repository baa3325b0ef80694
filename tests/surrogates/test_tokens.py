"""Surrogates for tokens, against values worked by hand and torch's own cross-entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reloss import AutoSurrogate, SurrogateConfig, SurrogateForTokens, load_metric, next_token_labels
from hf_reloss.losses.base import Evidence
from hf_reloss.surrogates import tokens


def make(seed: int | None = None, **options) -> SurrogateForTokens:
    """A fresh surrogate or, with a seed, one with random weights."""
    surrogate = SurrogateForTokens(SurrogateConfig(task="tokens", **options))
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in surrogate.parameters():
                parameter.normal_(generator=generator)
    return surrogate


def a_batch(sentences: int = 3, length: int = 7, vocabulary: int = 11, seed: int = 0):
    """Logits that need a gradient, and labels with padding at the end of each sentence but the first."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(sentences, length, vocabulary, generator=generator)
    labels = torch.randint(vocabulary, (sentences, length), generator=generator)
    for row in range(1, sentences):
        labels[row, length - row :] = -100
    return logits.requires_grad_(), labels


def hits(*probabilities: list[float]) -> Evidence:
    """Evidence of sentences whose tokens have these probabilities."""
    longest = max(map(len, probabilities))
    padded = torch.tensor([row + [0.0] * (longest - len(row)) for row in probabilities])
    counts = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in probabilities])
    return Evidence(torch.logit(padded, eps=1e-7)[..., None], torch.zeros_like(counts).long(), counts)


# The margins


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("elements", [1, 30, 2**21])
def test_margins_and_their_gradients_are_those_of_the_softmax(elements, gaps, monkeypatch):
    monkeypatch.setattr(tokens._LabelLogProbabilities, "elements", elements)
    logits, labels = a_batch()
    if gaps:
        labels[0, 2] = labels[1, 0] = -100
    margins = make().evidence(logits, labels).outputs[..., 0]
    exact = logits.detach().double().requires_grad_()
    expected = [torch.logit(exact[n, labels[n] >= 0].softmax(-1).gather(-1, labels[n][labels[n] >= 0, None])[:, 0])
                for n in range(3)]  # fmt: skip
    weights = [torch.randn(len(row)) for row in expected]
    sum((row * weight).sum() for row, weight in zip(expected, weights, strict=True)).backward()
    ours = sum(
        (margins[n, : len(row)] * weight).sum() for n, (row, weight) in enumerate(zip(expected, weights, strict=True))
    )
    ours.backward()
    for n, row in enumerate(expected):
        torch.testing.assert_close(margins[n, : len(row)].double(), row, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_logits_of_any_precision_get_a_finite_gradient_of_their_own(dtype):
    logits, labels = a_batch()
    logits = logits.detach().to(dtype).requires_grad_()
    loss = make()(logits, labels)
    assert loss.dtype == torch.float32
    loss.backward()
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0


def test_nothing_of_the_vocabularys_width_is_kept_but_the_logits():
    logits, labels = a_batch(vocabulary=5_000)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        make(reach=2)(logits, labels)
    wide = [tensor for tensor in kept if tensor.shape and tensor.shape[-1] == 5_000]
    assert [tensor.data_ptr() for tensor in wide] == [logits.data_ptr()]


def test_its_original_loss_is_cross_entropy():
    logits, labels = a_batch()
    surrogate = make()
    evidence = surrogate.evidence(logits, labels)
    mean = surrogate.network.mean(surrogate.original_losses(evidence), evidence.counts)
    torch.testing.assert_close(mean, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_evidence_of_a_reach_is_the_labels_margin_at_the_places_around_its_own():
    logits, labels = a_batch(1)
    outputs = make(reach=2).evidence(logits, labels).outputs[0]
    p = logits[0].detach().softmax(-1)
    for column, offset in enumerate((0, 1, -1, 2, -2)):
        for place in range(7):
            if 0 <= place + offset < 7:
                expected = torch.logit(p[place + offset, labels[0, place]])
                torch.testing.assert_close(outputs[place, column], expected, rtol=1e-4, atol=1e-4)
            else:
                assert outputs[place, column] == -100


@pytest.mark.parametrize("options", [{}, {"reach": 2}, {"architecture": "paper", "hidden_size": 8}])
def test_what_is_recorded_gives_the_same_loss_as_the_model(options):
    logits, labels = a_batch()
    labels[0, 3] = -100
    surrogate = make(1, **options)
    recorded = SurrogateForTokens.recorded({"logits": logits}, labels, {})
    torch.testing.assert_close(surrogate(recorded, recorded["labels"]), surrogate(logits, labels))
    groups = {name: torch.stack([column, column.flip(0)]) for name, column in recorded.items()}
    evidence = surrogate.evidence(groups, groups["labels"])
    torch.testing.assert_close(surrogate(evidence), surrogate(logits, labels).expand(2))
    decided = logits.argmax(-1)
    assert recorded["decided"][0].tolist() == [*decided[0, [0, 1, 2, 4, 5, 6]].tolist(), -100]


# The soft form of BLEU


def test_the_soft_metric_is_the_mean_of_the_logarithms_of_soft_precisions():
    loss = make()(hits([0.5, 0.8, 0.9], [0.4, 1 - 1e-7]))
    one = (0.5 + 0.8 + 0.9 + 0.4 + 1) / 5
    two = (0.4 + 0.72 + 0.4) / 3
    three = 0.36
    expected = -(math.log(one) + math.log(two) + math.log(three)) / 4  # there are no 4-grams, which cost nothing
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_at_the_level_of_sentences_each_has_its_own_precisions():
    loss = make(level="sentence", max_order=2)(hits([0.5, 0.8, 0.9], [0.4, 1 - 1e-7], [0.3]))
    one = (2.2 / 3 + 1.4 / 2 + 0.3) / 3
    two = (1.12 / 2 + 0.4) / 2
    assert loss.item() == pytest.approx(-(math.log(one) + math.log(two)) / 2, rel=1e-5)


def test_sure_and_right_tokens_give_what_bleu_gives():
    """Of sure tokens they are the n-grams that BLEU matches, where a wrong token is one that is nowhere else."""
    generator = torch.Generator().manual_seed(0)
    right = [(torch.rand(length, generator=generator) < 0.8).tolist() for length in (9, 12, 5)]
    loss = make()(hits(*[[1 - 1e-7 if hit else 1e-7 for hit in row] for row in right]))
    references = [" ".join(f"w{n}_{t}" for t in range(len(row))) for n, row in enumerate(right)]
    predictions = [
        " ".join(f"w{n}_{t}" if hit else "wrong" for t, hit in enumerate(row)) for n, row in enumerate(right)
    ]
    score = load_metric("sacrebleu", tokenize="none", smooth_method="none").compute(predictions, references)
    assert 100 * math.exp(-loss.item()) == pytest.approx(score, rel=1e-4)


def test_an_n_gram_that_is_written_a_place_too_early_counts_with_a_reach():
    labels = torch.tensor([[3, 4, 5, 6, 7]])
    early = torch.tensor([[4, 5, 6, 7, 0]])
    logits = 12.0 * F.one_hot(early, 9).float()
    without, within = (make(reach=reach, max_order=2)(logits, labels).item() for reach in (0, 1))
    assert without > 5
    share = 1 / (1 + math.exp(-3))  # as long as nothing is learned; 4 of 5 tokens and 3 of 4 pairs are right
    assert within == pytest.approx(-(math.log(share * 4 / 5) + math.log(share * 3 / 4)) / 2, abs=1e-2)


def test_an_n_gram_that_is_written_twice_matches_once():
    labels = torch.tensor([[3, 4, 5, 6, 7]])
    twice = torch.tensor([[3, 3, 5, 5, 7]])  # 3, 5 and 7 are matched
    surrogate = make(reach=1, max_order=1)
    with torch.no_grad():
        surrogate.network.shift_weights.fill_(20.0)  # a place beside counts in full
    loss = surrogate(20.0 * F.one_hot(twice, 9).float(), labels)
    assert loss.item() == pytest.approx(-math.log(3 / 5), abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([{}, {"reach": 2}, {"level": "sentence"}, {"max_order": 1}]))
def test_a_larger_margin_never_costs_more_whatever_was_learned(seed, options):
    surrogate = make(seed, **options).double()
    generator = torch.Generator().manual_seed(seed)
    width = 2 * options.get("reach", 0) + 1
    margins = 3 * torch.randn(2, 3, 6, width, generator=generator, dtype=torch.float64)
    counts = torch.arange(6) < torch.randint(0, 7, (2, 3, 1), generator=generator)
    outputs = margins.requires_grad_()
    surrogate.network(Evidence(outputs, counts.long(), counts)).sum().backward()
    assert (outputs.grad <= 1e-12).all()
    assert (outputs.grad[~counts] == 0).all()


@pytest.mark.parametrize(
    "options", [{}, {"reach": 1}, {"level": "sentence"}, {"architecture": "paper", "hidden_size": 8}]
)
def test_gradients_are_held_to_those_of_the_start_or_to_1(options):
    logits, labels = a_batch()
    surrogate = make(2, **options)
    norms, wanted = surrogate.network.gradient_norms(surrogate.evidence(logits.detach(), labels))
    assert norms.shape == wanted.shape == labels.shape
    (norms - wanted).square().mean().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in surrogate.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in surrogate.parameters() if parameter.grad is not None)
    start = make(**options)
    if surrogate.config.architecture == "ngrams":
        torch.testing.assert_close(start.network.gradient_norms(start.evidence(logits.detach(), labels))[0], wanted)
    else:
        assert torch.equal(wanted, (labels != -100).float())


# What is degenerate


OPTIONS = [{}, {"reach": 2}, {"level": "sentence"}, {"architecture": "paper", "hidden_size": 8}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "labels",
    [
        [[-100, -100, -100]],
        [[1, -100, -100]],
        [[1, 2, 3], [-100, -100, -100]],
        [[-100, 2, -100], [1, -100, 3]],
    ],
)
def test_empty_targets_padding_and_batches_of_one_give_finite_losses_and_gradients(options, labels):
    labels = torch.tensor(labels)
    logits = torch.randn(*labels.shape, 6, requires_grad=True)
    loss = make(3, **options)(logits, labels)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert (logits.grad[labels == -100] == 0).all()
    if (labels == -100).all():
        assert loss == 0


def test_padding_changes_nothing():
    logits, labels = a_batch()
    longer = F.pad(logits, (0, 0, 0, 4), value=7.0), F.pad(labels, (0, 4), value=-100)
    for options in OPTIONS:
        surrogate = make(4, **options)
        torch.testing.assert_close(surrogate(*longer), surrogate(logits, labels))


def test_where_all_is_wrong_there_still_is_a_gradient():
    labels = torch.randint(4, (4, 8))
    logits = (-30.0 * F.one_hot(labels, 9).float()).requires_grad_()
    make()(logits, labels).backward()
    at_labels = logits.grad.gather(-1, labels[..., None])
    assert at_labels.sum() == pytest.approx(-2.5, rel=1e-3)  # each order has the gradient of a sum of its log hits


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.randn(2, 3, 4), torch.zeros(2, 3), "integer labels"),
        (torch.randn(2, 3, 4), torch.full((2, 3), 4), "0 to 3"),
        (torch.randn(2, 3, 4), torch.zeros(2, 2).long(), r"wants logits \[N, T, V\]"),
        (torch.randn(2, 4), torch.zeros(2).long(), r"wants logits \[N, T, V\]"),
        (torch.full((1, 2, 3), torch.nan), torch.zeros(1, 2).long(), "2 of 2 tokens"),
    ],
)
def test_errors_say_what_is_wanted(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        make()(logits, labels)


def test_unknown_settings_are_refused():
    for options in ({"max_order": 0}, {"reach": 5}, {"level": "token"}):
        with pytest.raises(ValueError, match="'ngrams' wants"):
            make(**options)
    with pytest.raises(ValueError, match="multiple of 4"):
        make(architecture="paper", hidden_size=6)
    with pytest.raises(ValueError, match="pass SurrogateConfig"):
        SurrogateForTokens(SurrogateConfig())
    with pytest.raises(ValueError, match="that of a group"):
        make()(*a_batch(), reduction="none")


# Metrics, saving, language models


@pytest.mark.parametrize(
    ("metric", "max_order", "level"),
    [("sacrebleu", 4, "group"), ("rouge1", 1, "sentence"), ("rougeL", 2, "sentence"), ("wer", 1, "group"),
     ("google_bleu", 4, "group"), ("meteor", 1, "sentence"), ("mer", 1, "group"), ("accuracy", 1, "group"),
     (lambda predictions, references: 0.5, 4, "group")],
)  # fmt: skip
def test_its_structure_fits_the_metric(metric, max_order, level):
    config = SurrogateForTokens.for_metric(metric).config
    assert (config.max_order, config.level, config.task) == (max_order, level, "tokens")
    assert SurrogateForTokens.for_metric(load_metric("bleu", max_order=2)).config.max_order == 2


@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_loaded_as_it_was_saved(options, tmp_path):
    surrogate = make(5, **options)
    surrogate.save_pretrained(tmp_path)
    loaded = AutoSurrogate.from_pretrained(tmp_path)
    assert type(loaded) is SurrogateForTokens
    assert torch.equal(loaded(*a_batch()), surrogate.eval()(*a_batch()))


def test_labels_of_a_language_model_are_moved_to_where_they_are_predicted():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1)).eval()
    labels = torch.randint(20, (3, 6))
    outputs = model(input_ids=labels, labels=labels)
    surrogate = make()
    evidence = surrogate.evidence(outputs, next_token_labels(labels))
    mean = surrogate.network.mean(surrogate.original_losses(evidence), evidence.counts)
    torch.testing.assert_close(mean, outputs.loss)
