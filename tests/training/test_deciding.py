"""tune_decision: a trainer's model decides by what a metric has learned on held-out examples."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, load_metric
from hf_reloss.decisions.base import DecisionRule
from hf_reloss.decisions.cut_points import CutPoints
from hf_reloss.metrics.adapters import EvaluationMetrics

from ..conftest import TinyClassifier, tiny_rows
from ..decisions.test_cut_points import of_grades, world


class WithoutBias(nn.Module):
    """Its logits come from a layer that no number can be added to."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 4), nn.Linear(6, 4, bias=False)

    def forward(self, features, labels=None):
        return SequenceClassifierOutput(logits=self.head(features))


class Elsewhere(WithoutBias):
    """The last layer of as many classes does not make the logits."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(6, 4)


def made(folder, model, **options):
    with torch.no_grad():
        centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(7))
        model.head.weight.copy_(2 * centres)
        model.head.weight[0] *= 3.0  # so the first class is decided too often
    args = ReLossTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=100)
    return ReLossTrainer(
        model, args, train_dataset=tiny_rows(16), eval_dataset=tiny_rows(600, seed=1), surrogate="focal",
        metric="accuracy", preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1), **options,
    )  # fmt: skip


def accuracy(model, decide) -> float:
    rows = tiny_rows(2_000, seed=2)
    logits = model(torch.stack([row["features"] for row in rows])).logits
    return load_metric("accuracy").compute(decide(logits), torch.stack([row["labels"] for row in rows]))


def test_the_rule_is_in_the_model(tmp_path):
    trainer = made(tmp_path, TinyClassifier())
    before = accuracy(trainer.model, lambda logits: logits.argmax(-1))
    found = trainer.tune_decision()
    assert found.rule is not None
    assert found.metric == "accuracy"
    assert trainer.decision is None
    assert accuracy(trainer.model, lambda logits: logits.argmax(-1)) > before + 0.02
    trainer.save_model()
    assert not (tmp_path / "decision.json").exists()
    assert trainer.preprocess_logits_for_metrics is not None


@pytest.mark.parametrize("kind", [WithoutBias, Elsewhere])
def test_where_it_cannot_be_it_is_beside_the_model(tmp_path, kind):
    trainer = made(tmp_path, kind())
    weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    before = accuracy(trainer.model, lambda logits: logits.argmax(-1))
    trainer.tune_decision(tiny_rows(600, seed=3), "f1" if kind is None else "accuracy")
    for name, weight in trainer.model.state_dict().items():
        assert torch.allclose(weight, weights[name], atol=1e-6), name
    trainer.save_model()
    assert accuracy(trainer.model, DecisionRule.load(tmp_path).decide) > before + 0.02
    trainer.preprocess_logits_for_metrics = None
    predicted = trainer.predict(tiny_rows(300, seed=4))  # the trainer decides by it, too
    logits = trainer.model(torch.stack([row["features"] for row in tiny_rows(300, seed=4)])).logits
    assert (predicted.predictions.argmax(-1) == trainer.decision.decide(logits).numpy()).all()
    assert (predicted.predictions.argmax(-1) != logits.argmax(-1).numpy()).any()

    forward = trainer.model.forward
    trainer.model.forward = lambda **inputs: {"logits": forward(**inputs).logits, "more": inputs["features"]}
    with_more = trainer.predict(tiny_rows(300, seed=4)).predictions
    assert (with_more[0] == predicted.predictions).all()
    assert with_more[1].shape == (300, 6)


class Squeezed(nn.Module):
    """Puts out a number for each example, which squared errors have drawn to the middle, and more beside it."""

    def forward(self, x, labels=None):
        return {"loss": x.mean(), "logits": x[:, None], "more": x}


def test_a_key_of_compute_metrics_that_rounds_has_cut_points(tmp_path):
    values, labels = world(0, squeezed=0.5)(300)
    rows = [{"x": value, "labels": label} for value, label in zip(values[:, 0], labels, strict=True)]
    args = ReLossTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=100)

    trainer = ReLossTrainer(
        Squeezed(), args, eval_dataset=rows, compute_metrics=of_grades, metric="qwk",
        preprocess_logits_for_metrics=lambda outputs, labels: outputs[0],
    )  # fmt: skip
    trainer.strategy.metric = EvaluationMetrics(of_grades, "qwk")  # as the first batch of a run shows
    before = trainer.evaluate()["eval_qwk"]
    found = trainer.tune_decision()
    assert isinstance(trainer.decision, CutPoints)
    assert found.before == pytest.approx(before, abs=1e-6)
    assert trainer.evaluate()["eval_qwk"] > before + 0.05
    with pytest.raises(ValueError, match=r"gets inputs beside logits and labels: no decision is tuned by qwk"):
        trainer.tune_decision(metric=EvaluationMetrics(of_grades, "qwk", included=["inputs"]))


def test_what_is_missing_is_told(tmp_path):
    trainer = made(tmp_path, TinyClassifier())
    trainer.eval_dataset = None
    with pytest.raises(ValueError, match="it wants examples"):
        trainer.tune_decision()
    args = ReLossTrainingArguments(str(tmp_path), use_cpu=True)
    alone = ReLossTrainer(TinyClassifier(), args, eval_dataset=tiny_rows(60), surrogate="focal")
    with pytest.raises(ValueError, match="wants metric="):
        alone.tune_decision()
