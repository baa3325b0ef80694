"""The transformer without autoregression, and the loss of bags of n-grams that is for it."""

import itertools
import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSeq2SeqLM

from .test_programs import TRAINERS

if str(TRAINERS) not in sys.path:
    sys.path.append(str(TRAINERS))

from bag_of_ngrams import bag_of_ngrams_loss
from nat import NatConfig, NatForTranslation, token_cross_entropy

SIZES = {
    "vocab_size": 30,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 32,
    "max_position_embeddings": 12,
    "max_length_difference": 4,
}
SOURCES = torch.tensor([[5, 6, 7, 8, 9, 2], [9, 8, 2, 0, 0, 0], [4, 2, 0, 0, 0, 0]])
LABELS = torch.tensor([[15, 16, 17, 2, -100], [19, 18, 17, 16, 2], [14, 2, -100, -100, -100]])


def make_model(**changes) -> NatForTranslation:
    return NatForTranslation(NatConfig(**SIZES | changes)).eval()


def predict_difference(model: NatForTranslation, difference: int) -> None:
    """Makes a model's targets longer than their sources by a number."""
    with torch.no_grad():
        model.length.weight.zero_()
        model.length.bias.zero_()
        model.length.bias[model.config.max_length_difference + difference] = 1.0


# The model


@pytest.mark.parametrize("difference", [-4, -1, 0, 3])
def test_generates_as_many_tokens_as_it_predicts(difference):
    model = make_model()
    predict_difference(model, difference)
    with torch.no_grad():
        model.tokens.weight[0] = 0
        model.output.weight[0] = 0  # never padding where there is a token: some logit is above 0
    lengths = (model.generate(SOURCES) != 0).sum(1)
    assert lengths.tolist() == [max(length + difference, 1) for length in (6, 3, 2)]


def test_generates_no_more_tokens_than_it_has_positions():
    model = make_model(max_position_embeddings=7)
    predict_difference(model, 4)
    assert model.generate(SOURCES).shape == (3, 7)


def test_generates_the_most_likely_tokens_of_a_target_of_that_length():
    model = make_model()
    predict_difference(model, 1)
    labels = torch.full((3, 7), -100)
    for row, length in enumerate((7, 4, 3)):
        labels[row, :length] = 1
    expected = model(SOURCES, labels=labels).logits.argmax(-1).masked_fill(labels == -100, 0)
    assert torch.equal(model.generate(SOURCES), expected)


def test_padding_changes_no_logits_of_a_sentence():
    model = make_model()
    together = model(SOURCES, labels=LABELS).logits
    for row, (source, target) in enumerate(((6, 4), (3, 5), (2, 2))):
        alone = model(SOURCES[row : row + 1, :source], labels=LABELS[row : row + 1, :target]).logits[0]
        torch.testing.assert_close(together[row, :target], alone, atol=1e-5, rtol=1e-4)


def test_loss_is_that_of_tokens_and_of_the_length():
    model = make_model(length_weight=0.5)
    outputs = model(SOURCES, labels=LABELS)
    tokens = F.cross_entropy(outputs.logits.flatten(0, 1), LABELS.flatten())
    length = F.cross_entropy(outputs.length_logits, 4 + torch.tensor([4 - 6, 5 - 3, 2 - 2]))
    torch.testing.assert_close(outputs.auxiliary_loss, 0.5 * length)
    torch.testing.assert_close(outputs.loss, tokens + 0.5 * length)


def test_decoder_inputs_say_as_much_of_the_targets_as_labels():
    model = make_model()
    ids = model.prepare_decoder_input_ids_from_labels(LABELS)
    with_labels, without = model(SOURCES, labels=LABELS), model(SOURCES, decoder_input_ids=ids)
    assert without.loss is None
    assert torch.equal(without.logits, with_labels.logits)
    assert torch.equal(without.auxiliary_loss, with_labels.auxiliary_loss)
    with pytest.raises(ValueError, match="labels or decoder_input_ids"):
        model(SOURCES)


@pytest.mark.parametrize("empty", [[2], [0, 1, 2]])
@pytest.mark.parametrize("loss", [token_cross_entropy, bag_of_ngrams_loss])
def test_empty_targets_and_sources_give_no_nan(empty, loss):
    model = make_model().train()
    model.token_loss = loss
    sources, labels = SOURCES.clone(), LABELS.clone()
    sources[empty], labels[empty] = 0, -100
    outputs = model(sources, labels=labels)
    outputs.loss.backward()
    assert all(tensor.isfinite().all() for tensor in (outputs.loss, outputs.logits, outputs.length_logits))
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.eval().generate(sources).shape[0] == 3


def test_sentences_of_more_tokens_than_positions_are_refused():
    model = make_model(max_position_embeddings=4)
    with pytest.raises(ValueError, match="6 tokens, but this model has positions for 4"):
        model(SOURCES, labels=LABELS)
    with pytest.raises(ValueError, match="5 tokens, but this model has positions for 4"):
        model(SOURCES[1:, :3], labels=LABELS[1:])


@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded_it_gives_the_same_logits(tmp_path, tied):
    model = make_model(tie_word_embeddings=tied)
    assert (model.output.weight is model.tokens.weight) == tied
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, NatForTranslation)
    assert (loaded.output.weight is loaded.tokens.weight) == tied
    assert torch.equal(loaded(SOURCES, labels=LABELS).logits, model(SOURCES, labels=LABELS).logits)
    assert torch.equal(loaded.generate(SOURCES), model.generate(SOURCES))


def test_learns_to_translate_word_by_word():
    torch.manual_seed(0)
    model = make_model(dropout=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(SOURCES, labels=LABELS).loss.backward()
        optimizer.step()
    assert torch.equal(model.eval().generate(SOURCES), LABELS.masked_fill(LABELS == -100, 0))


# Bags of n-grams


def logits_of(*rows: list[list[float]]) -> torch.Tensor:
    """Logits [B, T, V] of probabilities."""
    return torch.tensor(rows).log()


def test_bag_of_pairs_by_hand():
    # Of tokens a, b: p(a) = 0.8, 0.5, 0.1 at three places; the reference is a b b.
    # ab is expected 0.8·0.5 + 0.5·0.9 = 0.85 times of 1, bb 0.2·0.5 + 0.5·0.9 = 0.55 times of 1.
    logits = logits_of([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]])
    assert bag_of_ngrams_loss(logits, torch.tensor([[0, 1, 1]])).item() == pytest.approx(1 - (0.85 + 0.55) / 2)


def test_bag_of_repeated_tokens_by_hand():
    # The reference a a b has a twice, of which 0.9 + 0.9 + 0.9 = 2.7 are expected: 2 are met. b: 0.3 of 1.
    logits = logits_of([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    loss = bag_of_ngrams_loss(logits, torch.tensor([[0, 0, 1]]), n=1)
    assert loss.item() == pytest.approx(1 - (2 + 0.3) / 3)


def test_bag_does_not_see_order_between_ngrams_and_cross_entropy_does():
    labels = torch.tensor([[0, 1, 2, 0, 1, 3]])
    moved = torch.tensor([[2, 0, 1, 3, 0, 1]])  # 01 twice, 20 and 13 as in the labels, 30 instead of 12
    loss = bag_of_ngrams_loss(50.0 * F.one_hot(moved, 4), labels)
    assert loss.item() == pytest.approx(1 - 4 / 5)
    assert bag_of_ngrams_loss(50.0 * F.one_hot(labels, 4), labels).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_bag_of_ngrams_is_the_distance_over_all_ngrams(n):
    logits = 3 * torch.randn(4, 5, 3)
    labels = torch.randint(3, (4, 5))
    labels[1, 3:] = labels[2, 1:] = labels[3] = -100

    def distance(scores: torch.Tensor, tokens: list[int]) -> float:
        probabilities, starts = scores[: len(tokens)].softmax(-1), range(len(tokens) - n + 1)
        reference = Counter(tuple(tokens[start : start + n]) for start in starts)
        total = 0.0
        for gram in itertools.product(range(3), repeat=n):
            expected = sum(torch.stack([probabilities[s + i, gram[i]] for i in range(n)]).prod() for s in starts)
            total += abs(float(expected) - reference[gram])
        return total / (2 * len(starts))

    sentences = [[token for token in row if token != -100] for row in labels.tolist()]
    distances = [distance(scores, tokens) for scores, tokens in zip(logits, sentences, strict=True) if len(tokens) >= n]
    loss = bag_of_ngrams_loss(logits, labels, n)
    assert loss.item() == pytest.approx(sum(distances) / len(distances), rel=1e-5)


def test_bag_of_ngrams_of_short_sentences_is_0_with_a_gradient():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    labels = torch.tensor([[1, -100, -100], [-100, -100, -100]])
    for given in (labels, labels[:, :1]):
        loss = bag_of_ngrams_loss(logits[:, : given.shape[1]], given)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0
        assert (gradient == 0).all()
    with pytest.raises(ValueError, match="1 or more, but got 0"):
        bag_of_ngrams_loss(logits, labels, n=0)


def test_gradient_of_bag_of_ngrams_is_that_of_small_steps_and_stays_inside_the_sentence():
    logits = torch.randn(2, 4, 3, requires_grad=True)
    labels = torch.tensor([[0, 1, 2, 1], [2, 0, -100, -100]])
    loss = bag_of_ngrams_loss(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    step = 1e-2
    for place in itertools.product(range(2), range(4), range(3)):
        changes = []
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[place] += sign * step
            changes.append(bag_of_ngrams_loss(moved, labels).item())
        assert gradient[place].item() == pytest.approx((changes[0] - changes[1]) / (2 * step), abs=1e-4)
    assert (gradient[1, 2:] == 0).all()
    assert (gradient[0] != 0).all()
