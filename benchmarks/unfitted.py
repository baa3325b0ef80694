"""What "auto" does where a model does not fit its data: too few epochs, too low a learning rate, too small a model.

    HF_RELOSS_DATA=... python benchmarks/unfitted.py

Cross-entropy, the soft metric from a tenth of the run on (nothing learned; from a half for macro-F1, where the
loss is that of a group), and "auto" with its defaults, on paired seeds: scikit-learn's digits at a tenth of the best
learning rate, trained for 3, 6, 10 and 30 epochs; 10,000 images of CIFAR-10, which a small ResNet fits to 77 %; and
imbalanced Fashion-MNIST. Each at the learning rate of its recipe, which was chosen for cross-entropy; nothing is tuned.
Results are stored after each run in benchmarks/results/unfitted.json, and runs found there are not repeated.
"""

import argparse
import collections
import json
from pathlib import Path
from typing import Any

import torch
from quality import RESULTS, train_and_score
from rich.console import Console
from task import Task
from tasks import TASKS
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.utils import logging

from hf_reloss import ReLossTrainer
from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.statistics import comparison_table, paired_difference
from hf_reloss.compare.stored_results import write_atomically
from hf_reloss.compare.task import DigitClassifier, digits

WAYS = ("cross_entropy", "soft_metric", "auto")


def digits_task(epochs: int) -> Task:
    """Digits at a learning rate of 1e-3, where 1e-2 is the best for cross-entropy."""
    train, test = digits()
    recipe = {"num_train_epochs": epochs, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 500}
    return Task(train, test, DigitClassifier, recipe | {"learning_rate": 1e-3})


MADE = {f"digits, {epochs} epochs": (lambda epochs=epochs: digits_task(epochs)) for epochs in (3, 6, 10, 30)}
MADE |= {name: (lambda name=name: TASKS[name]("test")) for name in ("cifar10", "fashion_mnist_imbalanced")}
SEEDS = {"cifar10": 2, "fashion_mnist_imbalanced": 3}
"""Paired seeds, 5 where nothing else is said."""


def score(name: str, way: str, seed: int) -> float:
    """A task's metric after a run, in points."""
    task = MADE[name]()
    options: dict[str, Any] = {}
    recipe: dict[str, Any] = {"use_cpu": not torch.cuda.is_available()}
    if way == "auto":
        options = {"surrogate": "auto", "metric": task.metric}
        recipe["surrogate_warmup"] = None
    elif way == "soft_metric":
        options = {"surrogate": task.kind.for_metric(task.metric)}
        recipe["surrogate_warmup"] = 0.5 if options["surrogate"].network.is_of_groups() else 0.1
    trainer = ReLossTrainer if options else Trainer
    return next(iter(train_and_score(task, seed, trainer, recipe=recipe, **options).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=MADE, default=list(MADE))
    parser.add_argument("--output", type=Path, default=RESULTS / "unfitted.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    stored = json.loads(options.output.read_text()) if options.output.exists() else {"scores": {}, "over": {}}
    jobs = {
        (name, way, str(seed)): (name, way, seed)
        for name in options.tasks
        for seed in range(SEEDS.get(name, 5))
        for way in WAYS
    }
    done = {
        (name, way, seed): found
        for name, scores in stored["scores"].items()
        for way, of_way in scores.items()
        for seed, found in of_way.items()
    }

    def store() -> None:
        for (name, way, seed), found in done.items():
            stored["scores"].setdefault(name, {way: {} for way in WAYS})[way][seed] = found
        stored["over"] = {
            name: {
                way: paired_difference(scores[way], scores[WAYS[0]])._asdict()
                for way in WAYS[1:]
                if len(scores[way].keys() & scores[WAYS[0]].keys()) > 1
            }
            for name, scores in stored["scores"].items()
        }
        stored["command"], stored["environment"] = "python benchmarks/unfitted.py", environment()
        write_atomically(options.output, json.dumps(stored, indent=2) + "\n")

    collections.deque(tqdm(make_runs(jobs, score, done, store), total=len(jobs.keys() - done.keys())), maxlen=0)
    for name in options.tasks:
        Console().print(comparison_table(stored["scores"][name], WAYS[0], title=name, metric=MADE[name]().metric.name))


if __name__ == "__main__":
    main()
