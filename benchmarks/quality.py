"""Losses compared by what they do to the metric: any losses × a task × paired seeds.

    HF_RELOSS_DATA=... python benchmarks/quality.py fashion_mnist --seeds 10
    HF_RELOSS_DATA=... python benchmarks/quality.py hwu64 --losses cross_entropy reloss --seeds 5

Runs of one seed share their initial weights and the order of their data. Surrogates are learned once and used for all
seeds: from the predictions of one run with a seed of its own on the soft metric (before anything is learned) or, where
runs go on from a base, from those that the base made at stages of its training. "auto" learns its own in each
run, from its first stretch on cross-entropy; "transferred" is one of hub_cards/, which was learned on another model.
"minimum_risk", for models that write token by token, is the expected risk of what they write in training.
Results are stored after each run in benchmarks/results/, and runs found there are not repeated.
"""

import argparse
import collections
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.console import Console
from task import Loss, LossTrainer, Task
from tasks import TASKS
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from hf_reloss import (
    AutoSurrogate,
    PredictionRecorder,
    ReLossMixin,
    ReLossSeq2SeqTrainer,
    ReLossSeq2SeqTrainingArguments,
    ReLossTrainer,
    ReLossTrainingArguments,
    Surrogate,
    SurrogateConfig,
    hand_made_losses,
)
from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.statistics import comparison_table, paired_difference
from hf_reloss.compare.stored_results import write_atomically
from hf_reloss.hub import ORGANISATION
from hf_reloss.learning.learn_surrogate import learn_surrogate
from hf_reloss.metrics import Metric

RESULTS = Path(__file__).parent / "results"
RECORDING_SEED = 1_000  # of the run that surrogates learn from, none of the seeds that are compared

LEARNED = ("reloss", "unlearned", "paper", "transferred")  # the soft metric is reloss before anything is learned
HALVES = ("reloss", "unlearned")
"""With such a word behind its name, a baseline makes half of the loss, and that surrogate the other."""


def train_and_score(task: Task, seed: int, trainer_class: type[Trainer] = Trainer, **options: Any) -> dict[str, float]:
    """What the task measures, in points, after one training run."""
    recipe = task.recipe | options.pop("recipe", {})

    def measure(evaluation: Any) -> dict[str, float]:
        logits, labels = torch.as_tensor(evaluation.predictions), torch.as_tensor(evaluation.label_ids)
        return {name: 100 * function(logits, labels) for name, function in task.measures.items()}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments
        if issubclass(trainer_class, ReLossTrainer):
            # "auto" needs some steps to record, also where the task has none for it.
            arguments, recipe = ReLossTrainingArguments, {"surrogate_warmup": task.warmup or None} | recipe
        elif issubclass(trainer_class, ReLossSeq2SeqTrainer):
            arguments, recipe = ReLossSeq2SeqTrainingArguments, task.writing | recipe
        if issubclass(trainer_class, ReLossMixin):  # nothing is chosen on what is reported
            options, recipe = {"guard": False} | options, {"tune_decision": False} | recipe
        common = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
        args = arguments(folder, seed=seed, **common | recipe)
        set_seed(seed)
        trainer = trainer_class(
            model=task.make_model(), args=args, train_dataset=task.train, eval_dataset=task.evaluation,
            compute_metrics=measure, **task.trainer_options, **options,
        )  # fmt: skip
        trainer.pop_callback(PrinterCallback)
        trainer.train()
        if task.score is not None:
            return task.score(trainer.model)
        measured = trainer.evaluate()
        return {name: measured[f"eval_{name}"] for name in task.measures}


def run(name: str, split: str, loss: str, seed: int, surrogates: str) -> dict[str, float]:
    """One run in a process of its own."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task = TASKS[name](split)
    if loss == "cross_entropy":
        return train_and_score(task, seed)
    if loss in task.baselines:
        return train_and_score(task, seed, LossTrainer, loss=task.baselines[loss])
    if loss == "label_smoothing":
        return train_and_score(task, seed, recipe={"label_smoothing_factor": 0.1})
    if loss in hand_made_losses():
        # Those that are means over examples need no warm-up.
        recipe = {"surrogate_warmup": task.warmup if hand_made_losses()[loss].is_of_groups() else 0.0}
        return train_and_score(task, seed, ReLossTrainer, surrogate=loss, recipe=recipe)
    if loss == "auto":
        return train_and_score(task, seed, ReLossTrainer, surrogate="auto", metric=task.metric)
    if loss == "minimum_risk":
        return train_and_score(task, seed, ReLossSeq2SeqTrainer, surrogate=loss, metric=task.metric)
    baseline, _, half = loss.rpartition("_")
    if half in HALVES and baseline:
        surrogate = AutoSurrogate.from_pretrained(Path(surrogates) / half)
        return train_and_score(task, seed, _HalfTrainer, surrogate=surrogate, loss=task.baselines[baseline])
    return train_and_score(task, seed, ReLossTrainer, surrogate=AutoSurrogate.from_pretrained(Path(surrogates) / loss))


class _HalfTrainer(ReLossTrainer):
    """Trains half on a hand-made loss, half on a surrogate."""

    def __init__(self, *args: Any, loss: Loss, **options: Any):
        super().__init__(*args, **options)
        self.loss = loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        replaced, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = (replaced + self.loss(outputs, inputs)) / 2
        return (loss, outputs) if return_outputs else loss


def learn_surrogates(name: str, split: str, losses: list[str], folder: str) -> dict[str, dict[str, Any]]:
    """Learns each surrogate from the task's predictions, saves them, and returns their records."""
    task = TASKS[name](split)
    records = {}
    predictions = recorded(task)
    for loss in losses:
        set_seed(RECORDING_SEED)
        surrogate, settings = task.kind.for_metric(task.metric, **task.structure), task.learning
        if loss == "paper":
            surrogate = task.kind(SurrogateConfig(task=task.kind.task, architecture="paper", **task.structure))
        elif loss == "transferred":
            surrogate = AutoSurrogate.from_pretrained(f"{ORGANISATION}/{task.card}")
        if loss in ("unlearned", "transferred"):  # they stay as they are; one epoch of nothing measures their alignment
            settings = settings | {"learning_rate": 0.0, "num_train_epochs": 1}
        records[loss] = learn(surrogate, predictions, task.metric, settings)
        surrogate.save_pretrained(Path(folder) / loss)
    if "transferred" in records:
        records["transferred"] = {"card": task.card} | records["transferred"]
    return records


def recorded(task: Task, seed: int = RECORDING_SEED) -> datasets.Dataset:
    """The predictions that surrogates are learned from: of a run with a seed, or of a base."""
    if task.record is not None:
        return task.record()
    recorder = PredictionRecorder()
    soft_metric = task.kind.for_metric(task.metric, **task.structure)
    train_and_score(task, seed, ReLossTrainer, surrogate=soft_metric, callbacks=[recorder])
    return recorder.dataset(processing_class=task.trainer_options.get("processing_class"), metric=task.metric)


def learn(surrogate: Surrogate, predictions: datasets.Dataset, metric: Metric, settings: dict[str, Any]) -> dict:
    """Learns a surrogate in place and returns its record."""
    learn_surrogate(surrogate, predictions, metric, **settings)
    return {name: value for name, value in surrogate.config.record.items() if name != "held_out"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--losses", nargs="+", help="by default those that the task names")
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 to this less one")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="validation is for tuning")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time, of one thread each")
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/quality_TASK_SPLIT.json")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = options.output or RESULTS / f"quality_{options.task}_{options.split}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"scores": {}, "surrogates": {}}
    runs = {}  # of a loss and a seed: what was measured
    for measure, of_losses in stored["scores"].items():
        for loss, values in of_losses.items():
            for seed, value in values.items():
                runs.setdefault((loss, int(seed)), {})[measure] = value

    task = TASKS[options.task](options.split)
    losses = options.losses or task.losses
    jobs = [(loss, seed) for seed in range(options.seeds) for loss in losses if (loss, seed) not in runs]
    with tempfile.TemporaryDirectory() as folder:
        used = {loss for loss, _ in jobs} | {loss.rpartition("_")[2] for loss, _ in jobs}
        needed = [loss for loss in LEARNED if loss in used]
        if needed:
            stored["surrogates"] |= learn_surrogates(options.task, options.split, needed, folder)
        calls = {job: (options.task, options.split, *job, folder) for job in jobs}
        store = functools.partial(_store, path, options, task, stored["surrogates"], runs)
        left = make_runs(calls, run, runs, store, workers=options.workers)
        collections.deque(tqdm(left, total=len(calls), desc=options.task), maxlen=0)
    _show(_store(path, options, task, stored["surrogates"], runs))


def _store(
    path: Path,
    options: argparse.Namespace,
    task: Task,
    surrogates: dict[str, dict[str, Any]],
    runs: dict[tuple[str, int], dict[str, float]],
) -> dict[str, Any]:
    measures = dict.fromkeys(measure for measured in runs.values() for measure in measured)
    ran = {loss for loss, _ in runs}
    order = [loss for loss in task.losses if loss in ran] + sorted(ran - set(task.losses))
    scores = {
        measure: {
            loss: values
            for loss in order
            if (
                values := {seed: runs[loss, seed][measure] for seed in sorted(run[1] for run in runs if run[0] == loss)}
            )
        }
        for measure in measures
    }

    def differences(baseline: str, compared: list[str]) -> dict[str, dict[str, Any]]:
        return {
            measure: {
                loss: paired_difference(of_losses[loss], of_losses[baseline])._asdict()
                for loss in compared
                if loss != baseline and of_losses.get(baseline, {}).keys() & of_losses.get(loss, {}).keys()
            }
            for measure, of_losses in scores.items()
        }

    result = {
        "task": options.task,
        "split": options.split,
        "command": f"python benchmarks/quality.py {options.task} --split {options.split} --seeds {options.seeds}",
        "environment": environment(),
        "recording_seed": RECORDING_SEED,
        "surrogates": surrogates,
        "scores": scores,
        "original": task.original,
        "over_original": differences(task.original, order),
        "over_unlearned": differences("unlearned", ["reloss", "auto"]),
    }
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    return result


def _show(result: dict[str, Any]) -> None:
    alignments = {loss: record["alignment"] for loss, record in result["surrogates"].items()}
    for measure, scores in result["scores"].items():
        title = f"{result['task']}, {result['split']}"
        Console().print(
            comparison_table(scores, result["original"], title=title, metric=measure, alignments=alignments)
        )


if __name__ == "__main__":
    main()
