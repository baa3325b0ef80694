"""Training on the expected risk of what a model writes."""

import math
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import BartForConditionalGeneration, TrainerCallback

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, load_metric
from hf_reloss.metrics.sentences import Risk
from hf_reloss.training.strategies.minimum_risk import MinimumRisk, expected_risk

from ...conftest import TinyClassifier
from ..test_text_trainers import WORDS, make_language_model, make_tokenizer, make_translator, sentences, translating


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory) -> BartForConditionalGeneration:
    """A model that copies some sentences right."""
    trainer = translating(
        tmp_path_factory.mktemp("trained"), tokenizer, surrogate="minimum_risk", metric="bleu", surrogate_warmup=999,
        num_train_epochs=8, learning_rate=5e-3,
    )  # fmt: skip
    trainer.train()
    return trainer.model.cpu()


def copy_of(model: BartForConditionalGeneration, dropout: float = 0.0) -> BartForConditionalGeneration:
    copy = make_translator()
    copy.load_state_dict(model.state_dict())
    for module in copy.modules():
        if hasattr(module, "dropout"):
            module.dropout = dropout
    return copy


def make_trainer(folder, tokenizer, model=None, **options):
    settings = {"surrogate": "minimum_risk", "metric": "bleu", "max_grad_norm": 0, "use_cpu": True, "seed": 3}
    return translating(folder, tokenizer, model, **settings | options)


def writes_its_likeliest(model: BartForConditionalGeneration) -> BartForConditionalGeneration:
    """In place of draws, what a beam finds, which no random number decides."""
    generate = model.generate

    def search(generation_config=None, *, num_return_sequences, num_beams, **given):
        of_draws = ("top_k", "top_p", "temperature", "logits_processor")
        given = {name: value for name, value in given.items() if name not in of_draws}
        several = {"num_return_sequences": num_return_sequences, "num_beams": num_return_sequences}
        return generate(**given | several | {"do_sample": False})

    model.generate = search
    return model


def writes(model: BartForConditionalGeneration, texts: list[list[int]]) -> BartForConditionalGeneration:
    """In place of draws, these token ids."""
    length = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])
    model.generate = lambda generation_config=None, **_: ids
    return model


def written_by(model: BartForConditionalGeneration) -> list[tuple[bool, torch.Tensor]]:
    """What the model draws from now on, and whether it was in training mode then."""
    drawn, generate = [], model.generate

    def listen(generation_config=None, **given):
        drawn.append((model.training, generate(**given)))
        return drawn[-1][1]

    model.generate = listen
    return drawn


def first_gradients(trainer) -> dict[str, torch.Tensor]:
    seen = {}

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if not seen:
                seen.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    trainer.add_callback(Spy())
    trainer.train()
    return seen


def check_loss_and_gradients(trainer, references, expected) -> None:
    """The loss of sources that are to be copied, and its gradients, are those of what `expected(batch)` computes."""
    model = trainer.model
    batch = trainer.data_collator([{"input_ids": ids, "labels": ids} for ids in references])
    model.train()
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    assert max(gradient.abs().max() for gradient in found.values()) > 1e-3
    model.zero_grad()
    wanted = expected(batch)
    torch.testing.assert_close(loss, wanted.float())
    wanted.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def right(model: BartForConditionalGeneration, tokenizer) -> float:
    """The share of unseen sentences that are copied right, and their smoothed BLEU."""
    rows = sentences(200, seed=2).remove_columns("attention_mask")
    ids = torch.full((200, 8), 0)
    for place, row in enumerate(rows):
        ids[place, : len(row["labels"])] = torch.tensor(row["labels"])
    with torch.no_grad():
        written = model.eval().generate(input_ids=ids, attention_mask=(ids != 0).long(), max_length=10, num_beams=1)
    texts, references = (tokenizer.batch_decode(each, skip_special_tokens=True) for each in (written, ids))
    return load_metric("bleu", smooth=True).compute(texts, references)


def test_the_expected_risk_by_hand():
    log_probabilities = torch.tensor([[0.4, 0.1, 0.0], [0.09, 0.01, 0.25]]).log()
    risks = torch.tensor([[0.0, 1.0, 9.0], [1.0, 0.5, 0.0]])
    # alpha 1: 0.4 and 0.1 of 0.5. alpha 1/2: 0.3, 0.1 and 0.5 of 0.9.
    torch.testing.assert_close(expected_risk(log_probabilities, risks, 1.0)[0], torch.tensor(0.2))
    torch.testing.assert_close(expected_risk(log_probabilities, risks, 0.5)[1], torch.tensor((0.3 + 0.05) / 0.9))


def test_its_gradient_by_hand():
    log_probabilities = torch.tensor([0.4, 0.1, 0.0]).log().requires_grad_()
    expected_risk(log_probabilities, torch.tensor([0.0, 1.0, 0.0]), 0.5).backward()
    # α Q_k (Δ_k - R), with Q = (2/3, 1/3) and R = 1/3.
    torch.testing.assert_close(log_probabilities.grad, torch.tensor([-1 / 9, 1 / 9, 0.0]))


@pytest.mark.parametrize(
    ("metric", "risks"),
    [
        # 3/4, 2/3, 1/2 and 1/1, one more than matches and n-grams of each order.
        ("bleu", [0.0, 1 - (3 / 4 * 2 / 3 * 1 / 2) ** 0.25, 1.0]),
        ("chrf", [0.0, None, 1.0]),
        ("wer", [0.0, 1 / 3, 1.0]),
        ("ter", [0.0, 1 / 3, 1.0]),
        ("rougeL", [0.0, 1 / 3, 1.0]),
        (lambda texts, references: float(texts == references), [0.0, 1.0, 1.0]),
    ],
    ids=["bleu", "chrf", "wer", "ter", "rougeL", "function"],
)
def test_a_risk_is_0_for_what_is_right_and_1_for_what_is_wrong(metric, risks):
    found = Risk(metric)(["w1 w2 w3", "w1 w2 w4", ""], ["w1 w2 w3"] * 3)
    for risk, expected in zip(found.tolist(), risks, strict=True):
        assert 0 < risk < 1 if expected is None else risk == pytest.approx(expected)


def test_sacrebleu_is_that_of_sentences():
    text, reference = "w1 w2 w4 w5 w6", "w1 w2 w3 w5 w6"
    score = load_metric("sacrebleu", use_effective_order=True).compute([text], [reference])
    assert Risk("sacrebleu")([text, "w1"], [reference, "w1"]).tolist() == pytest.approx([1 - score / 100, 0.0])


def test_equal_texts_are_scored_once_and_what_has_no_score_is_wrong():
    scored = []

    def metric(texts, references):
        scored.extend(zip(texts, references, strict=True))
        return {"none": math.nan, "never": -math.inf}.get(texts[0], float(texts == references))

    risk = Risk(load_metric(metric, higher_is_better=True))
    scored.clear()
    assert risk(["a", "b", "a", "none", "never"], ["a"] * 5).tolist() == [0, 1, 0, 1, 1]
    assert scored == [("a", "a"), ("b", "a"), ("none", "a"), ("never", "a")]


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_loss_and_gradient_are_those_of_candidates_taken_one_by_one(tokenizer, tmp_path, trained, share):
    references = [[4, 5, 6, 2], [7, 8, 2]]
    drawn = [[[4, 5, 2], [4, 5, 9, 2], [4, 5, 2]], [[7, 8, 2], [9, 9, 9, 9, 9, 9], [8, 2]]]  # of which two are new
    model = writes(copy_of(trained), [[2, *text] for texts in drawn for text in texts])
    trainer = make_trainer(
        tmp_path, tokenizer, model, risk_candidates=3, risk_alpha=0.3, metric="rougeL", model_loss_share=share
    )

    def expected(batch):
        metric, risks = load_metric("rougeL"), []
        different = [[[4, 5, 6, 2], [4, 5, 2], [4, 5, 9, 2]], [[7, 8, 2], [9, 9, 9, 9, 9, 9], [8, 2]]]
        for reference, texts in zip(references, different, strict=True):
            weights, losses = [], []
            for text in texts:
                logits = model(
                    input_ids=torch.tensor([reference]), decoder_input_ids=torch.tensor([[2, *text[:-1]]])
                ).logits[0]
                chances = logits.double().softmax(-1)
                weights.append(math.prod(chances[place, token] for place, token in enumerate(text)) ** 0.3)
                words = [" ".join(WORDS[token] for token in ids if token > 2) for ids in (text, reference)]
                losses.append(1 - metric.compute(words[:1], words[1:]))
            risks.append(sum(w * r for w, r in zip(weights, losses, strict=True)) / sum(weights))
        return (1 - share) * sum(risks) / 2 + share * model(**batch).loss

    check_loss_and_gradients(trainer, references, expected)


def test_an_example_without_labels_does_not_count(tokenizer, tmp_path, trained):
    model = writes_its_likeliest(copy_of(trained))
    trainer = make_trainer(tmp_path, tokenizer, model)
    rows = [dict(row) for row in sentences(4)]
    model.train()
    alone = trainer.compute_loss(model, dict(trainer.data_collator(rows)))
    batch = trainer.data_collator([*rows, {**rows[0], "labels": [-100] * len(rows[0]["labels"])}])
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), alone)


def test_candidates_are_drawn_from_the_whole_distribution(tokenizer, tmp_path):
    model = make_translator()
    with torch.no_grad():
        model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(0))
    model.generation_config.update(top_k=2, top_p=0.5, temperature=0.1, num_beams=3)  # as its author decodes
    drawn = written_by(model)
    trainer = make_trainer(
        tmp_path, tokenizer, model, risk_candidates=4000, risk_reference=False, generation_max_length=2
    )
    rows = [{"input_ids": [5, 2], "labels": [5, 2]}]
    trainer.compute_loss(model.train(), dict(trainer.data_collator(rows)))
    ((training, ids),) = drawn
    assert not training
    assert model.training
    assert ids.shape == (4000, 2)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 2]]), decoder_input_ids=torch.tensor([[2]])).logits[0, 0]
    frequencies = torch.bincount(ids[:, 1], minlength=len(WORDS)) / 4000
    torch.testing.assert_close(frequencies, logits.softmax(-1), atol=0.03, rtol=0)  # four standard deviations


def test_a_model_writes_better_for_it(tokenizer, tmp_path, trained):
    before = right(copy_of(trained), tokenizer)
    trainer = make_trainer(
        tmp_path, tokenizer, copy_of(trained), risk_candidates=8, risk_alpha=1.0, learning_rate=3e-3,
        num_train_epochs=6, per_device_train_batch_size=16, generation_max_length=9,
    )  # fmt: skip
    trainer.train()
    after = right(trainer.model, tokenizer)
    assert after > before + 0.1
    logged = [entry["loss/surrogate"] for entry in trainer.state.log_history if "loss/surrogate" in entry]
    assert logged[-1] < logged[0]
    assert all("loss/model" not in entry for entry in trainer.state.log_history)


def test_evaluation_is_on_the_models_own_loss_and_writes_nothing(tokenizer, tmp_path, trained):
    trainer = make_trainer(
        tmp_path, tokenizer, copy_of(trained), predict_with_generate=False, per_device_eval_batch_size=16
    )
    trainer.model.generate = None
    batch = trainer.data_collator([dict(row) for row in sentences(9, seed=1)])
    measured = trainer.evaluate()
    assert measured["eval_loss"] == pytest.approx(trainer.model.eval()(**batch).loss.item(), rel=1e-5)
    assert "eval_alignment" not in measured


def test_accumulated_gradients_equal_those_of_the_whole_batch(tokenizer, tmp_path, trained):
    whole = make_trainer(tmp_path, tokenizer, writes_its_likeliest(copy_of(trained)), max_steps=1)
    parts = make_trainer(
        tmp_path, tokenizer, writes_its_likeliest(copy_of(trained)), max_steps=1, per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )  # fmt: skip
    found = first_gradients(parts)
    for name, gradient in first_gradients(whole).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-7)
        assert "layer_norm" in name or name == "final_logits_bias" or gradient.abs().max() > 0


@pytest.mark.parametrize(("warmup", "kill_at"), [(6, 4), (6, 8)])
def test_a_run_that_is_resumed_is_one_that_was_not_broken(tokenizer, tmp_path, trained, warmup, kill_at):
    options = {
        "surrogate_warmup": warmup, "max_steps": 12, "save_strategy": "steps", "save_steps": 4,
        "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4,
    }  # fmt: skip
    unbroken = make_trainer(tmp_path / "unbroken", tokenizer, copy_of(trained, dropout=0.1), **options)
    unbroken.train()
    checkpoint = tmp_path / "unbroken" / f"checkpoint-{kill_at}"
    assert not (checkpoint / "surrogate").exists()
    resumed = make_trainer(tmp_path / "resumed", tokenizer, copy_of(trained, dropout=0.1), **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert not torch.equal(unbroken.model.lm_head.weight, trained.lm_head.weight)


def test_drawing_leaves_the_random_state_of_the_run_alone_and_differs_from_step_to_step(tokenizer, tmp_path, trained):
    class Draw(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            self.drawn = torch.rand(3)

    drawn = []
    for warmup in (0, 999):
        spy, model = Draw(), copy_of(trained)
        written = written_by(model)
        trainer = make_trainer(
            tmp_path, tokenizer, model, max_steps=4, surrogate_warmup=warmup, callbacks=[spy], learning_rate=0.0,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        trainer.train_dataset = [dict(row) for row in sentences(1)] * 16
        trainer.train()
        drawn.append(spy.drawn)
        assert len(written) == (0 if warmup else 8)
        # All of one sentence, by one model: what differs is chance.
        assert len({str(ids.tolist()) for _, ids in written}) == len(written)
    assert torch.equal(*drawn)


def test_the_models_page_says_what_it_was_trained_on(tokenizer, tmp_path, trained):
    trainer = make_trainer(tmp_path, tokenizer, copy_of(trained), max_steps=1, model_loss_share=0.25)
    trainer.train()
    trainer.save_model()
    assert not (tmp_path / "surrogate").exists()
    trainer.create_model_card()
    page = ModelCard.load(tmp_path / "README.md")
    assert "least expected risk" in page.text
    assert load_metric("bleu", smooth=True).signature in page.text
    assert "25 % of the loss was the model's own" in page.text
    assert "hf-reloss" in page.data.tags


def test_adapters_learn_and_nothing_else_does(tokenizer, tmp_path, trained):
    model = get_peft_model(copy_of(trained), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    make_trainer(tmp_path, tokenizer, model, max_steps=3).train()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert any("encoder" in name for name in changed)
    assert all("lora" in name for name in changed)


def test_bf16_gives_the_losses_of_float32(tokenizer, tmp_path, trained):
    losses = []
    for bf16 in (True, False):
        model = writes_its_likeliest(copy_of(trained))
        trainer = make_trainer(tmp_path, tokenizer, model, max_steps=1, bf16=bf16, logging_steps=1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss/surrogate"])
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": None}, "wants the metric that texts are scored by"),
        ({"metric": "blue"}, "nearest are .*bleu"),
        ({"metric": "accuracy"}, "the metric 'accuracy' cannot"),
        ({"risk_candidates": 1, "risk_reference": False}, "got 1 and"),
        ({"risk_alpha": 0.0}, "above 0, but got 0.0"),
        ({"risk_temperature": 0.0}, "risk_temperature is above 0, but got 4 and 0.0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 smooths"),
    ],
)
def test_what_is_missing_is_told(tokenizer, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, **options)


def test_models_that_cannot_write_and_tokenizers_that_are_not_there_are_told(tokenizer, tmp_path):
    args = ReLossTrainingArguments(str(tmp_path), use_cpu=True)
    settings = {"surrogate": "minimum_risk", "metric": "bleu"}
    with pytest.raises(ValueError, match="but this is TinyClassifier"):
        ReLossTrainer(TinyClassifier(), args, processing_class=tokenizer, **settings)
    with pytest.raises(ValueError, match="lets GPT2LMHeadModel go on from its prompts, but nobody says for how long"):
        ReLossTrainer(make_language_model(), args, processing_class=tokenizer, **settings)
    with pytest.raises(ValueError, match="wants the tokenizer, processing_class="):
        ReLossTrainer(make_translator(), args, **settings)


def test_a_model_that_is_divided_over_processes_is_refused(tokenizer):
    divided = SimpleNamespace(model=make_translator(), processing_class=tokenizer, is_fsdp_enabled=True)
    with pytest.raises(ValueError, match="FSDP or DeepSpeed's ZeRO-3 divides it"):
        MinimumRisk("bleu").prepare(divided)
