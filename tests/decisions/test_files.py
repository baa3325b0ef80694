"""reloss decide: a model that is trained already, and predictions in a file."""

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner

from hf_reloss.cli import app
from hf_reloss.decisions.base import DecisionRule
from hf_reloss.decisions.cut_points import CutPoints
from hf_reloss.decisions.thresholds import LabelThresholds

from .test_tuning import CLASSES, world


@pytest.fixture
def predictions(tmp_path):
    logits, labels = world(1, biased=1.5)(1_500)
    path = tmp_path / "predictions.npz"
    np.savez(path, logits=logits.numpy(), labels=labels.numpy())
    return path


def call(*arguments):
    done = CliRunner().invoke(app, ["decide", *map(str, arguments)])
    return done.exit_code, " ".join(done.output.split())


def test_the_rule_is_written_if_it_gains(tmp_path, predictions):
    options = ("--metric", "f1", "--metric-options", '{"average": "macro"}', "--output", tmp_path / "decided")
    code, said = call(predictions, *options)
    assert code == 0
    assert said.startswith("decision: gained +0.")
    rule, (logits, labels) = DecisionRule.load(tmp_path / "decided"), world(1, biased=1.5)(4_000)
    assert (rule.decide(logits) == labels).float().mean() > (logits.argmax(-1) == labels).float().mean()


def test_nothing_is_written_if_it_does_not(tmp_path):
    logits, labels = world(0)(600)
    np.savez(tmp_path / "p.npz", logits=logits.numpy(), labels=labels.numpy())
    code, said = call(tmp_path / "p.npz", "--metric", "accuracy", "--output", tmp_path / "decided")
    assert code == 0
    assert "argmax is kept" in said
    assert "Nothing was written" in said
    assert not (tmp_path / "decided").exists()


def test_a_model_has_it_in_its_last_layer(tmp_path, predictions):
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=8, num_labels=CLASSES)).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    options = ("--metric", "accuracy", "--model", tmp_path / "model", "--output", tmp_path / "decided")
    code, said = call(predictions, *options)
    assert code == 0, said
    assert "in the bias of its last layer" in said
    assert (tmp_path / "decided" / "tokenizer.json").is_file()
    ids = torch.tensor([[1, 2, 3]])
    shift = BertForSequenceClassification.from_pretrained(tmp_path / "decided").eval()(ids).logits - model(ids).logits
    assert shift.abs().max() > 0.1
    assert shift.mean().abs() < 1e-4

    model.config.num_labels = 3
    other = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=8, num_labels=3))
    other.save_pretrained(tmp_path / "other")
    code, said = call(predictions, "--metric", "accuracy", "--model", tmp_path / "other")
    assert code == 1
    assert "has 3 classes, but" in said
    assert f"has logits of {CLASSES}" in said


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": np.zeros((60, 3), np.float32)}, "'logits' and 'labels' are wanted"),
        (
            {"logits": np.zeros((60, 3), np.float32), "labels": np.zeros(60)},
            "labels of integers, but has float32, float64",
        ),
        ({"logits": np.zeros((60, 3), np.float32), "labels": np.zeros(50, np.int64)}, "[60, 3] and [50]"),
    ],
)
def test_other_files_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "p.npz", **arrays)
    code, said = call(tmp_path / "p.npz", "--metric", "accuracy")
    assert code == 1
    assert message in said
    (tmp_path / "p.txt").touch()
    for name, message in {"missing.csv": "There is no file", "p.txt": "is no .npz, .csv, .tsv or .parquet"}.items():
        code, said = call(tmp_path / name)
        assert code == 1
        assert message in said


def test_what_a_metric_cannot_score_it_says_itself(tmp_path):
    """By default F1 is of two classes."""
    logits, labels = world(0)(200)
    np.savez(tmp_path / "p.npz", logits=logits.numpy(), labels=labels.numpy())
    code, said = call(tmp_path / "p.npz")
    assert code == 1
    assert "choose average='macro'" in said
    code, said = call(tmp_path / "p.npz", "--metric-options", "average=macro")
    assert code == 1
    assert "is JSON, such as" in said


def test_rules_decide_of_arrays_as_of_tensors(tmp_path, predictions):
    call(predictions, "--metric-options", '{"average": "macro"}', "--output", tmp_path / "decided")
    logits = torch.randn(50, CLASSES)
    for rule in (DecisionRule.load(tmp_path / "decided"), LabelThresholds(torch.zeros(CLASSES))):
        assert torch.equal(rule.decide(logits.numpy()), rule.decide(logits))
    assert torch.equal(CutPoints([0.0, 1.0]).decide(logits[:, :1].numpy()), CutPoints([0.0, 1.0]).decide(logits[:, 0]))
