"""tune_decision: a trainer's model decides by what a metric has learned on held-out examples."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Seq2SeqTrainer, default_data_collator
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss import Consensus, ReLossTrainer, ReLossTrainingArguments, load_metric
from hf_reloss.decisions.base import DecisionRule
from hf_reloss.decisions.consensus import beams
from hf_reloss.decisions.cut_points import CutPoints
from hf_reloss.metrics.adapters import EvaluationMetrics
from hf_reloss.predictions.dataset import decoded

from ..conftest import TinyClassifier, tiny_rows
from ..decisions.test_cut_points import of_grades, world
from .test_text_trainers import make_tokenizer, sentences, translating


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


def writing(tokenizer, folder, **options):
    """A trainer of a model that copies short sentences, half trained, and 60 of them that it has not seen."""
    trainer = translating(
        folder, tokenizer, surrogate="minimum_risk", num_train_epochs=2, save_strategy="no", **options
    )
    Seq2SeqTrainer.train(translating(folder, tokenizer, trainer.model, Seq2SeqTrainer, num_train_epochs=4))
    trainer.eval_dataset = sentences(60, seed=3)
    return trainer


@pytest.mark.parametrize("metric", ["sacrebleu", "chrf"])
def test_a_model_that_writes_text_writes_what_its_beams_agree_on(tmp_path, metric):
    tokenizer = make_tokenizer()
    trainer = writing(tokenizer, tmp_path, metric="sacrebleu")
    found = trainer.tune_decision(metric=metric, num_beams=4)
    references = [tokenizer.decode(ids, skip_special_tokens=True) for ids in trainer.eval_dataset["labels"]]
    trainer.decision, kept = None, trainer.decision
    likeliest = decoded(torch.from_numpy(trainer.predict(trainer.eval_dataset, num_beams=4).predictions), tokenizer)
    assert found.before == load_metric(metric).compute(likeliest, references)
    assert kept is found.rule
    rule = found.fitted
    trainer.decision = rule
    written = decoded(torch.from_numpy(trainer.predict(trainer.eval_dataset).predictions), tokenizer)
    loader, expected = trainer.get_test_dataloader(trainer.eval_dataset), []
    for batch in loader:
        prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
        _, texts, scores = beams(trainer.model.generate, tokenizer, 4, **prompt)
        expected += [each[place] for each, place in zip(texts, rule.choose(texts, scores).tolist(), strict=True)]
    assert written == expected
    trainer.save_model()
    assert Consensus.load(tmp_path).to_dict() == rule.to_dict()
    assert "generate" not in vars(trainer.model)


def test_a_key_of_compute_metrics_judges_what_is_written(tmp_path):
    tokenizer = make_tokenizer()

    def compute_metrics(evaluated):
        texts = [np.where(ids < 0, 0, ids) for ids in evaluated]
        written, references = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in texts)
        return {"mine": load_metric("chrf").compute(written, references) / 2}

    trainer = writing(tokenizer, tmp_path, compute_metrics=compute_metrics, metric="sacrebleu")
    key = EvaluationMetrics(compute_metrics, "mine", higher_is_better=True)
    found, chrf = trainer.tune_decision(metric=key, num_beams=4), trainer.tune_decision(metric="chrf", num_beams=4)
    assert found.metric == "mine"
    assert found.fitted.metric.name == "sacrebleu"
    assert found.before == pytest.approx(chrf.before / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"processing_class": None, "data_collator": default_data_collator}, "decoded by a tokenizer"),
        ({"is_fsdp_enabled": True}, "divides the model"),
        ({"eval_dataset": None}, "held-out examples by a metric: it wants examples"),
        ({"eval_dataset": sentences(20)}, "20 examples are too few"),
    ],
)
def test_what_writes_no_text_that_can_be_tuned_is_refused(tmp_path, change, message):
    trainer = translating(tmp_path, make_tokenizer(), surrogate="minimum_risk", metric="sacrebleu")
    trainer.eval_dataset = sentences(60)
    for name, value in change.items():
        setattr(trainer, name, value)
    with pytest.raises(ValueError, match=message):
        trainer.tune_decision(metric="chrf")
