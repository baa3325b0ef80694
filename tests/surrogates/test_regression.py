"""Surrogates for one number per example."""

import pytest
import scipy.stats
import torch
import transformers
from packaging import version
from transformers import BertConfig, BertForSequenceClassification, EvalPrediction

from hf_reloss import (
    AutoSurrogate,
    DecisionRule,
    ReLossTrainer,
    ReLossTrainingArguments,
    SurrogateConfig,
    SurrogateForClassification,
    SurrogateForRegression,
    hand_made_loss,
    load_metric,
    record_predictions,
)
from hf_reloss.decisions.cut_points import CutPoints
from hf_reloss.predictions.groups import draw_groups

METRICS = ("mse", "mae", "r_squared", "pearsonr", "spearmanr")


def drawn(number: int, seed: int = 0):
    labels, noise = torch.randn(2, number, generator=torch.Generator().manual_seed(seed))
    return (labels + noise)[:, None], labels


def test_at_its_start_it_is_the_metric_made_soft():
    values, labels = drawn(100)
    squared = load_metric("mse").compute(values, labels)
    assert float(SurrogateForRegression.for_metric("mse")(values, labels).detach()) == pytest.approx(squared, rel=1e-5)
    error = load_metric("mae").compute(values, labels)
    assert abs(float(SurrogateForRegression.for_metric("mae")(values, labels).detach()) - error) < 0.1
    for name in ("pearsonr", "spearmanr"):
        options = {"ranks": name == "spearmanr", "share": 1e-6, "steepness": 200.0}
        loss = SurrogateForRegression.for_metric(name, loss_options=options)(values, labels).detach()
        assert float(loss) == pytest.approx(1 - load_metric(name).compute(values, labels), abs=2e-3)


@pytest.mark.parametrize("name", METRICS)
def test_gradients_lead_to_better_predictions_whatever_the_scale(name):
    for factor, offset in ((1.0, 0.0), (1e-3, 0.0), (1.0, 100.0)):
        values, labels = drawn(40)
        values, labels = factor * values + offset, factor * labels + offset
        loss = SurrogateForRegression.for_metric(name)
        loss.network.scale.fill_(factor)
        values.requires_grad_()
        before = loss(values, labels)
        (slope,) = torch.autograd.grad(before, values)
        assert slope.isfinite().all()
        with torch.no_grad():
            assert loss(values - 1e-2 * factor * slope / slope.norm(), labels) < before


@pytest.mark.parametrize("name", METRICS)
def test_groups_in_which_nothing_is_to_be_compared(name):
    loss = SurrogateForRegression.for_metric(name)
    values, labels = drawn(6)
    values.requires_grad_()
    for rows, given in ((6, torch.ones(6)), (1, labels), (0, labels), (6, torch.full((6,), -100.0))):
        found = loss(values[:rows], given[:rows])
        (slope,) = torch.autograd.grad(found, values)
        assert found.isfinite()
        assert slope.isfinite().all()
    hidden = torch.cat([labels, torch.tensor([-100.0, -100.0])])
    wider = torch.cat([values, torch.full((2, 1), 7.0)])
    assert float(loss(wider, hidden).detach()) == pytest.approx(float(loss(values, labels).detach()), abs=1e-5)
    with pytest.raises(ValueError, match="1 of 6 labels are not finite: leave such examples out"):
        loss(values, labels.index_fill(0, torch.tensor([2]), torch.nan))
    with pytest.raises(ValueError, match="the model has diverged"):
        loss(values * torch.nan, labels)


def test_soft_quadratic_kappa_of_grades_is_kappa():
    labels = torch.randint(1, 6, (80,), generator=torch.Generator().manual_seed(0)).float()
    values = (labels + drawn(80)[1]).round().clamp(1, 5)
    metric = load_metric("cohen_kappa", weights="quadratic").informed(SurrogateForRegression.metric_options)
    loss = SurrogateForRegression.for_metric(metric, loss_options={"concordance": True, "share": 1e-6})
    assert float(loss(values, labels).detach()) == pytest.approx(1 - metric.compute(values, labels), abs=1e-4)


def test_huber_and_cosent_are_what_others_compute():
    values, labels = drawn(30)
    values = values[:, 0]
    huber = torch.nn.functional.smooth_l1_loss(values, labels, beta=0.5)
    assert float(hand_made_loss("huber", delta=0.5)(values, labels)) == pytest.approx(float(huber))
    pairs = [values[i] - values[j] for i in range(30) for j in range(30) if labels[i] < labels[j]]
    wanted = torch.stack([torch.zeros(()), *(3 * pair for pair in pairs)]).logsumexp(0)
    assert float(hand_made_loss("cosent", scale=3.0)(values, labels)) == pytest.approx(float(wanted))


def test_one_logit_is_a_number_and_more_are_classes():
    values, labels = drawn(5)
    for given in (values, values[:, 0]):
        assert AutoSurrogate.reading({"logits": given}, labels) is SurrogateForRegression
    assert AutoSurrogate.reading({"logits": torch.randn(5, 3)}, labels) is SurrogateForClassification
    with pytest.raises(ValueError, match="its labels are to be floats"):
        SurrogateForClassification(SurrogateConfig())(values, torch.zeros(5).long())


class Sums(torch.utils.data.Dataset):
    """Sentences of 6 tokens; the label is how many of them are above the middle, as a number or a grade."""

    def __init__(self, number: int, seed: int, kind=float):
        self.ids = torch.randint(1, 40, (number, 6), generator=torch.Generator().manual_seed(seed))
        self.kind = kind

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int):
        return {"input_ids": self.ids[row], "labels": self.kind((self.ids[row] > 20).sum())}


def tiny_model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1
    )
    return BertForSequenceClassification(config)


def compute_metrics(evaluation: EvalPrediction):
    assert evaluation.predictions.shape == (len(evaluation.label_ids), 1)  # as Trainer gives them
    return {"pearson": scipy.stats.pearsonr(evaluation.predictions[:, 0], evaluation.label_ids)[0]}


def made_trainer(folder, metric, own=None, kind=float, **options):
    args = ReLossTrainingArguments(
        str(folder), num_train_epochs=3, per_device_train_batch_size=16, learning_rate=1e-2, save_strategy="no",
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    return ReLossTrainer(
        tiny_model(), args, train_dataset=Sums(320, 0, kind), eval_dataset=Sums(160, 1, kind), metric=metric,
        compute_metrics=own, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "own"),
    [("spearmanr", None), ("pearson", compute_metrics)],
    ids=["spearmanr", "key"],
)
def test_one_changed_line_trains_on_it(tmp_path, metric, own):
    trainer = made_trainer(tmp_path, metric, own)
    trainer.train()
    report = trainer.loss_report
    assert report.verdict.startswith("VERDICT: ")
    assert report.gain is not None  # judged by the metric
    assert not report.kept or type(trainer.surrogate) is SurrogateForRegression
    assert "eval_alignment" in trainer.evaluate()


def test_predictions_are_recorded_and_groups_spread():
    predictions = record_predictions(tiny_model(), Sums(120, 0), metric="pearsonr", batch_size=60)
    assert {"values", "labels", "stage"} == set(predictions.column_names)
    groups = draw_groups(predictions, load_metric("mae"), num_groups=20, group_size=30)
    wanted = (groups.columns["values"][groups.index[0]] - groups.labels[0]).abs().mean()
    assert -float(groups.scores[0]) == pytest.approx(float(wanted))  # higher is better


def test_it_is_saved_and_loaded(tmp_path):
    values, labels = drawn(20)
    for name in METRICS:
        loss = SurrogateForRegression.for_metric(name)
        loss.network.scale.fill_(3.0)
        loss.save_pretrained(tmp_path)
        assert torch.equal(AutoSurrogate.from_pretrained(tmp_path)(values, labels), loss(values, labels))


@pytest.mark.skipif(version.parse(transformers.__version__) < version.parse("5.20"), reason="models refuse integers")
def test_grades_are_decided_by_cut_points(tmp_path):
    trainer = made_trainer(tmp_path, load_metric("cohen_kappa", weights="quadratic"), kind=int)  # grades as integers
    trainer.train()
    report = trainer.loss_report
    assert report.verdict.startswith("VERDICT: ")
    assert report.decision is not None
    rule = trainer.decision or CutPoints([0.5, 1.5, 2.5])
    trainer.decision = rule
    values = torch.as_tensor(trainer.predict(Sums(160, 1, int)).predictions)
    trainer.decision = None
    plain = torch.as_tensor(trainer.predict(Sums(160, 1, int)).predictions)
    assert torch.equal(values.round().flatten().long(), rule.decide(plain))
    trainer.decision = rule
    trainer.save_model()
    assert torch.equal(DecisionRule.load(tmp_path).decide(plain), rule.decide(plain))
