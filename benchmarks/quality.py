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
from rich.console import Console
from tasks import TASKS, Task
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from hf_reloss import (
    AutoSurrogate,
    PredictionRecorder,
    ReLossTrainer,
    SurrogateConfig,
    SurrogateForClassification,
    SurrogateTrainer,
    SurrogateTrainingArguments,
    load_metric,
)
from hf_reloss.comparison import comparison_table, paired_difference

RESULTS = Path(__file__).parent / "results"
RECORDING_SEED = 1_000  # of the run that surrogates learn from, none of the seeds that are compared

SURROGATES = {
    "reloss": {"architecture": "margin"},
    "twin": {"architecture": "margin"},  # the same before anything is learned
    "paper": {"architecture": "paper"},
}
BASELINES = ("cross_entropy", "label_smoothing")
LOSSES = (*BASELINES, *SURROGATES, "auto")
DEFAULT_LOSSES = ("cross_entropy", "label_smoothing", "reloss", "twin", "paper", "auto")


def accuracy(evaluation: Any) -> dict[str, float]:
    return {"accuracy": load_metric("accuracy").compute(evaluation.predictions, evaluation.label_ids)}


def train_and_score(task: Task, seed: int, trainer_class: type[Trainer] = Trainer, **options: Any) -> float:
    """Accuracy in points after one training run."""
    recipe = task.recipe | options.pop("recipe", {})
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, seed=seed, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False, **recipe,
        )  # fmt: skip
        set_seed(seed)
        trainer = trainer_class(
            model=task.make_model(), args=args, train_dataset=task.train, eval_dataset=task.evaluation,
            compute_metrics=accuracy, **task.trainer_options, **options,
        )  # fmt: skip
        trainer.pop_callback(PrinterCallback)
        trainer.train()
        return 100 * trainer.evaluate()["eval_accuracy"]


def run(name: str, split: str, loss: str, seed: int, surrogates: str) -> float:
    """One run in a process of its own."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task = TASKS[name](split)
    if loss == "cross_entropy":
        return train_and_score(task, seed)
    if loss == "label_smoothing":
        return train_and_score(task, seed, recipe={"label_smoothing_factor": 0.1})
    if loss == "auto":
        return train_and_score(task, seed, ReLossTrainer, surrogate="auto", metric="accuracy")
    return train_and_score(task, seed, ReLossTrainer, surrogate=AutoSurrogate.from_pretrained(Path(surrogates) / loss))


def learn_surrogates(name: str, split: str, losses: list[str], folder: str) -> dict[str, dict[str, Any]]:
    """Records a run of the twin, learns each surrogate from it, saves them, and returns their records."""
    task = TASKS[name](split)
    recorder = PredictionRecorder()
    twin = SurrogateForClassification(SurrogateConfig())
    train_and_score(task, RECORDING_SEED, ReLossTrainer, surrogate=twin, callbacks=[recorder])
    records = {}
    for loss in losses:
        set_seed(RECORDING_SEED)
        surrogate = SurrogateForClassification(SurrogateConfig(**SURROGATES[loss]))
        # A surrogate is its twin as long as it has not been trained; one epoch of nothing measures its alignment.
        settings = {"learning_rate": 0.0, "num_train_epochs": 1} if loss == "twin" else {}
        with tempfile.TemporaryDirectory() as checkpoints:
            args = SurrogateTrainingArguments(checkpoints, disable_tqdm=True, logging_strategy="no", **settings)
            trainer = SurrogateTrainer(surrogate, args, train_dataset=recorder.dataset(), metric="accuracy")
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
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(DEFAULT_LOSSES))
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 to this less one")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="validation is for tuning")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time, of one thread each")
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/quality_TASK_SPLIT.json")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = options.output or RESULTS / f"quality_{options.task}_{options.split}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"accuracy": {}, "surrogates": {}}
    scores = {loss: {int(s): v for s, v in runs.items()} for loss, runs in stored["accuracy"].items()}

    with tempfile.TemporaryDirectory() as folder:
        needed = [loss for loss in options.losses if loss in SURROGATES]
        if any(seed not in scores.get(loss, {}) for loss in needed for seed in range(options.seeds)):
            stored["surrogates"] |= learn_surrogates(options.task, options.split, needed, folder)
        jobs = [
            (loss, seed) for seed in range(options.seeds) for loss in options.losses if seed not in scores.get(loss, {})
        ]
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            runs = {pool.submit(run, options.task, options.split, *job, folder): job for job in jobs}
            for finished in tqdm(as_completed(runs), total=len(runs), desc=options.task):
                loss, seed = runs[finished]
                scores.setdefault(loss, {})[seed] = finished.result()
                _store(path, stored, options, scores)
    _store(path, stored, options, scores)
    alignments = {loss: record["alignment"] for loss, record in stored["surrogates"].items()}
    for record in stored["surrogates"].values():
        alignments["cross_entropy"] = record["alignment_cross_entropy"]
    shown = {loss: scores[loss] for loss in LOSSES if loss in scores}
    title = f"{options.task}, {options.split}"
    Console().print(comparison_table(shown, "cross_entropy", title=title, metric="accuracy", alignments=alignments))


def _store(
    path: Path, stored: dict[str, Any], options: argparse.Namespace, scores: dict[str, dict[int, float]]
) -> None:
    baseline = scores.get("cross_entropy", {})
    result = {
        "task": options.task,
        "split": options.split,
        "command": f"python benchmarks/quality.py {options.task} --split {options.split} --seeds {options.seeds}",
        "environment": environment(),
        "recording_seed": RECORDING_SEED,
        "surrogates": stored["surrogates"],
        "accuracy": {loss: dict(sorted(scores[loss].items())) for loss in LOSSES if loss in scores},
        "over_cross_entropy": {
            loss: paired_difference(scores[loss], baseline)._asdict()
            for loss in LOSSES
            if loss in scores and loss != "cross_entropy" and baseline.keys() & scores[loss].keys()
        },
    }
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
