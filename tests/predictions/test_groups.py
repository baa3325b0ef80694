import datasets
import pytest
import torch

from hf_reloss import load_metric
from hf_reloss.predictions.dataset import recorded_models
from hf_reloss.predictions.groups import draw_groups, sampled

from ..conftest import synthetic_predictions

ACCURACY = load_metric("accuracy")


def draw(predictions, **options):
    return draw_groups(predictions, ACCURACY, **{"num_groups": 200, "group_size": 32, "seed": 3} | options)


def test_scores_are_spread_from_bad_to_good(predictions):
    scores = draw(predictions).scores
    assert scores.min() < 0.2
    assert scores.max() > 0.7
    assert scores.std() > 0.1


def test_scores_are_the_metric_of_what_a_batch_holds(predictions):
    groups = draw(predictions)
    batch = groups.__getitems__([5, 0, 17])
    assert batch["logits"].shape == (3, 32, 5)
    for logits, labels, score in zip(batch["logits"], batch["labels"], batch["score"], strict=True):
        assert ACCURACY.compute(logits, labels) == pytest.approx(score.item())
    assert torch.equal(groups[17]["logits"], batch["logits"][2])


def test_a_seed_draws_the_same_groups(predictions):
    one, same, other = draw(predictions), draw(predictions), draw(predictions, seed=4)
    assert torch.equal(one.index, same.index)
    assert torch.equal(one.labels, same.labels)
    assert torch.equal(one.scores, same.scores)
    assert not torch.equal(one.index, other.index)


def test_groups_come_from_stretches_of_training(predictions):
    # rows are in the order of their stages, so a narrow stretch has a narrow range of rows
    span = draw(predictions).index.double().std(-1)
    assert span.min() < 0.05 * len(predictions)
    assert span.max() > 0.2 * len(predictions)


def test_without_corruption_labels_are_the_predictions_own(predictions):
    groups = draw(predictions, corruption=0.0)
    labels = torch.as_tensor(predictions.with_format("torch")[:]["labels"])
    assert torch.equal(groups.labels, labels[groups.index])


def test_an_error_rate_is_turned_round(predictions):
    def share(decisions, references):
        return (decisions == references).mean()

    def error(decisions, references):
        return (decisions != references).mean()

    right, wrong = (
        draw_groups(predictions, load_metric(function, higher_is_better=function is share, class_indices=True),
                    num_groups=20, group_size=32, seed=3)
        for function in (share, error)
    )  # fmt: skip
    torch.testing.assert_close(wrong.scores + 1, right.scores)


@pytest.mark.parametrize(("metric", "mapped"), [("accuracy", 0.0), ("cohen_kappa", 0.5)])
def test_of_metrics_that_mind_which_confusion_it_is_half_of_the_groups_confuse_each_label_with_one(
    predictions, metric, mapped
):
    groups = draw_groups(predictions, load_metric(metric), num_groups=200, group_size=128, seed=0)
    own = torch.as_tensor(predictions.with_format("torch")[:]["labels"])[groups.index]
    alone = [
        all(len(given[(before == label) & (given != before)].unique()) <= 1 for label in before.unique())
        for given, before in zip(groups.labels, own, strict=True)
        if (given != before).sum() > 40
    ]
    assert len(alone) > 50
    assert sum(alone) / len(alone) == pytest.approx(mapped, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "group_size is 1"),
        ({"group_size": 5000}, "too few for groups of 5000"),
        ({"corruption": 2.0}, "share between 0 and 1"),
    ],
)
def test_bad_settings_say_what_is_wanted(predictions, options, message):
    with pytest.raises(ValueError, match=message):
        draw(predictions, **options)


def test_a_metric_that_is_constant_is_refused(predictions):
    constant = load_metric(lambda decisions, references: 0.25, name="constant")
    with pytest.raises(ValueError, match=r"'constant' is 0\.25 for all 10 groups"):
        draw_groups(predictions, constant, num_groups=10, group_size=8)


def test_a_metric_that_is_not_finite_is_refused(predictions):
    broken = load_metric(lambda decisions, references: float("nan"), name="broken")
    with pytest.raises(ValueError, match="defined for 0 of 10 groups"):
        draw_groups(predictions, broken, num_groups=10, group_size=8)


def test_labels_out_of_range_are_refused():
    predictions = synthetic_predictions(100).map(lambda row: {"labels": row["labels"] + 1})
    with pytest.raises(ValueError, match="0 to 4"):
        draw(predictions)


def test_of_a_large_recording_on_disk_a_sample_is_all_that_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_reloss.predictions.groups.MOST_SAMPLED", 300)
    synthetic_predictions(5_000).save_to_disk(tmp_path / "recording")
    on_disk = datasets.load_from_disk(tmp_path / "recording")
    sample = sampled(on_disk, seed=3)
    assert len(sample) == 300
    assert sample.features == on_disk.features
    assert recorded_models(sample) == recorded_models(on_disk)
    stages = torch.tensor(sample["stage"][:])
    assert 0.35 < (stages > 0.5).float().mean() < 0.65  # of early and late training alike
    assert (stages.diff() > 0).all()  # each once
    assert torch.isin(stages, torch.tensor(on_disk["stage"][:])).all()
    assert sampled(on_disk, seed=3)["stage"][:] == sample["stage"][:]
    assert sampled(on_disk, seed=4)["stage"][:] != sample["stage"][:]


def test_a_small_recording_is_read_as_it_is(predictions):
    assert sampled(predictions) is predictions
