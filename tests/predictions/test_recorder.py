import datasets
import pytest
import torch
from transformers import PreTrainedConfig, Trainer, TrainerCallback, TrainingArguments

from hf_reloss import (
    PredictionRecorder,
    SurrogateConfig,
    SurrogateForClassification,
    SurrogateTrainer,
    load_metric,
    record_predictions,
)
from hf_reloss.predictions.dataset import recorded_models
from hf_reloss.predictions.groups import draw_groups

from ..conftest import TinyClassifier, tiny_rows


def trained_with(recorder, tmp_path, **options):
    args = TrainingArguments(
        str(tmp_path),
        num_train_epochs=5,
        per_device_train_batch_size=10,
        save_strategy="no",
        disable_tqdm=True,
        **options,
    )
    model = TinyClassifier()
    Trainer(model, args, train_dataset=tiny_rows(100), callbacks=[recorder]).train()
    return model


def test_a_recorder_hears_every_prediction_of_a_run(tmp_path):
    recorder = PredictionRecorder()
    trained_with(recorder, tmp_path)
    recorded = recorder.dataset().with_format("torch")[:]
    assert recorded["logits"].shape == (500, 4)
    assert recorded["stage"].unique().numel() == 50  # one of each step
    assert recorded["stage"].min() == 0
    assert recorded["stage"].max() == pytest.approx(49 / 50)
    expected = torch.stack([row["labels"] for row in tiny_rows(100)]).bincount(minlength=4) * 5
    assert torch.equal(recorded["labels"].bincount(minlength=4), expected)


def test_predictions_are_those_of_training_and_stop_with_it(tmp_path):
    recorder = PredictionRecorder()
    model = trained_with(recorder, tmp_path)
    model.train()
    model(features=torch.randn(3, 6), labels=torch.tensor([0, 1, 2]))
    assert len(recorder) == 500


@pytest.mark.parametrize("most", [2, 50, 64, 499])
def test_memory_is_bounded_and_early_and_late_predictions_stay(most, tmp_path):
    recorder = PredictionRecorder(max_predictions=most)
    trained_with(recorder, tmp_path)
    stage = recorder.dataset().with_format("torch")[:]["stage"]
    assert most / 2 <= len(stage) <= most
    if most >= 50:
        assert stage.min() == 0
        assert stage.max() > 0.9
        gaps = stage.sort().values.diff()
        assert gaps.max() < 0.1


def test_recorded_predictions_are_a_dataset_that_is_saved_and_loaded(tmp_path):
    recorder = PredictionRecorder()
    logits = torch.randn(5, 3)
    recorder.add({"logits": logits}, torch.tensor([0, -100, 2, 1, 0]), stage=0.25)
    recorder.dataset().save_to_disk(tmp_path / "predictions")
    loaded = datasets.load_from_disk(tmp_path / "predictions").with_format("torch")[:]
    assert torch.equal(loaded["logits"], logits[[0, 2, 3, 4]])
    assert loaded["labels"].tolist() == [0, 2, 1, 0]
    assert loaded["stage"].tolist() == [0.25] * 4


def test_a_data_set_says_whose_predictions_it_holds(tmp_path):
    recorder = PredictionRecorder()
    model = trained_with(recorder, tmp_path)
    heard = recorder.dataset()
    assert recorded_models(heard) == ["TinyClassifier"]
    model.config = PreTrainedConfig(name_or_path="somebody/tiny")
    recorded = record_predictions(model, tiny_rows(20))
    together = datasets.concatenate_datasets([heard, recorded, recorded])
    assert recorded_models(together) == ["TinyClassifier", "TinyClassifier somebody/tiny"]
    together.save_to_disk(tmp_path / "saved")
    assert recorded_models(
        datasets.load_from_disk(tmp_path / "saved").train_test_split(0.5)["train"]
    ) == recorded_models(together)
    model.config = PreTrainedConfig(name_or_path=str(tmp_path))  # a folder says nothing to others
    assert recorded_models(record_predictions(model, tiny_rows(20))) == ["TinyClassifier"]


def test_a_recorder_goes_on_from_a_file_as_if_nothing_had_happened(tmp_path):
    def feed(recorder, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            recorder.add(torch.randn(7, 3, generator=generator), torch.full((7,), step % 3), stage=step / 40)

    unbroken = PredictionRecorder(max_predictions=60)
    feed(unbroken, range(40))
    first = PredictionRecorder(max_predictions=60)
    feed(first, range(23))
    first.save(tmp_path / "recording.safetensors")
    second = PredictionRecorder(max_predictions=60)
    second.load(tmp_path / "recording.safetensors")
    feed(second, range(23, 40))
    one, two = (recorder.dataset().with_format("torch")[:] for recorder in (unbroken, second))
    for column in one:
        assert torch.equal(one[column], two[column])


def test_batches_of_which_nothing_is_kept_cost_nothing():
    recorder = PredictionRecorder(max_predictions=10)
    for step in range(500):
        recorder.add(torch.randn(2, 3), torch.tensor([0, 1]), stage=step / 500)
        recorder.add(torch.randn(2, 3), torch.tensor([-100, -100]), stage=step / 500)
    assert len(recorder) == len(recorder.dataset()) <= 10
    assert len(recorder._parts) <= 10


def test_after_a_run_that_failed_predictions_are_heard_once(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    recorder = PredictionRecorder()
    args = TrainingArguments(str(tmp_path), max_steps=3, per_device_train_batch_size=10, save_strategy="no")
    trainer = Trainer(TinyClassifier(), args, train_dataset=tiny_rows(100), callbacks=[recorder, Stop()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Stop)
    trainer.train()
    assert len(recorder) == 10 + 30


def test_an_empty_recorder_says_what_to_do(tmp_path):
    recorder = PredictionRecorder()
    with pytest.raises(ValueError, match="Nothing has been recorded"):
        recorder.dataset()
    recorder.save(tmp_path / "empty.safetensors")
    recorder.load(tmp_path / "empty.safetensors")
    assert len(recorder) == 0
    with pytest.raises(ValueError, match="2 or more"):
        PredictionRecorder(max_predictions=1)


def test_record_predictions_gives_what_the_model_puts_out():
    model = TinyClassifier(dropout=0.5)
    rows = tiny_rows(30)
    recorded = record_predictions(model, rows, stage=0.5).with_format("torch")[:]
    model.eval()
    expected = model(torch.stack([row["features"] for row in rows])).logits
    torch.testing.assert_close(recorded["logits"], expected)
    assert recorded["labels"].tolist() == [int(row["labels"]) for row in rows]
    assert recorded["stage"].tolist() == [0.5] * 30


def test_record_predictions_takes_a_sample_of_a_large_data_set():
    rows = datasets.Dataset.from_dict({"features": torch.randn(50, 6).numpy(), "labels": [0] * 25 + [1] * 25})
    labels = record_predictions(TinyClassifier(), rows, max_predictions=20)["labels"]
    assert len(labels) == 20
    assert set(labels) == {0, 1}


def test_record_predictions_wants_labels():
    with pytest.raises(ValueError, match="with labels"):
        record_predictions(TinyClassifier(), [{"features": torch.randn(6)}] * 4)


@pytest.fixture(scope="module")
def translator():
    """A tiny encoder-decoder, its tokenizer, examples, and what collates them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        DataCollatorForSeq2Seq,
        PreTrainedTokenizerFast,
        set_seed,
    )

    set_seed(0)
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(12))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    sizes = {"layers": 1, "ffn_dim": 32, "attention_heads": 2}
    sizes = {f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in sizes.items()}
    config = BartConfig(
        vocab_size=len(words), d_model=32, max_position_embeddings=32, dropout=0.0, **sizes,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    model.generation_config.update(max_new_tokens=8, num_beams=1)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.randint(2, 6, (60,), generator=generator).tolist():
        ids = torch.randint(4, len(words), (length,), generator=generator).tolist()
        # Untrained, the model repeats the token before: only a text that was cut off is not what it was to write.
        ids += [2] * (length % 2)
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids})
    return model, tokenizer, datasets.Dataset.from_list(rows), DataCollatorForSeq2Seq(tokenizer, model)


@pytest.mark.parametrize("generate", [True, False])
def test_texts_are_recorded_with_their_statistics_and_the_margins_of_their_tokens(translator, generate):
    model, tokenizer, rows, collator = translator
    metric = load_metric("sacrebleu", tokenize="none")
    recorded = record_predictions(
        model, rows, metric=metric, generate=generate, data_collator=collator, processing_class=tokenizer, batch_size=7
    )
    written, counted = "generated" if generate else "teacher_forced", f"statistics of {metric.signature}"
    assert recorded.column_names == ["margins", "labels", "stage", written, "reference", counted]
    statistics = metric.statistics(recorded[written][:], recorded["reference"][:])
    assert torch.equal(torch.tensor(recorded[counted][:], dtype=torch.float64), statistics)
    model.eval()
    for i in (0, 25, 59):  # one by one, without padding
        ids = torch.tensor([rows[i]["labels"]])
        assert recorded[i]["labels"] == rows[i]["labels"]
        assert recorded[i]["reference"] == tokenizer.decode(ids[0], skip_special_tokens=True)
        with torch.no_grad():
            logits = model(input_ids=ids, labels=ids).logits
            ids_written = model.generate(input_ids=ids) if generate else logits.argmax(-1)
        assert recorded[i][written] == tokenizer.decode(ids_written[0], skip_special_tokens=True)
        probability = logits.double().softmax(-1).gather(-1, ids[..., None])[0, :, 0]
        margins = torch.tensor(recorded[i]["margins"]).double()
        torch.testing.assert_close(margins[:, 0], probability.logit(), rtol=1e-4, atol=1e-4)
        later = logits.double().softmax(-1)[0, 1:].gather(-1, ids[0, :-1, None])[:, 0]  # of each label, a place later
        torch.testing.assert_close(margins[:-1, 1], later.logit(), rtol=1e-4, atol=1e-4)
        assert margins[-1, 1] == -100  # there is none


def test_groups_of_texts_are_scored_by_what_was_recorded(translator, tmp_path, monkeypatch):
    model, tokenizer, rows, collator = translator
    options = {"data_collator": collator, "processing_class": tokenizer}
    parts = [record_predictions(model, rows, metric="rouge1", stage=stage, **options) for stage in (0.5, 1.0)]
    datasets.concatenate_datasets(parts).to_parquet(tmp_path / "recorded.parquet")
    recorded = datasets.Dataset.from_parquet(str(tmp_path / "recorded.parquet"))
    metric = load_metric("rouge1")
    monkeypatch.setattr(type(metric), "_statistics", None)  # nothing is counted again
    groups = draw_groups(recorded, metric, num_groups=50, group_size=16)
    monkeypatch.undo()
    batch = groups.__getitems__([3, 7])
    assert batch["margins"].shape == (2, 16, 6, 9)
    assert batch["labels"].shape == (2, 16, 6)
    for chosen, score in zip(groups.index[[3, 7]].tolist(), batch["score"].tolist(), strict=True):
        texts = recorded.select(chosen)
        assert metric.compute(texts["teacher_forced"][:], texts["reference"][:]) == pytest.approx(score, rel=1e-6)
    counted_again = metric.score_groups(recorded["teacher_forced"][:], recorded["reference"][:], groups.index)
    torch.testing.assert_close(groups.scores, counted_again, rtol=0, atol=1e-12)
    other = load_metric("cer")  # of which nothing was recorded but the texts
    groups = draw_groups(recorded, other, num_groups=5, group_size=4)
    texts = recorded.select(groups.index[0].tolist())
    assert other.compute(texts["teacher_forced"][:], texts["reference"][:]) == pytest.approx(-groups.scores[0].item())


def test_groups_of_texts_are_scored_by_any_function_of_texts(translator):
    model, tokenizer, rows, collator = translator
    recorded = record_predictions(model, rows, data_collator=collator, processing_class=tokenizer)
    words = load_metric(lambda predictions, references: len(set(" ".join(references).split())), name="words")
    groups = draw_groups(recorded, words, num_groups=20, group_size=3)
    expected = [len(set(" ".join(recorded.select(chosen)["reference"]).split())) for chosen in groups.index.tolist()]
    assert groups.scores.tolist() == expected


def test_tags_are_recorded_with_their_statistics():
    from transformers import BertConfig, BertForTokenClassification, DataCollatorForTokenClassification

    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    model = BertForTokenClassification(config)
    rows = [{"input_ids": list(range(1, n)), "labels": [-100, *(i % 3 for i in range(n - 2))]} for n in range(4, 12)]

    class Tokenizer:
        padding_side, model_input_names = "right", ["input_ids"]

        def pad(self, features, padding=True, **options):
            longest = max(len(row["input_ids"]) for row in features)
            return {
                "input_ids": torch.tensor(
                    [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in features]
                )
            }

    metric = load_metric("seqeval", label_names=["O", "B-X", "I-X"])
    collator = DataCollatorForTokenClassification(Tokenizer())
    recorded = record_predictions(model, rows, metric=metric, data_collator=collator, batch_size=3)
    assert [len(labels) for labels in recorded["labels"]] == [len(row["labels"]) - 1 for row in rows]
    counted = f"statistics of {metric.signature}"
    statistics = torch.tensor(recorded[counted][:], dtype=torch.float64)
    tags = [[[metric.label_names[i] for i in row] for row in recorded[name]] for name in ("decided", "labels")]
    assert torch.equal(statistics, metric.statistics(*tags))
    again = draw_groups(recorded.remove_columns(counted), metric, num_groups=9, group_size=4)
    assert torch.equal(draw_groups(recorded, metric, num_groups=9, group_size=4).scores, again.scores)


def test_what_cannot_be_recorded_says_so(translator):
    from transformers import GPT2Config, GPT2LMHeadModel

    model, tokenizer, rows, collator = translator
    with pytest.raises(ValueError, match="its tokenizer"):
        record_predictions(model, rows, data_collator=lambda features: collator(features))
    decoder = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="but this is GPT2LMHeadModel"):
        record_predictions(decoder, rows, generate=True, processing_class=tokenizer)
    with pytest.raises(ValueError, match="Unknown metric 'acuracy'"):
        record_predictions(TinyClassifier(), tiny_rows(4), metric="acuracy")
    with pytest.raises(ValueError, match="but this is TinyClassifier"):
        record_predictions(TinyClassifier(), tiny_rows(4), generate=True)
    recorded = record_predictions(model, rows, data_collator=collator, processing_class=tokenizer)
    with pytest.raises(ValueError, match="columns logits, labels, stage, but these have margins"):
        SurrogateTrainer(SurrogateForClassification(SurrogateConfig()), train_dataset=recorded, metric="bleu")


def test_a_resumed_run_has_recorded_what_an_unbroken_one_has(tmp_path):
    def run(recorder, checkpoint=None):
        args = TrainingArguments(
            str(tmp_path), max_steps=30, save_steps=10, per_device_train_batch_size=16, disable_tqdm=True, use_cpu=True
        )
        trainer = Trainer(TinyClassifier(), args, train_dataset=tiny_rows(100), callbacks=[recorder])
        trainer.train(resume_from_checkpoint=checkpoint)
        return recorder.rows()

    unbroken = run(PredictionRecorder(max_predictions=200))
    resumed = run(PredictionRecorder(max_predictions=200), str(tmp_path / "checkpoint-10"))
    assert unbroken.keys() == resumed.keys()
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
    assert unbroken["stage"].min() == 0
