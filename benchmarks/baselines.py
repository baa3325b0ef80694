"""All ways to train for a metric, compared with equal tuning: losses × paired seeds, each at its own learning rate.

    HF_RELOSS_DATA=... python benchmarks/baselines.py fashion_mnist --seeds 5

Each loss gets the same small grid of learning rates, half, once and twice that of the task's recipe, two seeds on
validation data, and keeps the best; then it runs on test data. Group losses and those that are learned in the run start
after the same first stretch on cross-entropy. Adaptive loss alignment reads some of the validation data on which all
are tuned, and starts after half of the run; its controller has learned in runs of other seeds before, as surrogates
have, or, `ala_transferred`, on another task. Results are stored after each run, in
benchmarks/results/baselines_TASK.json, and runs found there are not repeated.
"""

import argparse
import collections
import functools
import json
import os
import socket
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from quality import LEARNED, RESULTS, learn_surrogates, train_and_score
from rich.console import Console
from task import Task
from tasks import TASKS
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_reloss import (
    AdaptiveLossTrainer,
    AutoSurrogate,
    LossController,
    LossControllerConfig,
    ReLossTrainer,
    hand_made_loss,
    hand_made_losses,
)
from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.statistics import comparison_table, paired_difference
from hf_reloss.compare.stored_results import write_atomically
from hf_reloss.predictions.dataset import part_of

FACTORS = (0.5, 1.0, 2.0)
"""Of the recipe's learning rate."""

TUNING_SEEDS = (100, 101)
"""None of those that are compared."""

GENERATIONS = (2_000, 2_010, 2_020)
"""Seeds of the runs in which the controller learns, before any that is compared."""

CHILDREN = 2
"""How many models share the controller in each of these."""

READ = 1_000
"""Of how many validation examples the controller reads, at most."""

HALF = "_auto"
"""Behind a hand-made loss: first that alone, then half of it and half of a surrogate that is learned in the run."""

BESIDE_OWN = "_half"
"""Behind any loss: half of that, half of the model's own, cross-entropy."""

TRANSFERRED_FROM = "fashion_mnist"
"""The task on which the controller of `ala_transferred` has learned."""

FOR_ACCURACY = (
    *("cross_entropy", "label_smoothing", "focal", "poly1", "soft_f1", "lovasz", "auc_margin", "smooth_ap"),
    *("ala", "ala_transferred", "approximation", "unlearned", "reloss", "auto"),
)
FOR_F1 = ("cross_entropy", "class_weights", "logit_adjustment", *FOR_ACCURACY[1:], "logit_adjustment_auto")


def run(name: str, split: str, loss: str, seed: int, factor: float, surrogates: str, more: dict[str, Any]) -> float:
    """What the task measures first, in points, of one run in a process of its own."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task = TASKS[name](split)
    recipe: dict[str, Any] = {"learning_rate": factor * task.recipe["learning_rate"]} | more
    if loss.endswith(BESIDE_OWN):
        loss, recipe["model_loss_share"] = loss.removesuffix(BESIDE_OWN), 0.5
    if loss == "cross_entropy":
        return _first(train_and_score(task, seed, recipe=recipe))
    if loss in ("auto", "approximation"):
        options = {"surrogate": loss, "metric": task.metric}
    elif loss.endswith(HALF):
        own = hand_made_loss(loss.removesuffix(HALF), task.train.labels)
        options = {"surrogate": "auto", "metric": task.metric, "compute_loss_func": lambda out, of, **_: own(out, of)}
        recipe["model_loss_share"] = 0.5
    elif loss.startswith("ala"):
        controller = LossController.from_pretrained(Path(surrogates) / loss)
        return _first(train_adaptively(name, split, seed, controller, recipe))
    elif loss in LEARNED:
        options = {"surrogate": AutoSurrogate.from_pretrained(Path(surrogates) / loss)}
        recipe["surrogate_warmup"] = _warmup(task, options["surrogate"].network.is_of_groups())
    else:
        options = {"surrogate": loss}
        recipe["surrogate_warmup"] = _warmup(task, hand_made_losses()[loss].is_of_groups())
    return _first(train_and_score(task, seed, ReLossTrainer, recipe=recipe, **options))


def train_adaptively(
    name: str, split: str, seed: int, controller: LossController, recipe: dict[str, Any]
) -> dict[str, float]:
    """What a task measures after a run on a loss that a controller adapts, by some of the task's validation data."""
    task = TASKS[name](split)
    validation = TASKS[name]("validation").evaluation
    rows = torch.linspace(0, len(validation) - 1, min(READ, len(validation))).long().tolist()
    options = {"surrogate": controller, "metric": task.metric, "validation_dataset": part_of(validation, rows)}
    return train_and_score(task, seed, AdaptiveLossTrainer, recipe=recipe, **options)


def learn_controller(name: str, folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """A controller that has learned in some runs, saved in a folder; and how those came out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_child, (port, name, folder, recipe), nprocs=CHILDREN, start_method="spawn")
    runs = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(CHILDREN)]
    return {"runs": runs, "step_size": LossControllerConfig().step_size}


def _child(rank: int, port: int, name: str, folder: Path, recipe: dict[str, Any]) -> None:
    """One of the models that share a controller while it learns."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(CHILDREN), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(GENERATIONS[0])
    controller = LossController(LossControllerConfig())
    recipe = recipe | {"adapt_children": True}
    runs = [_first(train_adaptively(name, "validation", seed + rank, controller, recipe)) for seed in GENERATIONS]
    (folder / f"{rank}.json").write_text(json.dumps(runs))
    if rank == 0:
        controller.save_pretrained(folder)


def _warmup(task: Task, of_groups: bool) -> float:
    """Share of the run on cross-entropy: group losses are flat where everything is wrong."""
    return (task.warmup or 0.1) if of_groups else 0.0


def _first(measured: dict[str, float]) -> float:
    return next(iter(measured.values()))


class Runs:
    """Runs that are done once, two at a time, and stored as they end."""

    def __init__(self, path: Path, name: str, workers: int, recipe: dict[str, Any]):
        self.path, self.name, self.workers, self.recipe = path, name, workers, recipe
        stored = json.loads(path.read_text()) if path.exists() else {}
        self.done: dict[str, dict[str, float]] = stored.get("runs", {"validation": {}, "test": {}})
        self.surrogates: dict[str, Any] = stored.get("surrogates", {})
        self.environment: dict[str, str] = stored.get("environment", {})

    def do(self, split: str, jobs: list[tuple[str, int, float]]) -> None:
        """Runs of (loss, seed, factor)."""
        jobs = [job for job in jobs if _key(*job) not in self.done[split]]
        if jobs:
            self.environment = environment()
        used = {loss.removesuffix(BESIDE_OWN) for loss, _, _ in jobs}
        needed = [loss for loss in LEARNED if loss in used]
        with tempfile.TemporaryDirectory() as folder:
            for loss, task in (("ala", self.name), ("ala_transferred", TRANSFERRED_FROM)):
                if loss in used:
                    (Path(folder) / loss).mkdir()
                    self.surrogates[loss] = {"task": task} | learn_controller(task, Path(folder) / loss, self.recipe)
            if needed:
                self.surrogates |= learn_surrogates(self.name, split, needed, folder)
            calls = {_key(*job): (self.name, split, *job, folder, self.recipe) for job in jobs}
            store = functools.partial(self.store, {})
            left = make_runs(calls, run, self.done[split], store, workers=self.workers)
            collections.deque(tqdm(left, total=len(calls), desc=f"{self.name}, {split}"), maxlen=0)

    def best(self, loss: str) -> float:
        """The factor that is best on validation data."""
        means = {
            factor: statistics.fmean(self.done["validation"][_key(loss, seed, factor)] for seed in TUNING_SEEDS)
            for factor in FACTORS
        }
        return max(means, key=means.__getitem__)

    def store(self, result: dict[str, Any]) -> None:
        runs = {split: dict(sorted(of_split.items())) for split, of_split in self.done.items()}
        stored = {
            "task": self.name,
            "command": f"python benchmarks/baselines.py {self.name}" + " --bf16" * bool(self.recipe),
            "environment": self.environment,
            "surrogates": self.surrogates,
            **result,
            "runs": runs,
        }
        write_atomically(self.path, json.dumps(stored, indent=2) + "\n")


def _key(loss: str, seed: int, factor: float) -> str:
    return f"{loss} {seed} {factor}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--losses", nargs="+", help="by default all that fit the task's metric")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this less one")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time, of one thread each")
    parser.add_argument("--bf16", action="store_true", help="models compute in bfloat16: half the time, on most CPUs")
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/baselines_TASK.json")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task = TASKS[options.task]("validation")
    losses = options.losses or (FOR_ACCURACY if task.metric.name == "accuracy" else FOR_F1)
    losses = [loss for loss in losses if loss != "ala_transferred" or options.task != TRANSFERRED_FROM]
    path = options.output or RESULTS / f"baselines_{options.task}.json"
    runs = Runs(
        path,
        options.task,
        options.workers,
        {"bf16": True, "use_cpu": not torch.cuda.is_available()} if options.bf16 else {},
    )
    runs.do("validation", [(loss, seed, factor) for seed in TUNING_SEEDS for loss in losses for factor in FACTORS])
    factors = {loss: runs.best(loss) for loss in losses}
    runs.do("test", [(loss, seed, factors[loss]) for seed in range(options.seeds) for loss in losses])
    scores = {
        loss: {seed: runs.done["test"][_key(loss, seed, factor)] for seed in range(options.seeds)}
        for loss, factor in factors.items()
    }
    over = {
        baseline: {
            loss: paired_difference(scores[loss], scores[baseline])._asdict() for loss in losses if loss != baseline
        }
        for baseline in ("cross_entropy", "unlearned")
        if baseline in scores
    }
    rates = {loss: factor * task.recipe["learning_rate"] for loss, factor in factors.items()}
    measure = next(iter(task.measures))
    runs.store({"measure": measure, "learning_rates": rates, "scores": scores, "over": over})
    title = f"{options.task}, each at its best learning rate"
    if "cross_entropy" in scores:
        Console().print(comparison_table(scores, "cross_entropy", title=title, metric=measure))


if __name__ == "__main__":
    main()
