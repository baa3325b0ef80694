"""What tuning the decision gains: models that were trained on cross-entropy decide by offsets of their classes.

    HF_RELOSS_DATA=... python benchmarks/decisions.py

Offsets are fitted by the task's metric on 500, or 2,000, validation examples, and judged on test examples: as they are
kept, if they gain on examples that they were not fitted on, and whether or not they do. Beside them logit adjustment
after training (Menon et al. 2021), which is told the frequencies of the training data. Results are stored after each
run in benchmarks/results/decisions.json, and runs found there are not repeated.
"""

import argparse
import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from quality import RESULTS, train_and_score
from rich.console import Console
from tasks import TASKS
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.statistics import comparison_table, paired_difference
from hf_reloss.compare.stored_results import write_atomically
from hf_reloss.decisions.offsets import ClassOffsets
from hf_reloss.decisions.tuning import tune_decision
from hf_reloss.metrics import load_metric

METRICS = {
    "fashion_mnist_imbalanced": load_metric("f1", average="macro"),
    "fashion_mnist": load_metric("accuracy"),
    "hwu64_frozen": load_metric("f1", average="macro"),
}
"""By which decisions are tuned and judged, by task."""

SIZES = (500, 2_000)


def run(name: str, seed: int) -> dict[str, float]:
    """The metric on test data, in points, of the ways to decide, for one model."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task, metric = TASKS[name]("test"), METRICS[name]
    validation = TASKS[name]("validation").evaluation
    order = torch.randperm(len(validation), generator=torch.Generator().manual_seed(0)).tolist()

    def score(model: nn.Module) -> dict[str, float]:
        logits, labels = _predicted(model, task.evaluation, range(len(task.evaluation)))
        _, seen = _predicted(model, task.train, range(len(task.train)))
        frequencies = torch.bincount(seen, minlength=logits.shape[-1]).double() + 1
        decided = {"argmax": logits.argmax(-1), "logit adjustment": (logits - frequencies.log()).argmax(-1)}
        for size in SIZES:
            held_out = _predicted(model, validation, order[:size])
            decided[f"offsets of {size}, unguarded"] = ClassOffsets.fit(*held_out, metric).decide(logits)
            rule = tune_decision(*held_out, metric).rule
            decided[f"offsets of {size}"] = logits.argmax(-1) if rule is None else rule.decide(logits)
        return {way: 100 * float(metric.compute(chosen, labels)) for way, chosen in decided.items()}

    return train_and_score(dataclasses.replace(task, score=score), seed)


@torch.no_grad()
def _predicted(model: nn.Module, data: Any, rows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, C] and labels [n] of some examples."""
    model.eval()
    logits, labels = [], []
    for batch in torch.utils.data.DataLoader(torch.utils.data.Subset(data, list(rows)), 500):
        labels.append(batch.pop("labels"))
        logits.append(model(**batch).logits)
    return torch.cat(logits), torch.cat(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=METRICS, default=list(METRICS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this less one")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time, of one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS / "decisions.json")
    options = parser.parse_args()
    stored = json.loads(options.output.read_text()) if options.output.exists() else {"runs": {}}
    done: dict[str, dict[str, float]] = stored["runs"]
    jobs = {f"{name} {seed}": (name, seed) for name in options.tasks for seed in range(options.seeds)}

    def scores(name: str) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        for key, measured in done.items():
            task, _, seed = key.rpartition(" ")
            for way, value in measured.items() if task == name else ():
                found.setdefault(way, {})[int(seed)] = value
        return found

    def store() -> None:
        stored["command"], stored["environment"] = "python benchmarks/decisions.py", environment()
        stored["over_argmax"] = {
            name: {way: paired_difference(of, scores(name)["argmax"])._asdict() for way, of in scores(name).items()}
            for name in METRICS
            if len(scores(name).get("argmax", {})) > 1
        }
        write_atomically(options.output, json.dumps(stored, indent=2) + "\n")

    left = make_runs(jobs, run, done, store, workers=options.workers)
    collections.deque(tqdm(left, total=len(jobs.keys() - done.keys())), maxlen=0)
    for name in options.tasks:
        Console().print(comparison_table(scores(name), "argmax", title=name, metric=METRICS[name].name))


if __name__ == "__main__":
    main()
