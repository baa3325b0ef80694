"""`reloss compare`: on a user's own file, with every way to train, resumed."""

import json

import pytest
from matplotlib.image import imread

from hf_reloss.compare import compare
from hf_reloss.compared_task import load_task
from hf_reloss.comparison import verdict

from .test_cli import call

TASK = """
import torch
from tests.conftest import TinyClassifier, tiny_rows

def model():
    return TinyClassifier()

train_dataset, eval_dataset = tiny_rows(400), tiny_rows(200, seed=1)
arguments = {"num_train_epochs": 8, "per_device_train_batch_size": 16, "learning_rate": 0.01, "use_cpu": True}
"""


@pytest.fixture
def task(tmp_path):
    file = tmp_path / "task.py"
    file.write_text(TASK)
    return file


@pytest.mark.slow
def test_all_ways_are_raced_and_a_race_goes_on(tmp_path, task):
    output = tmp_path / "out"
    first = ["compare", task, "--losses", "ce,focal,class_weights", "--seeds", 2, "--output", output]
    code, said = call(*first)
    assert code == 0
    before = json.loads((output / "results.json").read_text())
    # A race that was stopped before its last run goes on with that one, and takes further losses.
    stopped = json.loads(json.dumps(before))
    stopped["scores"]["focal"]["0"] = 0.123
    del stopped["scores"]["focal"]["1"]
    (output / "results.json").write_text(json.dumps(stopped))
    code, said = call(
        "compare",
        task,
        "--losses",
        "focal,reloss,auto,approximation,ala,reloss/accuracy",
        "--seeds",
        2,
        "--output",
        output,
    )
    assert code == 0
    after = json.loads((output / "results.json").read_text())
    assert after["scores"]["focal"] == {"0": 0.123, "1": before["scores"]["focal"]["1"]}
    assert after["scores"]["cross_entropy"] == before["scores"]["cross_entropy"]
    for loss in ("reloss", "auto", "approximation", "ala", "reloss/accuracy"):
        assert min(after["scores"][loss].values()) > 0.6, loss
    assert after["verdict"].split()[0] in said
    assert set(after["over_cross_entropy"]) == {"focal", "reloss", "auto", "approximation", "ala", "reloss/accuracy"}
    picture = imread(output / "comparison.png")
    assert picture.std() > 0.05
    code, said = call("compare", task, "--losses", "focal", "--metric", "f1", "--output", output)
    assert code == 1
    assert "choose another folder" in said


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("x = 1", "lacks model, train_dataset, eval_dataset"),
        ("model = 1\ntrain_dataset = eval_dataset = []", "has to define"),
    ],
)
def test_a_file_that_defines_too_little_is_told(tmp_path, file, message):
    (tmp_path / "task.py").write_text(file)
    with pytest.raises(ValueError, match=message):
        load_task(str(tmp_path / "task.py"))
    with pytest.raises(ValueError, match="no file"):
        load_task(str(tmp_path / "other.py"))


def test_a_loss_that_is_not_there_fails_before_anything_runs(tmp_path, task):
    with pytest.raises((OSError, ValueError)):
        compare(load_task(str(task)), [str(tmp_path / "no_such_loss")], "accuracy", seeds=2, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verdict_says_what_intervals_support():
    base = {0: 1.0, 1: 2.0, 2: 3.0}
    results = {
        "cross_entropy": base,
        "good_one": {seed: value + 1 + 0.01 * seed for seed, value in base.items()},
        "bad": {seed: value - 1 - 0.01 * seed for seed, value in base.items()},
        "unsure": {0: 2.0, 1: 1.0, 2: 4.0},
    }
    said = verdict(results, "cross_entropy")
    assert said.startswith("Good one (+1.0100 [+0.9852, +1.0348]) is better than cross entropy; bad (-1.0100")
    assert "is worse than cross entropy; of unsure 3 seeds do not say whether they are better or worse" in said
    assert "3 comparisons at 95 % each" in said
    turned = verdict(results, "cross_entropy", higher_is_better=False)
    assert turned.startswith("Bad (-1.0100")
    assert verdict({"cross_entropy": base}, "cross_entropy") == "There is nothing to compare."
