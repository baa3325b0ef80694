"""Training that compares what a model itself writes: by policy gradients, and what all such ways share."""

import pytest
import torch

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, load_metric
from hf_reloss.metrics.sentences import Risk
from hf_reloss.training.strategies.candidates import RandomNumbers, different, drawn_classes
from hf_reloss.training.strategies.policy import policy_loss

from ..test_text_trainers import WORDS, make_language_model, make_tokenizer, make_translator, translating
from .test_minimum_risk import check_loss_and_gradients, copy_of, right, writes


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
        texts = [ids.tolist() for ids in drawn]
        steps.append([[[[token for token in text if token >= 0] for text in row] for row in ids] for ids in texts])
    whole, divided = steps
    assert [row for part in divided[:4] for row in part] == whole[0]
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


def test_loss_and_gradient_are_those_of_texts_taken_one_by_one(tokenizer, tmp_path, trained):
    references = [[4, 5, 6, 2], [7, 8, 2]]
    drawn = [[[4, 5, 2], [4, 5, 9, 2], [4, 5, 2]], [[2], [9, 9, 9, 9, 9, 9], [8, 2]]]  # one twice, one empty
    model = writes(copy_of(trained), [[2, *text] for texts in drawn for text in texts])
    trainer = make_trainer(tmp_path, tokenizer, model, risk_candidates=3, risk_temperature=0.4, model_loss_share=0.25)

    def expected(batch):
        metric, losses = load_metric("rougeL"), []
        for reference, texts in zip(references, drawn, strict=True):
            log_p, risks = [], []
            for text in texts:
                read = torch.tensor([[2, *text[:-1]]])
                logits = model(input_ids=torch.tensor([reference]), decoder_input_ids=read).logits[0]
                log_p.append((logits / 0.4).log_softmax(-1)[range(len(text)), text].sum())
                words = [" ".join(WORDS[token] for token in ids if token > 2) for ids in (text, reference)]
                risks.append(1 - metric.compute(words[:1], words[1:]))
            others = [(sum(risks) - risk) / 2 for risk in risks]
            losses.append(sum((r - o) * p for r, o, p in zip(risks, others, log_p, strict=True)) / 3)
        return 0.75 * sum(losses) / 2 + 0.25 * model(**batch).loss

    check_loss_and_gradients(trainer, references, expected)


def test_a_model_writes_better_for_it(tokenizer, tmp_path, trained):
    before = right(copy_of(trained), tokenizer)
    trainer = make_trainer(
        tmp_path, tokenizer, copy_of(trained), metric="bleu", risk_candidates=8, risk_temperature=1.0,
        model_loss_share=0.1, learning_rate=3e-3, num_train_epochs=5, per_device_train_batch_size=16,
        generation_max_length=9,
    )  # fmt: skip
    trainer.train()
    assert right(trainer.model, tokenizer) > before + 0.1
    logged = [entry for entry in trainer.state.log_history if "texts/risk" in entry]
    assert logged[-1]["texts/risk"] < logged[0]["texts/risk"]
    assert logged[-1]["texts/length"] == pytest.approx(1, abs=0.2)


def test_a_run_that_is_resumed_is_one_that_was_not_broken(tokenizer, tmp_path, trained):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    unbroken = make_trainer(tmp_path / "unbroken", tokenizer, copy_of(trained, dropout=0.1), **options)
    unbroken.train()
    resumed = make_trainer(tmp_path / "resumed", tokenizer, copy_of(trained, dropout=0.1), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "unbroken" / "checkpoint-2"))
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert not torch.equal(unbroken.model.lm_head.weight, trained.lm_head.weight)


# What goes wrong


def test_texts_that_are_all_alike_have_no_gradient_and_that_is_said(tokenizer, tmp_path, trained):
    model = writes(copy_of(trained), [[2, 2]] * 8 * 4)  # nothing at all
    trainer = make_trainer(tmp_path, tokenizer, model, max_steps=2, weight_decay=0.0)
    said = []
    trainer.strategy.tell = said.append
    trainer.train()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, trained.state_dict()[name]), name
    assert "tells apart for 0 of 16 examples only" in said[-1]


def test_a_metric_that_fails_on_some_texts_stops_nothing_and_is_said_once(caplog):
    def metric(texts, references):
        return 1 / len(texts[0]) if texts[0] else 1 / 0

    risk = Risk(load_metric(metric, higher_is_better=True))
    assert risk(["", "a", "abcd"], ["a"] * 3).tolist() == risk(["", "a", "abcd"], ["a"] * 3).tolist()
    assert risk(["", "abcd"], ["a"] * 2)[0] == 1.0
    said = [record.getMessage() for record in caplog.records if "such texts count as wrong" in record.getMessage()]
    assert len(said) == 1
    assert "ZeroDivisionError" in said[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": None}, "surrogate='policy' wants the metric that texts are scored by"),
        ({"metric": "accuracy"}, "surrogate='policy' scores texts one by one, but the metric 'accuracy' cannot"),
        ({"risk_candidates": 1}, "2 or more without the reference, .* got 1"),
        ({"risk_reference": True}, "the reference cannot be one of its texts"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 smooths"),
    ],
)
def test_what_contradicts_it_is_refused(tokenizer, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, **options)


def test_the_models_share_is_a_quarter_and_may_be_smoothed(tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer, model_loss_share=None, label_smoothing_factor=0.1)
    assert trainer.model_loss_share == 0.25


# Causal models


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def test_a_causal_model_goes_on_from_its_prompts(tokenizer, tmp_path):
    model, given = without_dropout(make_language_model()), []
    model.generation_config.max_new_tokens = 4
    prompts, answers = [[1, 4, 5], [1, 6]], [[7, 8, 2], [9, 2]]
    drawn = [[[7, 2], [8, 8, 8, 2]], [[9, 9, 2], [2]]]

    def write(generation_config=None, *, input_ids, attention_mask, **_):
        given.append((input_ids, attention_mask))
        rows = [[*ids, *text] for ids, texts in zip(input_ids.tolist(), drawn, strict=True) for text in texts]
        return torch.tensor([[*row, *[0] * (7 - len(row))] for row in rows])

    model.generate = write
    args = ReLossTrainingArguments(str(tmp_path), use_cpu=True, risk_candidates=2, model_loss_share=0.0)
    trainer = ReLossTrainer(model, args, processing_class=tokenizer, surrogate="policy", metric="rougeL")
    batch = {
        "input_ids": torch.tensor([[1, 4, 5, 7, 8, 2], [1, 6, 9, 2, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "labels": torch.tensor([[-100, -100, -100, 7, 8, 2], [-100, -100, 9, 2, -100, -100]]),
    }
    loss = trainer.compute_loss(model.train(), batch)
    (input_ids, mask), *_ = given
    assert [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, mask, strict=True)] == prompts
    assert mask.tolist() == [[1, 1, 1], [0, 1, 1]]
    losses, metric = [], load_metric("rougeL")
    for prompt, answer, texts in zip(prompts, answers, drawn, strict=True):
        log_p, risks = [], []
        for text in texts:
            logits = model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1] / 0.5
            log_p.append(logits.log_softmax(-1)[range(len(text)), text].sum())
            words = [" ".join(WORDS[token] for token in ids if token > 2) for ids in (text, answer)]
            risks.append(1 - metric.compute(words[:1], words[1:]))
        losses.append((risks[0] - risks[1]) * (log_p[0] - log_p[1]) / 2)
    torch.testing.assert_close(loss, sum(losses) / 2)


def test_a_causal_model_writes_better_for_it(tokenizer, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for first in torch.randint(4, 16, (64,), generator=generator).tolist():
        rows.append({"input_ids": [1, first, 3, 7, 2], "labels": [-100, -100, -100, 7, 2]})
    model = make_language_model()
    model.generation_config.max_new_tokens = 2
    model.generation_config.pad_token_id = 0
    args = ReLossTrainingArguments(
        str(tmp_path), use_cpu=True, num_train_epochs=8, per_device_train_batch_size=16, learning_rate=0.01,
        risk_candidates=8, risk_temperature=1.0, model_loss_share=0.0, save_strategy="no", disable_tqdm=True,
        logging_steps=4,
    )  # fmt: skip
    trainer = ReLossTrainer(
        model, args, train_dataset=rows, processing_class=tokenizer, surrogate="policy", metric="rouge1"
    )
    trainer.train()
    risks = [entry["texts/risk"] for entry in trainer.state.log_history if "texts/risk" in entry]
    assert risks[-1] < risks[0] - 0.3
