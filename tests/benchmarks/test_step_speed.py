"""What is timed on a GPU can be made, and trained on both losses."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_reloss import AutoSurrogate, ReLossTrainer


@pytest.fixture
def step_speed(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import step_speed

    return step_speed


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bert_base", "resnet_50"])
def test_models_of_the_usual_sizes_are_trained(tmp_path, step_speed, model):
    network, example, _ = step_speed.MODELS[model]()
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert {"bert_base": 109 < millions < 111, "resnet_50": 23 < millions < 26}[model]
    args = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, save_strategy="no", disable_tqdm=True, use_cpu=True,
        bf16=torch.cuda.is_available(), optim="sgd",  # on CPUs without such instructions it takes minutes
    )  # fmt: skip
    rows = [example | {"labels": torch.tensor(index)} for index in range(2)]
    surrogate = AutoSurrogate.from_pretrained(step_speed.SURROGATES["a mean"])
    for trainer in (
        Trainer(network, args, train_dataset=rows),
        ReLossTrainer(network, args, train_dataset=rows, surrogate=surrogate),
    ):
        assert trainer.train().training_loss > 0


def test_on_a_gpu_rows_are_of_these_models(step_speed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    rows = step_speed.measures("cuda")
    assert len(rows) == 2 * 2 * 2  # models, surrogates, one process or two
    assert any("BERT-base in bf16" in name and "2 processes" in name for name in rows)


def test_a_translator_trains_on_texts_as_long_as_its_references(step_speed, monkeypatch):
    import text_speed

    monkeypatch.setattr(text_speed, "SENTENCES", 2)
    drawn = []
    monkeypatch.setattr(
        "hf_reloss.training.strategies.own_texts.decoded",
        lambda ids, tokenizer: drawn.append(ids) or tokenizer.batch_decode(ids),
    )
    for word in (None, *text_speed.WORDS):
        text_speed.stepper(word, "cpu")()
    texts, references, with_references, _ = drawn  # of policy gradients, then of minimum risk
    assert [len(ids) for ids in (references, texts, with_references)] == [2, 2 * 4, 2 * (1 + 4)]
    assert {ids.shape[1] for ids in drawn} == {15}
    assert all((ids >= 0).all() for ids in drawn)
