"""How well surrogates rank groups of predictions as their metrics do, beside cross-entropy.

    HF_RELOSS_DATA=... python benchmarks/alignment.py

One run of MiniLM on HWU64, on cross-entropy, is recorded; from that, for each metric and seed, groups are drawn, a
surrogate is learned, and alignment is measured on groups of held-out predictions: of the learned surrogate, of the soft
metric (before anything is learned) and of cross-entropy; as they are used, and on evidence of one scale ("canonical"),
in which form surrogates are learned. Writes benchmarks/results/alignment_hwu64.json.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from quality import RECORDING_SEED, RESULTS, train_and_score
from rich.console import Console
from rich.table import Table
from tasks import TASKS
from tqdm.auto import tqdm
from transformers import Trainer, set_seed
from transformers.utils import logging

from hf_reloss import (
    PredictionRecorder,
    SurrogateForClassification,
    load_metric,
)
from hf_reloss.compare.runs import environment
from hf_reloss.compare.statistics import paired_difference
from hf_reloss.learning.learn_surrogate import learn_surrogate

LOSSES = ("learned", "unlearned", "cross_entropy")
FORMS = ("", "_canonical")  # the loss as it is used, and on evidence of one scale


def of_the_scenario(names: list[str]) -> Any:
    """A metric of one's own: 1 for the right intent, 1/2 for another of its scenario (of alarm_set, alarm)."""
    scenarios = np.unique([name.split("_")[0] for name in names], return_inverse=True)[1]

    def half_right(predictions: np.ndarray, references: np.ndarray) -> float:
        return np.mean(
            np.where(predictions == references, 1.0, 0.5 * (scenarios[predictions] == scenarios[references]))
        )

    return half_right


def alignments(predictions: Any, metric: Any, seed: int, learn: bool) -> dict[str, float]:
    """Of a surrogate, and of cross-entropy on the same groups."""
    set_seed(seed)
    surrogate = SurrogateForClassification.for_metric(metric)
    # One epoch at a learning rate of 0 measures the soft metric.
    settings = {} if learn else {"learning_rate": 0.0, "num_train_epochs": 1}
    learn_surrogate(surrogate, predictions, metric, seed=seed, min_alignment=-1.0, **settings)
    record = surrogate.config.record
    name = "learned" if learn else "unlearned"
    return {
        name: record["alignment"],
        f"{name}_canonical": record["alignment_canonical"],
        "cross_entropy": record["alignment_cross_entropy"],
        "cross_entropy_canonical": record["alignment_cross_entropy_canonical"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this less one")
    parser.add_argument("--output", type=Path, default=RESULTS / "alignment_hwu64.json")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(2)
    task = TASKS["hwu64"]("validation")
    recorder = PredictionRecorder()
    train_and_score(task, RECORDING_SEED, Trainer, callbacks=[recorder])
    predictions = recorder.dataset()
    metrics = {
        "accuracy": load_metric("accuracy"),
        "macro-F1": load_metric("f1", average="macro"),
        "Matthews correlation": load_metric("matthews_correlation"),
        "a function of one's own": load_metric(of_the_scenario(task.class_names)),
    }
    measured: dict[str, dict[str, dict[int, float]]] = {}
    with tqdm(total=len(metrics) * options.seeds * 2) as bar:
        for name, metric in metrics.items():
            losses = measured[name] = {loss + form: {} for loss in LOSSES for form in FORMS}
            for seed in range(options.seeds):
                for learn in (False, True):
                    for loss, alignment in alignments(predictions, metric, seed, learn).items():
                        losses[loss][seed] = alignment
                    bar.update()
    result = {
        "task": "hwu64",
        "command": f"python benchmarks/alignment.py --seeds {options.seeds}",
        "environment": environment(),
        "recording_seed": RECORDING_SEED,
        "predictions": len(predictions),
        "alignment": measured,
        "over_cross_entropy": {
            name: {
                loss + form: paired_difference(losses[loss + form], losses["cross_entropy" + form])._asdict()
                for loss in LOSSES[:-1]
                for form in FORMS
            }
            for name, losses in measured.items()
        },
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    table = Table(
        "metric", *(loss + form for loss in LOSSES for form in FORMS), title="alignment on held-out groups, HWU64"
    )
    for name, losses in measured.items():
        table.add_row(name, *(f"{fmean(values.values()):.4f}" for values in losses.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
