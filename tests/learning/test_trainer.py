import json

import pytest
import scipy.stats
import torch
from huggingface_hub import ModelCard
from sklearn.metrics import cohen_kappa_score

from hf_reloss import (
    AutoSurrogate,
    MisalignedSurrogateError,
    SurrogateConfig,
    SurrogateForClassification,
    SurrogateTrainer,
    SurrogateTrainingArguments,
    load_metric,
)
from hf_reloss.predictions.groups import draw_groups

from ..conftest import synthetic_predictions


def make_trainer(tmp_path, predictions, architecture="margin", **settings) -> SurrogateTrainer:
    torch.manual_seed(0)
    metric = settings.pop("metric", "accuracy")
    defaults = {
        "num_groups": 128, "num_eval_groups": 64, "group_size": 32, "per_device_train_batch_size": 32,
        "num_train_epochs": 3, "logging_steps": 1, "disable_tqdm": True, "seed": 1,
    }  # fmt: skip
    return SurrogateTrainer(
        SurrogateForClassification(SurrogateConfig(architecture=architecture, hidden_size=8)),
        SurrogateTrainingArguments(str(tmp_path), **(defaults | settings)),
        train_dataset=predictions,
        metric=metric,
    )


def test_it_learns_and_keeps_the_best(tmp_path, predictions):
    trainer = make_trainer(tmp_path, predictions)
    start = trainer.evaluate()["eval_alignment"]
    trainer.train()
    seen = [entry["eval_alignment"] for entry in trainer.state.log_history if "eval_alignment" in entry]
    record = trainer.model.config.record
    assert record["alignment"] == pytest.approx(max(seen))
    assert record["alignment"] > start + 0.005
    assert trainer.model.config.metric == "accuracy"
    logged = [entry for entry in trainer.state.log_history if "rho" in entry]
    assert len(logged) == 12
    assert logged[0]["loss"] == pytest.approx(0.03 * logged[0]["penalty"] - logged[0]["rho"], abs=1e-4)


def test_alignment_is_spearmans_over_all_held_out_groups(tmp_path, predictions):
    held_out = synthetic_predictions(400, seed=5)
    trainer = make_trainer(tmp_path, predictions, per_device_eval_batch_size=7)
    settings = {"num_groups": 64, "group_size": 32, "seed": 2}
    trainer.eval_dataset = groups = draw_groups(held_out, load_metric("accuracy"), **settings)
    measured = trainer.evaluate()
    losses, usual, scores = [], [], []
    for i in range(64):
        group = groups[i]
        losses.append(trainer.model(group["logits"], group["labels"]).item())
        usual.append(torch.nn.functional.cross_entropy(group["logits"], group["labels"]).item())
        scores.append(group["score"].item())
    assert measured["eval_alignment"] == pytest.approx(-scipy.stats.spearmanr(losses, scores).statistic, abs=2e-3)
    assert measured["eval_alignment_cross_entropy"] == pytest.approx(
        -scipy.stats.spearmanr(usual, scores).statistic, abs=2e-3
    )


def test_a_resumed_run_equals_an_unbroken_one(tmp_path, predictions):
    unbroken = make_trainer(tmp_path / "a", predictions, save_total_limit=None)
    unbroken.train()
    checkpoint = tmp_path / "a" / "checkpoint-4"
    assert (checkpoint / "model.safetensors").exists()
    resumed = make_trainer(tmp_path / "b", predictions)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_what_it_saves_is_loaded_with_its_record(tmp_path, predictions):
    trainer = make_trainer(tmp_path / "run", predictions)
    trainer.train()
    trainer.save_model(tmp_path / "surrogate")
    loaded = AutoSurrogate.from_pretrained(tmp_path / "surrogate")
    assert loaded.config.record == trainer.model.config.record
    assert json.loads((tmp_path / "surrogate" / "config.json").read_text())["metric"] == "accuracy"


def test_a_misaligned_surrogate_is_refused_with_what_to_do(tmp_path, predictions):
    # a metric of its own sign: the better the predictions, the lower it is, though it says that higher is better
    upside_down = load_metric(
        lambda decisions, references: -(decisions == references).mean(), name="upside_down", class_indices=True,
        higher_is_better=True,
    )  # fmt: skip
    trainer = make_trainer(tmp_path, predictions, metric=upside_down)
    with pytest.raises(MisalignedSurrogateError, match=r"upside_down.*is -0\.\d+.*Record predictions from early"):
        trainer.train()
    assert trainer.model.config.record["alignment"] < 0


def test_metrics_that_are_functions_are_learned_too(tmp_path, predictions):
    def accuracy(decisions, references):
        return (decisions == references).mean()

    learned = make_trainer(tmp_path / "c", predictions, metric=accuracy, num_train_epochs=1)
    learned.train()
    assert learned.model.config.metric == "accuracy"
    assert learned.model.config.record["alignment"] > 0.5

    def kappa(decisions, references):
        return cohen_kappa_score(references, decisions)

    named = make_trainer(tmp_path / "a", predictions, metric="cohen_kappa", num_train_epochs=1)
    called = make_trainer(
        tmp_path / "b", predictions, metric=load_metric(kappa, class_indices=True), num_train_epochs=1
    )
    torch.testing.assert_close(named.train_dataset.scores, called.train_dataset.scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": None}, "wants the metric"),
        ({"group_size": 1}, "group_size is 1"),
        ({"metric": "bleurgh"}, "bleurgh"),
    ],
)
def test_bad_arguments_say_what_is_wanted(tmp_path, predictions, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, predictions, **options)


def test_only_surrogates_are_trained(tmp_path, predictions):
    with pytest.raises(ValueError, match="got Linear"):
        SurrogateTrainer(torch.nn.Linear(2, 2), train_dataset=predictions, metric="accuracy")


def test_its_page_is_the_surrogates(tmp_path, predictions):
    trainer = make_trainer(tmp_path, predictions, learning_rate=0.02, hub_model_id="me/it")
    trainer.train()
    trainer.create_model_card(None, "mit", ["mine"], dataset="imdb", model_name="it")  # in the order that Trainer has
    page = ModelCard.load(tmp_path / "README.md")
    assert (page.data.library_name, page.data.license, page.data.datasets) == ("hf-reloss", "mit", "imdb")
    assert "mine" in page.data.tags
    assert 'from_pretrained("me/it")' in page.text
    assert "| learning rate | 0.02 |" in page.text
    assert "| num train epochs | 3 |" in page.text
    assert "weight decay" not in page.text  # which is as usual
    assert trainer.model.config.record["settings"].keys() == {
        "learning_rate", "num_train_epochs", "per_device_train_batch_size",
    }  # fmt: skip
