"""Which of a beam's texts is written."""

import pytest
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from hf_reloss import Consensus, DecisionRule, load_metric, tune_text_decision
from hf_reloss.decisions.base import SavedRule
from hf_reloss.decisions.consensus import NO_TEXT, beams, chosen
from hf_reloss.metrics.sentences import metric_of_each

from ..training.test_text_trainers import make_language_model, make_tokenizer, make_translator

PROMPTS = {
    "input_ids": torch.tensor([[4, 5, 6, 2], [7, 8, 2, 0]]),
    "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
}


@pytest.mark.parametrize("name", ["chrf", "sacrebleu", "rougeL", "wer"])
@pytest.mark.parametrize("sharpness", [0.0, 2.0])
def test_it_has_the_highest_expected_score(name, sharpness):
    generator = torch.Generator().manual_seed(0)
    words = ["a", "dog", "runs", "on", "the", "grass"]
    texts = [
        [" ".join(words[place] for place in torch.randint(6, (5,), generator=generator)) for _ in range(4)]
        for _ in range(20)
    ]
    scores = -torch.rand(20, 4, generator=generator)
    metric = metric_of_each(load_metric(name))
    sign = 1 if metric.higher_is_better else -1
    expected = torch.zeros(20, 4)
    for row, each in enumerate(texts):
        weights = (sharpness * scores[row]).softmax(-1).tolist()
        for place, text in enumerate(each):
            against = zip(weights, each, strict=True)
            expected[row, place] = sign * sum(weight * metric.compute([text], [other]) for weight, other in against)
    found = Consensus(name, 4, sharpness).choose(texts, scores)
    of_found = expected.gather(1, found[:, None]).flatten()
    assert of_found.tolist() == pytest.approx(expected.amax(-1).tolist(), abs=1e-5)


def test_a_beam_that_found_nothing_is_not_written_and_has_no_weight():
    risks = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])
    assert chosen(risks, torch.tensor([[-1.0, -1.1, 10 * NO_TEXT]]), 1.0).tolist() == [0]


def test_it_is_saved_and_loaded(tmp_path):
    rule = Consensus(load_metric("rougeL", use_stemmer=True), 5, 1.0)
    rule.save(tmp_path)
    again = Consensus.load(tmp_path)
    assert again.to_dict() == rule.to_dict()
    assert isinstance(SavedRule.load(tmp_path), Consensus)
    with pytest.raises(ValueError, match="'consensus', which is not known here as a DecisionRule"):
        DecisionRule.load(tmp_path)


def test_a_function_cannot_be_saved(tmp_path):
    def overlap(predictions, references):
        return sum(p == r for p, r in zip(predictions, references, strict=True)) / len(predictions)

    rule = Consensus(load_metric(overlap, higher_is_better=True))
    with pytest.raises(ValueError, match="one that load_metric knows by name"):
        rule.save(tmp_path)


@pytest.mark.parametrize("wrong", [{"num_beams": 1}, {"metric": "mse"}])
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"2 beams|scores texts one by one"):
        Consensus(**{"metric": "chrf"} | wrong)


def test_texts_and_scores_are_those_of_beam_search():
    model, tokenizer = make_translator().eval(), make_tokenizer()
    kept = model.generate(
        **PROMPTS, num_beams=4, num_return_sequences=4, return_dict_in_generate=True, output_scores=True
    )  # fmt: skip
    ids, texts, scores = beams(model.generate, tokenizer, 4, **PROMPTS)
    assert ids.flatten(0, 1).tolist() == kept.sequences.tolist()
    assert scores.flatten().tolist() == pytest.approx(kept.sequences_scores.tolist())
    assert texts == [tokenizer.batch_decode(each, skip_special_tokens=True) for each in ids]


def test_a_causal_models_prompt_is_no_part_of_its_text():
    model, tokenizer = make_language_model().eval(), make_tokenizer()
    prompt = torch.tensor([[4, 5, 6]])
    ids, texts, _ = beams(model.generate, tokenizer, 3, prompt, max_new_tokens=3)
    assert ids.shape == (1, 3, 6)
    assert texts[0] == tokenizer.batch_decode(ids[0, :, 3:], skip_special_tokens=True)


def test_an_attached_model_writes_it_until_it_is_taken_off():
    model, tokenizer = make_translator().eval(), make_tokenizer()
    rule, before = Consensus("chrf", 4, 0.0), model.generate(**PROMPTS)
    ids, texts, scores = beams(model.generate, tokenizer, 4, **PROMPTS)
    with rule.attach(model, tokenizer):
        assert model.generate(**PROMPTS).tolist() == ids[[0, 1], rule.choose(texts, scores)].tolist()
        several = model.generate(**PROMPTS, num_beams=2, num_return_sequences=2)
        sampling = GenerationConfig(do_sample=True, max_length=10, decoder_start_token_id=2, pad_token_id=0)
        assert len(several) == 4
        assert len(model.generate(**PROMPTS, generation_config=sampling)) == 2
        assert "sequences" in model.generate(**PROMPTS, return_dict_in_generate=True)
    assert model.generate(**PROMPTS).tolist() == before.tolist()
    assert "generate" not in vars(model)


def lists(number, seed=0):
    """Of each example three texts: the likeliest lacks a word, two agree on the right one; and scores, references."""
    generator, words = torch.Generator().manual_seed(seed), [f"w{place}" for place in range(12)]
    texts, references = [], []
    for _ in range(number):
        right = [words[place] for place in torch.randint(12, (6,), generator=generator)]
        texts.append([" ".join(right[:3]), " ".join(right), " ".join([*right[:5], "x"])])
        references.append(" ".join(right))
    return texts, torch.tensor([[-0.9, -1.0, -1.1]]).repeat(number, 1), references


def test_it_is_kept_where_it_gains():
    texts, scores, references = lists(80)
    found = tune_text_decision(texts, scores, references, "sacrebleu")
    assert found.rule is not None
    assert found.rule.num_beams == 3
    assert found.before == load_metric("sacrebleu").compute([each[0] for each in texts], references)
    decided = [each[place] for each, place in zip(texts, found.decided.tolist(), strict=True)]
    assert found.after == load_metric("sacrebleu").compute(decided, references)
    assert found.after > found.before + 10
    assert str(found).startswith("decision: gained +")


@pytest.mark.parametrize("metric", ["sacrebleu", "wer"])
def test_the_likeliest_text_is_kept_where_it_is_right(metric):
    texts, scores, references = lists(80)
    found = tune_text_decision([[each[1], each[0], each[2]] for each in texts], scores, references, metric)
    assert found.rule is None
    assert found.before == pytest.approx(load_metric(metric).compute(references, references))
    assert "the likeliest text is kept" in str(found)


def test_a_function_judges_and_texts_are_compared_by_a_metric_with_a_name():
    def words_right(predictions, references):
        pairs = zip(predictions, references, strict=True)
        return sum(len(set(p.split()) & set(r.split())) for p, r in pairs)

    texts, scores, references = lists(60)
    found = tune_text_decision(texts, scores, references, load_metric(words_right, higher_is_better=True))
    assert found.rule.metric.name == "sacrebleu"
    assert found.after > found.before


def test_numbers_that_do_not_fit_are_refused():
    texts, scores, references = lists(60)
    with pytest.raises(ValueError, match="50 or more"):
        tune_text_decision(texts[:20], scores[:20], references[:20], "chrf")
    with pytest.raises(ValueError, match=r"60 examples with \[3\] texts, scores \[60, 2\] and 59 references"):
        tune_text_decision(texts, scores[:, :2], references[:59], "chrf")


def test_no_scores_of_the_vocabulary_are_kept():
    model, tokenizer, seen = make_translator().eval(), make_tokenizer(), []

    def generate(*args, **kwargs):
        found = model.generate(*args, **kwargs)
        seen.extend(each.numel() for each in found.scores)
        return found

    beams(generate, tokenizer, 4, **PROMPTS)
    assert seen
    assert not any(seen)


def test_a_model_that_gives_one_text_of_its_beam_is_refused():
    sizes = {f"{side}_{what}": 4 for side in ("encoder", "decoder") for what in ("ffn_dim", "attention_heads")}
    small = WhisperConfig(d_model=8, encoder_layers=1, decoder_layers=1, vocab_size=20, pad_token_id=0, **sizes)
    with pytest.raises(ValueError, match="WhisperForConditionalGeneration gives one"):
        Consensus("wer").attach(WhisperForConditionalGeneration(small), make_tokenizer())


def test_a_generate_of_the_models_own_is_put_back():
    model, calls = make_translator().eval(), []
    before = model.generate

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return before(*args, **kwargs)

    model.generate = counted
    with Consensus("chrf", 3).attach(model, make_tokenizer()):
        model.generate(**PROMPTS)
    assert model.generate is counted
    assert calls[0]["num_return_sequences"] == 3
