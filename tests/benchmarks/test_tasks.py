"""The benchmarks' own parts, on the real data that they use."""

import json
import os

import pytest
import torch

from hf_reloss import ReLossTrainer, SurrogateConfig, SurrogateForClassification

from .conftest import BENCHMARKS


@pytest.fixture
def tasks(program):
    return program("tasks")


@pytest.fixture
def fashion_mnist(tasks):
    if "HF_RELOSS_DATA" not in os.environ:
        pytest.skip("HF_RELOSS_DATA does not name the folder of real data")
    return tasks.TASKS["fashion_mnist"]


def test_what_is_tuned_on_is_neither_trained_nor_reported_on(fashion_mnist):
    validation, test = fashion_mnist("validation"), fashion_mnist("test")
    assert (len(test.train), len(test.evaluation), len(validation.evaluation)) == (6_000, 10_000, 10_000)
    assert torch.equal(validation.train.images, test.train.images)
    seen = {image.numpy().tobytes() for image in test.train.images}
    for task in (validation, test):
        shared = sum(image.numpy().tobytes() in seen for image in task.evaluation.images)
        assert shared < 5  # the data set holds a few images twice
    assert abs(test.train.images.mean()) < 0.02
    assert abs(test.train.images.std() - 1) < 0.02


def test_a_run_of_the_benchmark_learns(fashion_mnist, monkeypatch):
    import quality

    task = fashion_mnist("validation")
    task.train.images, task.train.labels = task.train.images[:2_000], task.train.labels[:2_000]
    task.evaluation.images, task.evaluation.labels = task.evaluation.images[:1_000], task.evaluation.labels[:1_000]
    task.recipe = task.recipe | {"num_train_epochs": 2}
    soft_metric = SurrogateForClassification(SurrogateConfig())
    scores = [quality.train_and_score(task, 0, ReLossTrainer, surrogate=soft_metric) for _ in range(2)]
    assert scores[0] == scores[1]  # a seed fixes a run
    assert 70 < scores[0]["accuracy"] < 95


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("quality_*.json")), ids=lambda path: path.stem)
def test_stored_differences_are_those_of_the_stored_runs(path):
    from hf_reloss.compare.statistics import paired_difference

    result = json.loads(path.read_text())
    assert result["scores"].keys() == result["over_original"].keys()
    for measure, of_losses in result["scores"].items():
        scores = {loss: {int(seed): value for seed, value in runs.items()} for loss, runs in of_losses.items()}
        assert result["over_original"][measure].keys() == scores.keys() - {result["original"]}
        assert result["over_unlearned"][measure].keys() == scores.keys() & {"reloss", "auto"}
        for name, baseline in (("original", result["original"]), ("unlearned", "unlearned")):
            for loss, stored in result[f"over_{name}"][measure].items():
                assert paired_difference(scores[loss], scores[baseline])._asdict() == pytest.approx(stored)
