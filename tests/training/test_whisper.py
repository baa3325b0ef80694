"""Encoder-decoders of speech: Whisper with its processor, as the example script of transformers trains it."""

import pytest
import torch
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from hf_reloss import ReLossSeq2SeqTrainer, ReLossSeq2SeqTrainingArguments, load_metric
from hf_reloss.training.strategies.written import drawn_texts

WORDS = ["zero", "one", "two", "three", "four", "five"]
BANDS, FRAMES = 8, 40


@pytest.fixture(scope="module")
def processor() -> WhisperProcessor:
    vocab = {token: place for place, token in enumerate(["<|endoftext|>", "Ġ", *sorted(set("".join(WORDS)))])}
    merges = []
    for word in WORDS:
        for end in range(len(word)):
            merges.append((f"Ġ{word[:end]}", word[end]))
            vocab.setdefault(f"Ġ{word[: end + 1]}", len(vocab))
    tokenizer = WhisperTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), pad_token="<|endoftext|>")
    special = ["<|startoftranscript|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=BANDS), tokenizer)


def make_model(processor: WhisperProcessor) -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|endoftext|>"])
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    sizes = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in sizes.items()}
    config = WhisperConfig(
        vocab_size=len(processor.tokenizer), d_model=32, num_mel_bins=BANDS, max_source_positions=FRAMES // 2,
        max_target_positions=16, decoder_start_token_id=start, bos_token_id=end, eos_token_id=end, pad_token_id=end,
        suppress_tokens=[], begin_suppress_tokens=[], **sizes,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config.update(max_length=12, num_beams=1, is_multilingual=False)
    return model


def recordings(processor: WhisperProcessor, number: int, seed: int = 0) -> list[dict]:
    """Log-mel spectra with a loud band, which says with which word a count of four begins; the ids of the count."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for first in torch.randint(len(WORDS), (number,), generator=generator).tolist():
        features = 0.3 * torch.randn(BANDS, FRAMES, generator=generator)
        features[first] += 2.0
        text = "".join(f" {WORDS[(first + place) % len(WORDS)]}" for place in range(4))
        ids = [*processor.tokenizer(text, add_special_tokens=False).input_ids, processor.tokenizer.eos_token_id]
        rows.append({"input_features": features, "labels": ids})
    return rows


def made_trainer(folder, processor: WhisperProcessor, **options) -> ReLossSeq2SeqTrainer:
    def collate(rows):
        labels = processor.tokenizer.pad({"input_ids": [row["labels"] for row in rows]}, return_tensors="pt")
        return {
            "input_features": torch.stack([row["input_features"] for row in rows]),
            "labels": labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100),
        }

    names = ("surrogate", "metric", "compute_metrics")
    trainer_options = {name: options.pop(name) for name in names if name in options}
    settings = {
        "max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 5e-3, "save_strategy": "no",
        "disable_tqdm": True, "use_cpu": True, "predict_with_generate": True, "surrogate_warmup": 0.5,
    } | options  # fmt: skip
    return ReLossSeq2SeqTrainer(
        make_model(processor),
        ReLossSeq2SeqTrainingArguments(str(folder), **settings),
        train_dataset=recordings(processor, 320),
        eval_dataset=recordings(processor, 20, seed=1),
        data_collator=collate,
        processing_class=processor,
        **trainer_options,
    )


def decoding_metrics(processor: WhisperProcessor, seen: list):
    """The compute_metrics of the example script."""

    def compute_metrics(evaluation):
        seen.append(evaluation.predictions.shape)
        ids, label_ids = evaluation.predictions, evaluation.label_ids
        label_ids[label_ids == -100] = processor.tokenizer.pad_token_id
        texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        references = processor.tokenizer.batch_decode(label_ids, skip_special_tokens=True)
        return {"cer": load_metric("cer").compute(texts, references)}

    return compute_metrics


def test_auto_learns_of_what_a_processor_decodes_and_is_resumed_to_the_bit(processor, tmp_path):
    options = {"metric": "wer", "save_strategy": "steps", "save_steps": 40, "max_steps": 80}
    whole = made_trainer(tmp_path / "whole", processor, **options)
    whole.train()
    assert whole.strategy.state.switched_at is not None
    assert whole.surrogate.config.metric == load_metric("wer").signature
    assert "trained on the" in whole.loss_report.verdict
    measured = whole.evaluate()
    assert {"eval_loss", "eval_loss/surrogate"} <= measured.keys()
    resumed = made_trainer(tmp_path / "resumed", processor, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-40"))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_the_compute_metrics_of_a_script_is_what_is_learned_and_evaluated(processor, tmp_path):
    seen: list = []
    trainer = made_trainer(
        tmp_path, processor, metric="cer", compute_metrics=decoding_metrics(processor, seen), eval_strategy="steps",
        eval_steps=40, max_steps=80,
    )  # fmt: skip
    trainer.train()
    assert trainer.metric.name == "cer"
    assert type(trainer.metric).__name__ == "EvaluationMetrics"
    assert not trainer.metric.higher_is_better  # as its name says
    assert trainer.strategy.state.switched_at is not None
    evaluations = [entry["eval_cer"] for entry in trainer.state.log_history if "eval_cer" in entry]
    assert len(evaluations) == 2
    assert evaluations[-1] < 0.1


def test_what_is_drawn_has_its_first_word_and_its_end(processor):
    model = make_model(processor).eval()
    model.generation_config.update(suppress_tokens=[3, 4, 5], begin_suppress_tokens=[0])  # as those that are published
    features = torch.stack([row["input_features"] for row in recordings(processor, 8)])
    starts, drawn = drawn_texts(model, {"input_features": features}, 40, seed=3)
    start, end = model.config.decoder_start_token_id, model.config.eos_token_id
    assert starts.tolist() == 8 * [[start]]
    torch.manual_seed(3)
    ids, ended = torch.full((320, 1), start), torch.zeros(320, dtype=torch.bool)
    assert drawn.shape[-1] in (11, 12)  # by max_length, with its first word or, in transformers 5.0, without
    for _ in range(drawn.shape[-1]):
        with torch.no_grad():
            logits = model(input_features=features.repeat_interleave(40, 0), decoder_input_ids=ids.clamp(min=0)).logits
        chosen = logits[:, -1].softmax(-1).multinomial(1)[:, 0].masked_fill(ended, -100)
        ids, ended = torch.cat([ids, chosen[:, None]], dim=1), ended | (chosen == end)
    assert torch.equal(drawn.flatten(0, 1), ids[:, 1:])
    assert 20 < ended.sum() < 300
    assert {3, 4, 5} < set(drawn.flatten().tolist())


def test_minimum_risk_of_what_it_writes(processor, tmp_path):
    trainer = made_trainer(tmp_path, processor, surrogate="minimum_risk", metric="wer", max_steps=4, logging_steps=1)
    trainer.train()
    logged = [entry["loss/surrogate"] for entry in trainer.state.log_history if "loss/surrogate" in entry]
    assert len(logged) == 2
    assert all(0 < risk < 4 for risk in logged)
