"""Surrogates for several labels per example."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, EvalPrediction

from hf_reloss import (
    AutoSurrogate,
    ReLossTrainer,
    ReLossTrainingArguments,
    SurrogateConfig,
    load_metric,
    record_predictions,
)
from hf_reloss.predictions.groups import draw_groups
from hf_reloss.surrogates.multilabel import SurrogateForMultilabel

from ..training.test_trainer import assert_same, weights

METRICS = [
    *(load_metric("f1", average=average, threshold=0.5) for average in ("micro", "macro", "weighted", "samples")),
    load_metric("recall", average="macro", threshold=0.5),
    load_metric("subset_accuracy"),
]


def drawn(number: int, labels: int = 6, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    true = (torch.rand(number, labels, generator=generator) < torch.linspace(0.1, 0.6, labels)).float()
    return 2 * torch.randn(number, labels, generator=generator) + 2 * true - 1, true


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: f"{metric.name} {getattr(metric, 'average', '')}")
def test_of_sure_predictions_the_soft_metric_is_the_metric(metric):
    logits, labels = drawn(200)
    # Sure, but not of what is wrong: of that the logarithm is taken in each part.
    loss = SurrogateForMultilabel.for_metric(metric, scale_weight=1e-6)
    value = float(loss(60 * logits.sign(), labels).detach())
    if metric.name == "subset_accuracy":  # a loss of single examples: bounded by nothing where they are wrong
        right = (logits > 0).eq(labels > 0).all(-1)
        assert float(loss(60 * logits.sign()[right], labels[right]).detach()) < 1e-3
        return
    parts, shares = metric, []
    if getattr(metric, "average", "") in ("macro", "weighted", "samples"):
        decided, true = (logits > 0).numpy(), labels.numpy()
        if metric.average == "samples":
            shares = [f1_score(t, d, zero_division=0) for t, d in zip(true, decided, strict=True)]
        elif metric.name == "f1":
            shares = f1_score(true, decided, average=None)
        else:
            shares = [(d * t).sum() / t.sum() for d, t in zip(decided.T, true.T, strict=True)]
        counts = labels.sum(0) if metric.average == "weighted" else torch.ones(len(shares))
        logs = torch.tensor([math.log((share + 1e-4) / (1 + 1e-4)) for share in shares])
        expected = -float((logs * counts).sum() / counts.sum())
    else:
        expected = -math.log(parts.compute(logits, labels))
    assert value == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: f"{metric.name} {getattr(metric, 'average', '')}")
def test_a_logit_further_on_the_right_side_never_costs_more(metric):
    loss = SurrogateForMultilabel.for_metric(metric, scale_weight=1e-9)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    logits, labels = drawn(30)
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert (logits.grad * (2 * labels - 1) <= 1e-7).all()


def test_at_its_start_the_margin_loss_is_binary_cross_entropy():
    logits, labels = drawn(50)
    for architecture in ("margin", "subset"):
        config = SurrogateConfig(task="multilabel", architecture=architecture, scale_weight=1e-9)
        found = SurrogateForMultilabel(config)(logits, labels)
        assert float(found) == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, labels)), abs=1e-5)


def test_labels_that_are_ignored_do_not_count():
    logits, labels = drawn(40)
    hidden = torch.cat([labels, torch.full((40, 2), -100.0)], dim=1)
    wider = torch.cat([logits, torch.randn(40, 2)], dim=1)
    for metric in (METRICS[0], METRICS[3], METRICS[5]):
        loss = SurrogateForMultilabel.for_metric(metric)
        assert float(loss(wider, hidden)) == pytest.approx(float(loss(logits, labels)), abs=1e-6)


def test_bad_input_is_said_what_it_is():
    loss = SurrogateForMultilabel.for_metric("subset_accuracy")
    logits, labels = drawn(4)
    with pytest.raises(ValueError, match="0 or 1 each, or -100 to be ignored, but there is 2"):
        loss(logits, labels * 2)
    with pytest.raises(ValueError, match=r"of one shape, \[..., N, L\], but got \[4, 6\] and \[4\]"):
        loss(logits, labels[:, 0])
    with pytest.raises(ValueError, match="the model has diverged"):
        loss(logits * torch.nan, labels)
    scores = {"f1": {"average": "samples", "threshold": 0.5}, "recall": {"average": "macro", "threshold": 0.5}}
    of_both = SurrogateConfig(task="multilabel", architecture="counts", scores=scores)
    with pytest.raises(ValueError, match="but these are of both"):
        SurrogateForMultilabel(of_both)
    assert torch.isfinite(loss(logits, torch.full_like(labels, -100.0)))


def test_it_is_saved_and_loaded(tmp_path):
    logits, labels = drawn(20)
    for metric in (METRICS[1], METRICS[5]):
        loss = SurrogateForMultilabel.for_metric(metric)
        loss.save_pretrained(tmp_path)
        loaded = AutoSurrogate.from_pretrained(tmp_path)
        assert type(loaded) is SurrogateForMultilabel
        assert torch.equal(loaded(logits, labels), loss(logits, labels))


class Topics(torch.utils.data.Dataset):
    """Sentences of 8 tokens, each token of which belongs to one of three topics; all that occur are labels."""

    def __init__(self, number: int, seed: int):
        self.ids = torch.randint(1, 40, (number, 8), generator=torch.Generator().manual_seed(seed))
        self.labels = torch.stack([(self.ids < 3).any(-1), (self.ids % 5 == 0).any(-1), (self.ids > 37).any(-1)], -1)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int):
        return {"input_ids": self.ids[row], "labels": self.labels[row].float()}


def topics_model() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    config.problem_type = "multi_label_classification"
    return BertForSequenceClassification(config)


def compute_metrics(prediction: EvalPrediction):
    decided = (torch.from_numpy(prediction.predictions).sigmoid() > 0.5).numpy()
    return {"f1": f1_score(prediction.label_ids, decided, average="micro", zero_division=0)}


@pytest.mark.parametrize(
    ("metric", "own"),
    [(load_metric("f1", average="macro"), None), ("f1", compute_metrics)],
    ids=["macro", "key"],
)
def test_one_changed_line_trains_on_it_and_resumes(tmp_path, metric, own):
    def trainer(folder):
        args = ReLossTrainingArguments(
            str(folder), num_train_epochs=4, per_device_train_batch_size=16, learning_rate=2e-2, save_strategy="steps",
            save_steps=50, report_to="none", disable_tqdm=True, eval_strategy="epoch", seed=1,
        )  # fmt: skip
        return ReLossTrainer(
            topics_model(), args, train_dataset=Topics(480, 0), eval_dataset=Topics(200, 1), metric=metric,
            compute_metrics=own,
        )  # fmt: skip

    run = trainer(tmp_path / "whole")
    run.train()
    report = run.loss_report
    assert report.gain is not None  # judged by the metric
    assert report.decision is not None
    assert not report.kept or type(run.surrogate) is SurrogateForMultilabel
    resumed = trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-50"))
    assert_same(weights(resumed), weights(run))


def test_accuracy_of_several_labels_is_that_of_all_together(tmp_path):
    args = ReLossTrainingArguments(str(tmp_path), max_steps=40, save_strategy="no", report_to="none", disable_tqdm=True)
    trainer = ReLossTrainer(
        topics_model(), args, train_dataset=Topics(400, 0), eval_dataset=Topics(100, 1), metric="accuracy"
    )
    trainer.train()
    assert trainer.metric == load_metric("subset_accuracy")
    assert trainer.loss_report.metric == "subset_accuracy"
    assert load_metric("top_k_accuracy", k=2).informed({"threshold": 0.5}) == load_metric("top_k_accuracy", k=2)


def test_predictions_are_recorded():
    predictions = record_predictions(topics_model(), Topics(100, 0), metric="f1", batch_size=50)
    assert {"label_logits", "labels", "stage"} == set(predictions.column_names)
    metric = load_metric("f1", average="micro")  # which is given the threshold of several labels
    groups = draw_groups(predictions, metric, num_groups=20, group_size=30)
    expected = f1_score(groups.labels[0], groups.columns["label_logits"][groups.index[0]] > 0, average="micro")
    assert float(groups.scores[0]) == pytest.approx(expected)


def test_a_function_of_several_labels_scores_groups_as_it_scores_them_alone(tmp_path):
    def micro_f1(predictions, references):
        assert predictions.shape == references.shape  # logits, and no class indices
        return f1_score(references, predictions > 0, average="micro")

    predictions = record_predictions(topics_model(), Topics(100, 0), batch_size=50)
    by_function, by_name = (
        draw_groups(predictions, load_metric(metric, **options), num_groups=20, group_size=30).scores
        for metric, options in ((micro_f1, {}), ("f1", {"average": "micro"}))
    )
    torch.testing.assert_close(by_function, by_name)
    args = ReLossTrainingArguments(str(tmp_path), num_train_epochs=3, learning_rate=2e-2, save_strategy="no")
    args.disable_tqdm, args.report_to = True, []
    trainer = ReLossTrainer(
        topics_model(), args, train_dataset=Topics(400, 0), eval_dataset=Topics(100, 1), metric=micro_f1
    )
    trainer.train()
    assert trainer.loss_report.verdict.startswith("VERDICT: ")
    assert trainer.loss_report.decision is not None


def test_hand_made_losses_read_several_labels(tmp_path):
    args = ReLossTrainingArguments(str(tmp_path), max_steps=3, save_strategy="no", report_to="none", disable_tqdm=True)
    for name in ("focal", "asymmetric", "class_weights"):
        trainer = ReLossTrainer(topics_model(), args, train_dataset=Topics(40, 0), surrogate=name)
        trainer.train()
        assert type(trainer.surrogate) is SurrogateForMultilabel
