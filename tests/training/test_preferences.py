"""preference_pairs: of what a model writes, the best with the worst."""

import datasets
import pytest
import torch

from hf_reloss import load_metric, preference_pairs

from ..conftest import TinyClassifier
from .test_rewards import make_language_model, make_tokenizer
from .test_text_trainers import make_tokenizer as make_translators_tokenizer
from .test_text_trainers import make_translator

CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def prompts(count: int = 6) -> datasets.Dataset:
    rows = [{"prompt": "w1 " * (1 + row % 3), "answer": f"w{row % 4} w5"} for row in range(count)]
    return datasets.Dataset.from_list([*rows, {"prompt": "w2 ", "answer": None}])


@pytest.mark.parametrize(("name", "better"), [("rouge1", 1), ("wer", -1)])
def test_the_better_text_is_chosen_and_scored_as_the_metric_has_it(name, better):
    pairs = preference_pairs(
        make_language_model(), prompts(), name, processing_class=make_tokenizer(), candidates=12, max_new_tokens=3,
        batch_size=4,
    )  # fmt: skip
    metric = load_metric(name)
    assert pairs.column_names == ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
    assert 2 <= len(pairs) <= 6
    for row in pairs:
        assert better * row["score_chosen"] > better * row["score_rejected"]
        gold = [answer for answer in prompts()["answer"] if answer]
        for which in ("chosen", "rejected"):
            scores = [metric.compute([row[which].strip()], [answer]) for answer in gold]
            assert any(score == pytest.approx(row[f"score_{which}"]) for score in scores)
    assert {*pairs["prompt"]} == {"w1 ", "w1 w1 ", "w1 w1 w1 "}  # without that which has no answer


def test_an_encoder_decoder_writes_them_too_and_a_seed_is_repeated_without_touching_the_random_state():
    model, tokenizer = make_translator().train(), make_translators_tokenizer()

    def pairs(seed):
        options = {"processing_class": tokenizer, "candidates": 6, "seed": seed, "max_new_tokens": 4}
        return preference_pairs(model, prompts(), "chrf", **options).to_list()

    before = torch.random.get_rng_state()
    first = pairs(1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training
    assert first == pairs(1)
    assert first != pairs(2)
    assert all(row["chosen"] != row["rejected"] for row in first)


@pytest.mark.parametrize("conversations", [False, True])
def test_trls_preference_optimisation_takes_them(tmp_path, conversations):
    trl = pytest.importorskip("trl")
    tokenizer, data = make_tokenizer(), prompts()
    tokenizer.chat_template = CHAT
    if conversations:
        data = data.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"].strip()}]})
    model = make_language_model()
    pairs = preference_pairs(model, data, "rouge1", processing_class=tokenizer, candidates=12, max_new_tokens=3)
    if conversations:
        assert {message["role"] for row in pairs for message in row["chosen"]} == {"assistant"}
    args = trl.DPOConfig(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=0.05, logging_steps=1, use_cpu=True,
        disable_tqdm=True, save_strategy="no", bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(model, make_language_model(), args, train_dataset=pairs, processing_class=tokenizer)
    trainer.train()
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    assert margins[-1] > margins[0]


def test_it_refuses_what_it_cannot_draw_pairs_from():
    model, tokenizer = make_language_model(), make_tokenizer()
    with pytest.raises(ValueError, match="TinyClassifier writes no text"):
        preference_pairs(TinyClassifier(), prompts(), "rouge1", processing_class=tokenizer)
    with pytest.raises(ValueError, match="without 'gold': say with"):
        preference_pairs(model, prompts(), "rouge1", processing_class=tokenizer, references="gold")
    with pytest.raises(ValueError, match="two candidates or more"):
        preference_pairs(model, prompts(), "rouge1", processing_class=tokenizer, candidates=1)
    with pytest.raises(ValueError, match="wants the model's tokenizer"):
        preference_pairs(model, prompts(), "rouge1", processing_class=None)
    same = load_metric(lambda predictions, references: 1.0, name="same")
    with pytest.raises(ValueError, match=r"Of none of the 7 prompts do two of the 2 texts differ in same"):
        preference_pairs(model, prompts(), same, processing_class=tokenizer, candidates=2, max_new_tokens=2)
