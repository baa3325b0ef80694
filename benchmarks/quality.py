"""Losses compared by what they do to the metric: any losses × a task × paired seeds.

    HF_RELOSS_DATA=... python benchmarks/quality.py fashion_mnist --seeds 10
    HF_RELOSS_DATA=... python benchmarks/quality.py hwu64 --losses cross_entropy reloss --seeds 5

Runs of one seed share their initial weights and the order of their data. Surrogates are learned once, from the
predictions of one run with a seed of its own on the twin (the surrogate before anything is learned), and used for all
seeds; "auto" learns its own in each run, from its first stretch on cross-entropy.
Results are stored after each run in benchmarks/results/, and runs found there are not repeated.
"""

import argparse
import json
import multiprocessing
import platform
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from baselines import BASELINES, LossTrainer
from rich.console import Console
from tasks import TASKS, Task
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from hf_reloss import (
    AutoSurrogate,
    PredictionRecorder,
    ReLossTrainer,
    ReLossTrainingArguments,
    SurrogateConfig,
    SurrogateForClassification,
    SurrogateTrainer,
    SurrogateTrainingArguments,
)
from hf_reloss.comparison import comparison_table, paired_difference

RESULTS = Path(__file__).parent / "results"
RECORDING_SEED = 1_000  # of the run that surrogates learn from, none of the seeds that are compared

LEARNED = ("reloss", "twin", "paper")  # the twin is reloss before anything is learned
LOSSES = ("cross_entropy", "label_smoothing", *BASELINES, *LEARNED, "auto")


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
        args = arguments(
            folder, seed=seed, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False, **recipe,
        )  # fmt: skip
        set_seed(seed)
        trainer = trainer_class(
            model=task.make_model(), args=args, train_dataset=task.train, eval_dataset=task.evaluation,
            compute_metrics=measure, **task.trainer_options, **options,
        )  # fmt: skip
        trainer.pop_callback(PrinterCallback)
        trainer.train()
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
    if loss == "label_smoothing":
        return train_and_score(task, seed, recipe={"label_smoothing_factor": 0.1})
    if loss in BASELINES:
        frequencies = torch.bincount(task.train.labels).float() / len(task.train)
        # The others are means over examples, and need no warm-up.
        warmup = task.warmup if loss == "soft_f1" else 0.0
        return train_and_score(task, seed, LossTrainer, loss=BASELINES[loss], frequencies=frequencies, warmup=warmup)
    if loss == "auto":
        return train_and_score(task, seed, ReLossTrainer, surrogate="auto", metric=task.metric)
    return train_and_score(task, seed, ReLossTrainer, surrogate=AutoSurrogate.from_pretrained(Path(surrogates) / loss))


def learn_surrogates(name: str, split: str, losses: list[str], folder: str) -> dict[str, dict[str, Any]]:
    """Records a run of the twin, learns each surrogate from it, saves them, and returns their records."""
    task = TASKS[name](split)
    recorder = PredictionRecorder()
    twin = SurrogateForClassification.for_metric(task.metric)
    train_and_score(task, RECORDING_SEED, ReLossTrainer, surrogate=twin, callbacks=[recorder])
    records = {}
    for loss in losses:
        set_seed(RECORDING_SEED)
        surrogate = SurrogateForClassification.for_metric(task.metric)
        if loss == "paper":
            surrogate = SurrogateForClassification(SurrogateConfig(architecture="paper"))
        # A surrogate is its twin as long as it has not been trained; one epoch of nothing measures its alignment.
        settings = {"learning_rate": 0.0, "num_train_epochs": 1} if loss == "twin" else {}
        with tempfile.TemporaryDirectory() as checkpoints:
            args = SurrogateTrainingArguments(checkpoints, disable_tqdm=True, logging_strategy="no", **settings)
            trainer = SurrogateTrainer(surrogate, args, train_dataset=recorder.dataset(), metric=task.metric)
            trainer.pop_callback(PrinterCallback)
            trainer.train()
        surrogate.save_pretrained(Path(folder) / loss)
        records[loss] = surrogate.config.record
    return records


def environment() -> dict[str, str]:
    packages = ("hf-reloss", "torch", "transformers", "accelerate", "datasets")
    return {"python": platform.python_version(), "machine": platform.machine()} | {p: version(p) for p in packages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, help="by default those that the task names")
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

    losses = options.losses or TASKS[options.task](options.split).losses
    jobs = [(loss, seed) for seed in range(options.seeds) for loss in losses if (loss, seed) not in runs]
    with tempfile.TemporaryDirectory() as folder:
        needed = [loss for loss in LEARNED if any(loss == job[0] for job in jobs)]
        if needed:
            stored["surrogates"] |= learn_surrogates(options.task, options.split, needed, folder)
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            waiting = {pool.submit(run, options.task, options.split, *job, folder): job for job in jobs}
            for finished in tqdm(as_completed(waiting), total=len(waiting), desc=options.task):
                runs[waiting[finished]] = finished.result()
                _store(path, options, stored["surrogates"], runs)
    _show(_store(path, options, stored["surrogates"], runs))


def _store(
    path: Path,
    options: argparse.Namespace,
    surrogates: dict[str, dict[str, Any]],
    runs: dict[tuple[str, int], dict[str, float]],
) -> dict[str, Any]:
    measures = dict.fromkeys(measure for measured in runs.values() for measure in measured)
    scores = {
        measure: {
            loss: values
            for loss in LOSSES
            if (
                values := {seed: runs[loss, seed][measure] for seed in sorted(run[1] for run in runs if run[0] == loss)}
            )
        }
        for measure in measures
    }

    def differences(baseline: str, compared: tuple[str, ...]) -> dict[str, dict[str, Any]]:
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
        "over_cross_entropy": differences("cross_entropy", LOSSES),
        "over_twin": differences("twin", ("reloss", "auto")),
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _show(result: dict[str, Any]) -> None:
    alignments = {loss: record["alignment"] for loss, record in result["surrogates"].items()}
    for record in result["surrogates"].values():
        alignments["cross_entropy"] = record["alignment_cross_entropy"]
    for measure, scores in result["scores"].items():
        title = f"{result['task']}, {result['split']}"
        Console().print(comparison_table(scores, "cross_entropy", title=title, metric=measure, alignments=alignments))


if __name__ == "__main__":
    main()
