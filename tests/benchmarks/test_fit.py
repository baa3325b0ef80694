"""The benchmark of gains by how well training images are fitted."""

import json
import os

import pytest

from .conftest import BENCHMARKS

STORED = sorted((BENCHMARKS / "results").glob("fit_*.json"))


@pytest.fixture
def fit(program):
    return program("fit")


def test_a_model_sees_as_many_images_however_many_there_are(fit):
    if "HF_RELOSS_DATA" not in os.environ:
        pytest.skip("HF_RELOSS_DATA does not name the folder of real data")
    task = fit.TASKS["fashion_mnist"]("test")
    seen = len(task.train) * task.recipe["num_train_epochs"]
    for images in fit.SIZES["fashion_mnist"]:
        sized = fit.sized("fashion_mnist", images)
        assert len(sized.train) == images
        assert images * sized.recipe["num_train_epochs"] == pytest.approx(seen)
        assert sized.evaluation.labels.equal(task.evaluation.labels)
    few = fit.sized("fashion_mnist", 500)
    few.evaluation.images, few.evaluation.labels = few.evaluation.images[:500], few.evaluation.labels[:500]
    scores = few.score(few.make_model())
    assert all(0 < scores[part] < 40 for part in ("test", "training"))


@pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])
def test_what_is_stored_is_the_summary_of_its_runs(path, fit):
    result = json.loads(path.read_text())
    seeds = len(result["runs"]) // len(fit.LOSSES) // len(fit.SIZES[result["task"]])
    assert seeds >= 5
    assert fit.summary(result["runs"], result["task"], seeds) == result["by_training_images"]
