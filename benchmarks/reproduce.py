"""Stored results are made again, one run of each kind, and compared with what is stored.

    HF_RELOSS_DATA=... python benchmarks/reproduce.py

On the kind of processor that a result was made on it comes out to the digit; elsewhere floating point differs, and a
run with it. What "auto" learns is limited by time, so that it need not be the same. The outcome is stored in
benchmarks/results/reproduced.json.
"""

import argparse
import collections
import json
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import baselines
import fit
import metric_learning
import quality
import torch
import unfitted
from quality import RESULTS
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.stored_results import write_atomically


def stored(file: str) -> Any:
    return json.loads((RESULTS / f"{file}.json").read_text())


def of_quality(task: str, loss: str, seed: int = 0) -> tuple[dict[str, float], dict[str, float]]:
    """What is stored of a run of quality.py, and what comes out now."""
    with tempfile.TemporaryDirectory() as folder:
        if loss in quality.LEARNED:
            quality.learn_surrogates(task, "test", [loss], folder)
        found = quality.run(task, "test", loss, seed, folder)
    scores = stored(f"quality_{task}_test")["scores"]
    return {measure: scores[measure][loss][str(seed)] for measure in found}, found


def of_baselines(task: str, loss: str, seed: int = 0) -> tuple[float, float]:
    """The same of baselines.py."""
    result = stored(f"baselines_{task}")
    key = next(key for key in result["runs"]["test"] if key.split()[:2] == [loss, str(seed)])
    return result["runs"]["test"][key], baselines.run(task, "test", loss, seed, float(key.split()[2]), "", {})


def of_unfitted(task: str, way: str, seed: int = 0) -> tuple[float, float]:
    """The same of unfitted.py."""
    return stored("unfitted")["scores"][task][way][str(seed)], unfitted.score(task, way, seed)


def of_metric_learning(loss: str, seed: int = 0) -> tuple[float, float]:
    """The same of metric_learning.py."""
    result, comparison = stored("metric_learning"), metric_learning.Comparison()
    found = comparison.run(loss, seed, result["learning_rates"][loss], comparison.test)
    return result["scores"][loss][str(seed)], found


def of_fit(task: str, images: int, seed: int = 0) -> tuple[dict[str, float], dict[str, float]]:
    """The same of fit.py, for cross-entropy."""
    rate = stored(f"baselines_{task}")["learning_rates"]["cross_entropy"]
    found = fit.run(task, images, "cross_entropy", seed, {"learning_rate": rate}, "")
    return stored(f"fit_{task}")["runs"][f"cross_entropy {images} {seed}"], found


RUNS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "quality, Fashion-MNIST, cross-entropy": (of_quality, ("fashion_mnist", "cross_entropy")),
    "quality, Fashion-MNIST, ReLoss": (of_quality, ("fashion_mnist", "reloss")),
    "quality, imbalanced Fashion-MNIST, ReLoss": (of_quality, ("fashion_mnist_imbalanced", "reloss")),
    "baselines, HWU64, focal": (of_baselines, ("hwu64_frozen", "focal")),
    "baselines, HWU64, soft F1": (of_baselines, ("hwu64_frozen", "soft_f1")),
    "unfitted, digits, soft metric": (of_unfitted, ("digits, 6 epochs", "soft_metric")),
    "unfitted, digits, auto": (of_unfitted, ("digits, 6 epochs", "auto")),
    "metric learning, triplet": (of_metric_learning, ("triplet",)),
    "fit, Fashion-MNIST, 1,500 images": (of_fit, ("fashion_mnist", 1_500)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = RESULTS / "reproduced.json"
    done: dict[str, Any] = {}

    def run(name: str) -> dict[str, Any]:
        function, arguments = RUNS[name]
        before, now = function(*arguments)
        return {"stored": before, "now": now}

    def store() -> None:
        about = {"command": "python benchmarks/reproduce.py", "environment": environment()}
        write_atomically(path, json.dumps(about | {"runs": done}, indent=2) + "\n")

    left: Iterator[str] = make_runs({name: (name,) for name in options.runs}, run, done, store)
    collections.deque(tqdm(left, total=len(options.runs)), maxlen=0)
    table = Table("run", "stored", "now", "the same")
    for name, found in done.items():
        table.add_row(name, str(found["stored"]), str(found["now"]), "yes" if found["stored"] == found["now"] else "NO")
    Console().print(table)


if __name__ == "__main__":
    main()
