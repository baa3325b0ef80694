"""Speech recognition: models of CTC, and encoder-decoders of speech."""

import json
import logging
from itertools import groupby

import pytest
import torch
from torch import nn
from transformers import ParakeetCTCConfig, ParakeetForCTC, Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, load_metric
from hf_reloss.predictions.models import batch_labels, is_ctc, writes_text

LETTERS = ["<pad>", "<unk>", "|", "a", "b", "c", "d", "e"]
SAMPLES = 50
"""Samples that a letter takes in these recordings."""


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> Wav2Vec2CTCTokenizer:
    file = tmp_path_factory.mktemp("letters") / "vocab.json"
    file.write_text(json.dumps({letter: place for place, letter in enumerate(LETTERS)}))
    return Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None)


def recognizer(**options) -> Wav2Vec2ForCTC:
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(LETTERS), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "conv_dim": (32, 32), "conv_kernel": (10, 4), "conv_stride": (5, 2),
        "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
        "mask_time_prob": 0.0, "layerdrop": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0,
        "activation_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0, "pad_token_id": 0,
        "ctc_loss_reduction": "mean", "feat_extract_norm": "layer",
    }  # fmt: skip
    return Wav2Vec2ForCTC(Wav2Vec2Config(**settings | options))


def recordings(number: int, seed: int = 0, noise: float = 0.5) -> list[dict]:
    """Words of letters, each a tone of its own; the ids of their letters."""
    generator = torch.Generator().manual_seed(seed)
    time, rows = torch.arange(SAMPLES), []
    for length in torch.randint(2, 6, (number,), generator=generator).tolist():
        ids = torch.randint(2, len(LETTERS), (length,), generator=generator)
        sound = torch.sin(time * (0.15 + 0.3 * ids[:, None])).flatten()
        sound += noise * torch.randn(len(sound), generator=generator)
        rows.append({"input_values": sound, "labels": ids})
    return rows


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    padded = nn.utils.rnn.pad_sequence
    masks = [torch.ones(len(row["input_values"])).long() for row in rows]
    return {
        "input_values": padded([row["input_values"] for row in rows], batch_first=True),
        "attention_mask": padded(masks, batch_first=True),
        "labels": padded([row["labels"] for row in rows], batch_first=True, padding_value=-100),
    }


def recognizing(folder, letters, model=None, rows=None, **options) -> ReLossTrainer:
    names = ("surrogate", "metric", "compute_metrics", "callbacks", "guard", "data_collator")
    trainer_options = {name: options.pop(name) for name in names if name in options}
    settings = {
        "max_steps": 20, "per_device_train_batch_size": 16, "learning_rate": 3e-3, "save_strategy": "no",
        "disable_tqdm": True, "logging_steps": 5, "use_cpu": True, "seed": 3,
    } | options  # fmt: skip
    return ReLossTrainer(
        model or recognizer(),
        ReLossTrainingArguments(str(folder), **settings),
        train_dataset=recordings(160) if rows is None else rows,
        eval_dataset=recordings(90, seed=1),
        processing_class=letters,
        **{"data_collator": collate, "metric": "wer"} | trainer_options,
    )


def transcripts(model, letters, rows) -> tuple[list[str], list[str]]:
    """What a model transcribes, frame by frame, without the library's own code, and what was said."""
    transcribed = []
    for row in rows:
        with torch.no_grad():
            path = model.eval()(row["input_values"][None]).logits[0].argmax(-1).tolist()
        transcribed.append("".join(" " if i == 2 else LETTERS[i] for i, _ in groupby(path) if i))
    said = ["".join(" " if i == 2 else LETTERS[i] for i in row["labels"].tolist()) for row in rows]
    return [text.strip() for text in transcribed], [text.strip() for text in said]


class Frames(nn.Module):
    """A model of CTC of somebody's own, which no name says so of."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(10, len(LETTERS))

    def forward(self, input_values, attention_mask, labels=None):
        frames = input_values[:, : input_values.shape[1] // 10 * 10].unflatten(1, (-1, 10))
        logits = self.head(frames)
        lengths = attention_mask.sum(-1) // 10
        log_p = logits.log_softmax(-1).transpose(0, 1)
        loss = nn.functional.ctc_loss(log_p, labels.clamp(min=0), lengths, (labels >= 0).sum(-1))
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize(
    ("make", "surrogate", "guard"),
    [(recognizer, "auto", True), (Frames, "auto", "strict"), (Frames, "approximation", True)],
)
def test_auto_stays_on_ctc_and_says_so(letters, tmp_path, caplog, monkeypatch, make, surrogate, guard):
    monkeypatch.setattr(logging.getLogger("hf_reloss"), "propagate", True)
    trainer = recognizing(tmp_path, letters, make(), surrogate=surrogate, guard=guard, eval_strategy="steps")
    before = trainer.evaluate()  # an evaluation may be the first to see a batch
    trainer.train()
    assert trainer.state.global_step == 20
    assert trainer.surrogate is None
    said = "nothing is learned for CTC; surrogate='minimum_risk' trains on the expected wer"
    assert trainer.loss_report.verdict == f"VERDICT: kept the model's own loss: {said}"
    assert sum(said in record.message for record in caplog.records if record.levelname == "WARNING") >= 1
    assert not any("Traceback" in record.message or "could not" in record.message for record in caplog.records)
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"]


def test_the_run_is_that_of_the_models_own_loss(letters, tmp_path):
    auto = recognizing(tmp_path, letters, surrogate="auto")
    auto.train()
    usual = recognizing(tmp_path, letters, surrogate="minimum_risk", model_loss_share=1.0)
    usual.train()
    for name, weight in usual.model.state_dict().items():
        assert torch.equal(weight, auto.model.state_dict()[name]), name


def test_a_key_of_the_users_compute_metrics_is_computed_by_every_evaluation(letters, tmp_path):
    """As in the example script of transformers."""

    def compute_metrics(evaluation):
        ids, label_ids = evaluation.predictions.argmax(-1), evaluation.label_ids
        label_ids[label_ids == -100] = letters.pad_token_id
        texts = letters.batch_decode(ids)
        return {"my_wer": load_metric("wer").compute(texts, letters.batch_decode(label_ids, group_tokens=False))}

    for surrogate in ("auto", "minimum_risk"):
        trainer = recognizing(
            tmp_path / surrogate, letters, surrogate=surrogate, compute_metrics=compute_metrics,
            metric="my_wer" if surrogate == "auto" else "wer", metric_for_best_model="my_wer", greater_is_better=False,
            eval_strategy="steps", eval_steps=10, save_strategy="steps", save_steps=10, load_best_model_at_end=True,
        )  # fmt: skip
        trainer.train()
        assert len([entry for entry in trainer.state.log_history if "eval_my_wer" in entry]) == 2
    with pytest.raises(ValueError, match="my_wer"):
        recognizing(tmp_path, letters, surrogate="minimum_risk", metric="my_wer")


def test_a_run_with_auto_is_resumed_to_the_bit_and_says_the_same(letters, tmp_path):
    options = {"surrogate": "auto", "save_strategy": "steps", "save_steps": 10}
    whole = recognizing(tmp_path / "whole", letters, **options)
    whole.train()
    resumed = recognizing(tmp_path / "resumed", letters, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    assert resumed.loss_report.verdict == whole.loss_report.verdict
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_labels_that_are_no_tensors_are_not_taken_for_those_of_ctc(tmp_path):
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, pixel_values, labels=None):
            logits = self.head(pixel_values)[:, None].expand(-1, 5, -1)
            return {"loss": logits.square().mean(), "logits": logits}

    def boxes(rows):
        return {"pixel_values": torch.randn(len(rows), 4), "labels": [{"boxes": torch.randn(1, 4)} for _ in rows]}

    args = ReLossTrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, disable_tqdm=True, save_strategy="no")
    trainer = ReLossTrainer(
        Detector(), args, train_dataset=[{"pixel_values": 0}] * 8, data_collator=boxes, metric="accuracy"
    )
    trainer.train()
    assert "For object detection (a list of dictionaries)" in trainer.loss_report.reason


def test_a_loss_that_is_infinite_for_too_many_labels_says_what_to_do(letters, tmp_path):
    rows = [{"input_values": torch.randn(60), "labels": torch.full((9,), 3)}] * 16
    trainer = recognizing(tmp_path, letters, rows=rows, surrogate="auto")
    with pytest.raises(FloatingPointError, match="ctc_zero_infinity"):
        trainer.train()


def test_a_model_of_ctc_that_transformers_lets_generate_writes_no_text_token_by_token():
    torch.manual_seed(0)
    encoder = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "num_mel_bins": 16, "subsampling_conv_channels": 4, "conv_kernel_size": 3,
    }  # fmt: skip
    model = ParakeetForCTC(ParakeetCTCConfig(vocab_size=8, pad_token_id=7, encoder_config=encoder))
    assert is_ctc(model)
    assert not writes_text(model)
    labels = torch.tensor([[1, 2, -100]])
    assert torch.equal(batch_labels(model, {"labels": labels}, ["labels"]), labels)
