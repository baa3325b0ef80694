"""`reloss compare`: on a user's own file, with every way to train, resumed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from hf_reloss import AutoSurrogate, SurrogateConfig
from hf_reloss.compare.statistics import verdict
from hf_reloss.compare.study import compare
from hf_reloss.compare.task import ComparedTask, load_task

from ..conftest import TinyClassifier, tiny_rows
from ..test_cli import call

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
def test_all_ways_are_compared_and_a_comparison_goes_on(tmp_path, task):
    output = tmp_path / "out"
    first = ["compare", task, "--losses", "ce,focal,class_weights", "--seeds", 2, "--output", output]
    code, said = call(*first)
    assert code == 0
    before = json.loads((output / "results.json").read_text())
    # A comparison that was stopped before its last run goes on with that one, and takes further losses.
    stopped = json.loads(json.dumps(before))
    stopped["scores"]["focal"]["0"] = 0.123
    del stopped["scores"]["focal"]["1"]
    stopped["fingerprint"]["train_dataset, column features"] = None  # as if it had been augmented at random
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
    assert "metric: accuracy there, f1" in " ".join(said.split())


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


def tiny_task(**changes) -> ComparedTask:
    arguments = {"num_train_epochs": 1, "learning_rate": 0.01, "use_cpu": True}
    return replace(ComparedTask(TinyClassifier, tiny_rows(32), tiny_rows(32, seed=1), arguments), **changes)


def relabelled(row: dict) -> dict:
    return row | {"labels": (row["labels"] + 1) % 4}


def test_results_of_another_comparison_are_refused(tmp_path):
    def run(task: ComparedTask, metric: str = "accuracy") -> dict:
        return compare(task, [], metric, seeds=1, output=tmp_path)

    before = run(tiny_task())
    assert run(tiny_task()) == before
    rows = tiny_rows(32)
    for changes, part in [
        ({"source": "other"}, "task: TinyClassifier there, other here"),
        ({"train_dataset": rows[1:]}, "train_dataset, length: 32 there, 31 here"),
        ({"train_dataset": [*rows[1:], relabelled(rows[0])]}, "train_dataset, column labels: "),
        ({"eval_dataset": tiny_rows(32, seed=2)}, "eval_dataset, column features: "),
        ({"arguments": tiny_task().arguments | {"learning_rate": 0.1}}, "arguments, learning_rate: 0.01 there, 0.1 h"),
        ({"trainer_options": {"data_collator": list}}, "trainer_options, data_collator: absent there, list here"),
    ]:
        with pytest.raises(ValueError, match=part) as refusal:
            run(tiny_task(**changes))
        assert str(refusal.value).endswith("choose another --output, or delete the folder.")
    with pytest.raises(ValueError, match="metric: accuracy there, f1"):
        run(tiny_task(), "f1")
    file = tmp_path / "results.json"
    stored = json.loads(file.read_text())
    stored["fingerprint"]["version of torch"] = "1.0"
    file.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"version of torch: 1\.0 there"):
        run(tiny_task())
    file.write_text(json.dumps({"metric": "accuracy", "scores": {"cross_entropy": {"0": 1.0}}}))
    with pytest.raises(ValueError, match="earlier version"):
        run(tiny_task())
    file.write_text(file.read_text()[:9])
    with pytest.raises(ValueError, match="is no JSON"):
        run(tiny_task())


def test_a_surrogate_of_unknown_origin_is_neither_used_nor_replaced(tmp_path):
    AutoSurrogate.from_config(SurrogateConfig(task="classification")).save_pretrained(tmp_path / "surrogate")
    with pytest.raises(ValueError, match="is there without"):
        compare(tiny_task(), ["reloss"], "accuracy", seeds=1, output=tmp_path)
    assert (tmp_path / "surrogate" / "model.safetensors").exists()


def test_a_second_comparison_in_one_folder_is_refused_at_once(tmp_path):
    refusals = []

    def model() -> TinyClassifier:
        with pytest.raises(ValueError, match="Another comparison is running") as refusal:
            compare(tiny_task(), [], "accuracy", seeds=2, output=tmp_path)
        refusals.append(refusal)
        return TinyClassifier()

    scores = compare(tiny_task(model=model), [], "accuracy", seeds=2, output=tmp_path)
    assert len(refusals) == 2
    assert len(scores["cross_entropy"]) == 2
    assert json.loads((tmp_path / "results.json").read_text())["scores"]["cross_entropy"].keys() == {"0", "1"}


def test_a_loss_that_fails_is_a_row_with_its_reason_and_tried_again(tmp_path, task):
    for name, kind in (("empty", None), ("other_task", "keypoints")):
        (tmp_path / name).mkdir()
        if kind:
            AutoSurrogate.from_config(SurrogateConfig(task=kind)).save_pretrained(tmp_path / name)
    losses = ["ce", str(tmp_path / "empty"), str(tmp_path / "other_task"), "focal"]
    output = tmp_path / "out"
    code, said = call("compare", task, "--losses", ",".join(losses), "--seeds", 2, "--output", output)
    assert code == 0
    stored = json.loads((output / "results.json").read_text())
    assert stored["failed"].keys() == {losses[1], losses[2]}
    assert {loss: len(scores) for loss, scores in stored["scores"].items()} == {"cross_entropy": 2, "focal": 2}
    assert stored["over_cross_entropy"].keys() == {"focal"}
    assert said.count("failed") >= 2
    assert "OSError" in said
    assert "Traceback" not in said
    AutoSurrogate.from_config(SurrogateConfig(task="classification")).save_pretrained(tmp_path / "empty")
    code, said = call("compare", task, "--losses", losses[1], "--seeds", 2, "--output", output)
    assert code == 0
    after = json.loads((output / "results.json").read_text())
    assert len(after["scores"][losses[1]]) == 2
    assert after["failed"] == {losses[2]: stored["failed"][losses[2]]}


@pytest.mark.parametrize(("error", "losses"), [(RuntimeError, 0), (KeyboardInterrupt, 1)])
def test_what_cross_entropy_fails_with_and_an_interruption_are_no_rows(tmp_path, error, losses):
    """The first run of cross-entropy fails, or the first one of another loss is interrupted."""
    made = []

    def model() -> TinyClassifier:
        made.append(TinyClassifier())
        if len(made) > losses:
            raise error("no model")
        return made[-1]

    with pytest.raises(error, match="no model"):
        compare(tiny_task(model=model), ["focal"], "accuracy", seeds=1, output=tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert not stored["failed"]
    assert len(stored["scores"]) == losses


@pytest.mark.parametrize(
    ("loss", "message"),
    [("facal", "'focal' meant"), ("bert", "choose among ala, .*focal"), ("./no", "no folder")],
)
def test_an_unknown_name_is_refused_before_anything_runs(tmp_path, loss, message):
    with pytest.raises(ValueError, match=message):
        compare(tiny_task(), [loss], "accuracy", seeds=1, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_default_folder_is_one_per_task_and_metric(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TASK.replace('"num_train_epochs": 8', '"num_train_epochs": 1'))
    shutil.copy("task.py", "other.py")
    options = ["--losses", "ce", "--seeds", 2]
    macro = ["--metric", "f1", "--metric-options", '{"average": "macro"}']
    for file, further in (("task.py", []), ("other.py", []), ("task.py", macro)):
        code, said = call("compare", file, *options, *further)
        assert code == 0, said
    made = {path.parent.name for path in Path("comparison").glob("*/results.json")}
    assert made == {"task-accuracy", "other-accuracy", "task-f1-average-macro"}


KILLED = """
import os, signal, sys
from pathlib import Path
from hf_reloss.compare.study import compare
from hf_reloss.compare.task import load_task
from rich.console import Console

WRITES = {"open": lambda path, mode, flags: [path] if flags & (os.O_WRONLY | os.O_RDWR) else [],
          "os.rename": lambda source, target, *_: [source, target], "os.mkdir": lambda path, *_: [path]}

def run(loss, output, below=None, write=0):
    "Compares in a process of its own, which is killed at its n-th write below a path. Returns whether it was."
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    left = [write]
    def watch(event, arguments):
        if event in WRITES and any(str(path).startswith(str(below)) for path in WRITES[event](*arguments)):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    if write:
        sys.addaudithook(watch)
    task = load_task(sys.argv[1 if loss == "reloss" else 3])
    compare(task, [loss], "accuracy", seeds=2, output=output, console=Console(quiet=True))
    os._exit(0)

folder, write = Path(sys.argv[2]), 1
run("focal", folder / "focal unbroken")
while run("focal", folder / f"focal {write}", folder / f"focal {write}", write):
    run("focal", folder / f"focal {write}")
    write += 1
run("reloss", folder / "reloss unbroken")
assert run("reloss", folder / "reloss killed", folder / "reloss killed" / "surrogate", 3)
assert not (folder / "reloss killed" / "surrogate").exists()
run("reloss", folder / "reloss killed")
"""


@pytest.mark.slow
def test_after_a_kill_at_any_write_the_next_call_ends_as_an_unbroken_one(tmp_path):
    """Where a surrogate is learned, which takes long, it is one write of those that save it."""
    task, short = tmp_path / "task.py", tmp_path / "short.py"
    text = TASK.replace("tiny_rows(400), tiny_rows(200,", "tiny_rows(800), tiny_rows(50,")
    task.write_text(text.replace('"num_train_epochs": 8', '"max_steps": 50'))
    short.write_text(text.replace('"num_train_epochs": 8', '"max_steps": 4'))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", KILLED, task, tmp_path, short], check=True, env=environment)
    for loss, fewest in (("focal", 15), ("reloss", 2)):
        results = json.loads((tmp_path / f"{loss} unbroken" / "results.json").read_text())
        assert {name: set(scores) for name, scores in results["scores"].items()} == {
            name: {"0", "1"} for name in ("cross_entropy", loss)
        }
        folders = list(tmp_path.glob(f"{loss} *"))
        assert len(folders) >= fewest
        assert all(json.loads((folder / "results.json").read_text()) == results for folder in folders)

    # One whose weights were lost is learned again, too.
    output = tmp_path / "reloss killed"
    weights = output / "surrogate" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    stored = results | {"scores": {"cross_entropy": results["scores"]["cross_entropy"]}}
    (output / "results.json").write_text(json.dumps(stored))
    compare(load_task(str(task)), ["reloss"], "accuracy", seeds=2, output=output)
    assert json.loads((output / "results.json").read_text()) == results
    assert weights.read_bytes() == content
