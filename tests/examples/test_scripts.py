"""Scripts in the shape of transformers' examples, with ReLossTrainer and a key of compute_metrics in one line."""

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    DataCollatorForLanguageModeling,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)
from transformers.utils import ModelOutput

from hf_reloss import ReLossTrainer, ReLossTrainingArguments

from ..training.test_rewards import make_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def accuracy(evaluated):
    predictions = evaluated.predictions[0] if isinstance(evaluated.predictions, tuple) else evaluated.predictions
    return {"accuracy": float((np.argmax(predictions, -1) == evaluated.label_ids).mean())}


def run(folder, model, train, test, metric, *, steps=40, checkpoint=None, **options):
    """What a script does: trains, with evaluations, goes on from a checkpoint, evaluates and saves."""
    torch.manual_seed(0)
    args = ReLossTrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-2, eval_strategy="steps",
        eval_steps=20, save_steps=20, use_cpu=True, disable_tqdm=True, report_to="none", logging_steps=10,
        **options.pop("arguments", {}),
    )  # fmt: skip
    trainer = ReLossTrainer(model, args, train_dataset=train, eval_dataset=test, metric=metric, **options)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == steps
    results = trainer.evaluate()
    assert np.isfinite(results["eval_loss"])
    trainer.save_model()
    assert trainer.loss_report.verdict.strip()
    return trainer, results


def choices(count: int) -> datasets.Dataset:
    """Four endings [4, 6] of which one has the word 3, as run_swag.py has them after its collator."""
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(4, 16, (count, 4, 6), generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    ids[torch.arange(count), labels, 2] = 3
    return datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})


def test_multiple_choice(tmp_path):
    def model():
        torch.manual_seed(0)
        return BertForMultipleChoice(BertConfig(vocab_size=16, hidden_dropout_prob=0.0, **SIZES))

    data = {"train": choices(320), "test": choices(80)}
    trainer, results = run(tmp_path, model(), **data, metric="accuracy", compute_metrics=accuracy)
    assert results["eval_accuracy"] > 0.4
    assert trainer.surrogate is not None
    resumed, again = run(
        tmp_path, model(), **data, metric="accuracy", compute_metrics=accuracy, checkpoint=tmp_path / "checkpoint-20"
    )
    assert again["eval_accuracy"] == pytest.approx(results["eval_accuracy"], abs=0.15)
    assert resumed.surrogate is not None


def test_audio_classification(tmp_path):
    def recordings(count):
        generator = torch.Generator().manual_seed(count)
        labels = torch.randint(2, (count,), generator=generator)
        waves = torch.randn(count, 400, generator=generator) * (0.2 + labels[:, None])
        return datasets.Dataset.from_dict({"input_values": waves.tolist(), "labels": labels.tolist()})

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        conv_dim=(16, 16), conv_kernel=(10, 5), conv_stride=(5, 4), num_feat_extract_layers=2, num_labels=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=0.0, classifier_proj_size=8, **SIZES,
    )  # fmt: skip
    model = Wav2Vec2ForSequenceClassification(config)
    trainer, results = run(tmp_path, model, recordings(320), recordings(80), "accuracy", compute_metrics=accuracy)
    assert 0 <= results["eval_accuracy"] <= 1
    assert trainer.surrogate is not None


def test_masked_language_model(tmp_path):
    """As run_mlm.py: predictions are argmaxes, and compute_metrics takes what is masked."""

    def compute_metrics(evaluated):
        masked = evaluated.label_ids != -100
        return {"accuracy": float((evaluated.predictions[masked] == evaluated.label_ids[masked]).mean())}

    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "w12"})
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(3, 8, (320, 1), generator=generator)
    data = datasets.Dataset.from_dict({"input_ids": (starts + torch.arange(6) % 3).tolist()})
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=16, hidden_dropout_prob=0.0, **SIZES))
    trainer, results = run(
        tmp_path, model, data, data.select(range(80)), "accuracy", compute_metrics=compute_metrics,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3),
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )  # fmt: skip
    assert 0 <= results["eval_accuracy"] <= 1
    assert trainer.surrogate is not None or trainer.strategy.own_loss_because


class DualEncoder(nn.Module):
    """As run_clip.py has one: its own loss is contrastive, and there are no labels."""

    def __init__(self):
        super().__init__()
        self.text, self.image = nn.Embedding(16, 8), nn.Linear(6, 8)

    def forward(self, input_ids, pixel_values, return_loss=None):
        texts, images = self.text(input_ids).mean(1), self.image(pixel_values)
        logits = texts @ images.T
        pairs = torch.arange(len(logits), device=logits.device)
        loss = (nn.functional.cross_entropy(logits, pairs) + nn.functional.cross_entropy(logits.T, pairs)) / 2
        return ModelOutput(loss=loss if return_loss else None, logits_per_text=logits, logits_per_image=logits.T)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_contrastive_image_text_trains_on_its_own_loss_and_says_so(tmp_path, caplog, accumulation):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(16, (160, 3), generator=generator)
    rows = [{"input_ids": row, "pixel_values": torch.randn(6, generator=generator) + row.float().mean()} for row in ids]

    def collator(examples):
        batch = {name: torch.stack([example[name] for example in examples]) for name in examples[0]}
        return batch | {"return_loss": True}

    trainer, results = run(
        tmp_path, DualEncoder(), rows, rows[:40], "accuracy", data_collator=collator,
        arguments={"remove_unused_columns": False, "gradient_accumulation_steps": accumulation},
    )  # fmt: skip
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert "labels" in trainer.strategy.own_loss_because
    assert sum("own" in record.message and "labels" in record.message for record in caplog.records) == 1
    _, again = run(
        tmp_path, DualEncoder(), rows, rows[:40], "accuracy", data_collator=collator,
        checkpoint=tmp_path / "checkpoint-20",
        arguments={"remove_unused_columns": False, "gradient_accumulation_steps": accumulation},
    )  # fmt: skip
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-3)
