import datasets
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_reloss import PredictionRecorder, record_predictions

from .conftest import TinyClassifier, tiny_rows


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
