"""Training that compares what a model itself writes: by ranking, and by policy gradients."""

import pytest
import torch
from scipy.stats import kendalltau

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, load_metric
from hf_reloss.training.strategies.candidates import RandomNumbers, different, drawn_classes, packed
from hf_reloss.training.strategies.own_texts import Risk
from hf_reloss.training.strategies.policy import PolicyGradient, policy_loss
from hf_reloss.training.strategies.ranked import margin_loss

from ..test_text_trainers import WORDS, make_language_model, make_tokenizer, make_translator, sentences, translating
from .test_minimum_risk import copy_of, right, writes

WAYS = ("candidates", "policy")


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """A model that copies some sentences right."""
    trainer = translating(
        tmp_path_factory.mktemp("trained"), tokenizer, surrogate="policy", metric="bleu", model_loss_share=1.0,
        num_train_epochs=8, learning_rate=5e-3, logging_steps=500,
    )  # fmt: skip
    trainer.train()
    return trainer.model.cpu()


def make_trainer(folder, tokenizer, model=None, **options):
    settings = {"surrogate": "policy", "metric": "rougeL", "max_grad_norm": 0, "use_cpu": True, "seed": 3}
    return translating(folder, tokenizer, model, **settings | {"model_loss_share": 0.0} | options)


# The losses


def test_the_policy_gradient_is_that_of_the_expected_risk():
    logits = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    risks = torch.tensor([0.0, 0.3, 0.5, 1.0], dtype=torch.float64)
    (logits.softmax(-1) * risks).sum().backward()
    expected, logits.grad = logits.grad, None
    numbers = RandomNumbers(0, 0, 0).next(20_000, 3)  # three texts for each of 20,000 examples
    drawn = drawn_classes(logits.log_softmax(-1).expand(len(numbers), 4), numbers)
    policy_loss(logits.log_softmax(-1)[drawn], risks[drawn]).mean().backward()
    torch.testing.assert_close(logits.grad, expected, atol=4e-3, rtol=0)  # four standard deviations


def test_what_is_impossible_or_alike_has_no_policy_gradient():
    log_p = torch.tensor([[-1.0, -torch.inf], [-1.0, -2.0]], requires_grad=True)
    found = policy_loss(log_p, torch.tensor([[0.0, 1.0], [0.4, 0.4]]))
    found.sum().backward()
    assert found.tolist() == pytest.approx([0.5 * 1 * 1.0, 0.0])  # A is -1 for the first of the first
    assert log_p.grad.tolist() == [[-0.5, 0.0], [0.0, 0.0]]


def test_the_margin_loss_is_zero_only_in_the_metrics_order():
    risks = torch.tensor([0.1, 0.4, 0.8, 0.8])
    counts = torch.tensor([True] * 4)
    assert margin_loss(-2 * risks, risks, counts) == 0
    for order in ([1, 0, 2, 3], [0, 2, 1, 3], [3, 1, 2, 0]):
        shuffled = -2 * risks[order]
        assert kendalltau(shuffled, -risks).statistic < 1
        assert margin_loss(shuffled, risks, counts) > 0


def test_the_margin_loss_and_its_gradient_by_hand():
    f = torch.tensor([-1.0, -1.5, -9.0, -torch.inf], requires_grad=True)
    counts = torch.tensor([True, True, False, True])
    found = margin_loss(f, torch.tensor([0.9, 0.1, 0.0, 0.9]), counts & f.isfinite())
    assert found.item() == pytest.approx(-1.0 + 1.5 + 0.8)  # the second is the better one of the one pair
    found.backward()
    assert f.grad.tolist() == [1.0, -1.0, 0.0, 0.0]
    assert margin_loss(f.detach(), torch.full((4,), 0.5), counts) == 0  # nothing to compare


# Candidates


def test_random_numbers_are_of_an_examples_place_in_the_step():
    whole = RandomNumbers(5, 7, 0).next(6, 3, 2)
    assert torch.equal(torch.cat([RandomNumbers(5, 7, 0).next(4, 3, 2), RandomNumbers(5, 7, 4).next(2, 3, 2)]), whole)
    assert not torch.equal(RandomNumbers(5, 8, 0).next(6, 3, 2), whole)
    assert not torch.equal(RandomNumbers(6, 7, 0).next(6, 3, 2), whole)
    assert len(set(whole.flatten().tolist())) == 36
    ongoing = RandomNumbers(5, 7, 0)
    assert torch.equal(torch.stack([ongoing.next(6, 2) for _ in range(3)], dim=1), whole)


def test_a_class_without_probability_is_never_drawn():
    log_p = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).log()
    assert drawn_classes(log_p, torch.tensor([0.0, 0.49, 0.5, 1 - 2**-24])).tolist() == [1, 1, 3, 3]


def test_equal_candidates_are_one():
    ids = torch.tensor([[[1, 2], [3, -100], [1, 2]], [[4, 4], [4, 4], [4, 4]]])
    found = different(ids)
    assert found.ids.tolist() == [[1, 2], [3, -100], [4, 4]]
    assert found.examples.tolist() == [0, 0, 1]
    assert found.places.tolist() == [[0, 1, 0], [2, 2, 2]]
    assert found.distinct.tolist() == [[True, True, False], [True, False, False]]
    assert torch.equal(found.ids[found.places], ids)


def drawn_by(trainer) -> list[torch.Tensor]:
    """The candidates that are compared from now on."""
    drawn, candidates = [], trainer.strategy.source.candidates

    def listen(*given):
        found = candidates(*given)
        drawn.append(found.ids[found.places])
        return found

    trainer.strategy.source.candidates = listen
    return drawn


def test_texts_are_the_same_however_a_step_is_divided(tokenizer, tmp_path, trained):
    steps = []
    for size, parts in ((8, 1), (2, 4)):
        trainer = make_trainer(
            tmp_path, tokenizer, copy_of(trained), max_steps=2, per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        )  # fmt: skip
        drawn = drawn_by(trainer)
        trainer.train()
        steps.append([packed(ids, ids != -100)[..., :4].tolist() for ids in drawn])
    whole, divided = steps
    assert [[text[:3] for text in row] for part in divided[:4] for row in part] == [
        [text[:3] for text in row] for row in whole[0]
    ]
    assert whole[0] != whole[1]


def test_colder_texts_are_likelier(tokenizer, tmp_path):
    model = make_translator()
    with torch.no_grad():
        model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(0))
    trainer = make_trainer(
        tmp_path, tokenizer, model, risk_candidates=4000, risk_temperature=0.5, generation_max_length=2
    )
    drawn = drawn_by(trainer)
    batch = trainer.data_collator([{"input_ids": [5, 2], "labels": [5, 2]}])
    trainer.compute_loss(model.train(), dict(batch))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 2]]), decoder_input_ids=torch.tensor([[2]])).logits[0, 0]
    frequencies = torch.bincount(drawn[0].flatten(), minlength=len(WORDS)) / 4000
    torch.testing.assert_close(frequencies, (2 * logits).softmax(-1), atol=0.03, rtol=0)
