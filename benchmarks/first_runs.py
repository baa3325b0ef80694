"""First runs, as newcomers make them: little data, few steps, models from scratch, learning rates that are not tuned.

    HF_RELOSS_DATA=... python benchmarks/first_runs.py --seeds 3

Each is trained twice from the same seed, with Trainer and with ReLossTrainer(surrogate="auto") and no other argument of
this library than the metric, and both are scored on the same held-out examples. Results are stored after each pair of
runs in benchmarks/results/first_runs.json, and pairs that are found there are not repeated.
"""

import argparse
import collections
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from first_run_examples import EXAMPLES
from first_run_tasks import FIRST_RUNS, FirstRun
from quality import RESULTS
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from hf_reloss import ReLossSeq2SeqTrainer, ReLossTrainer
from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.statistics import paired_difference
from hf_reloss.compare.stored_results import write_atomically
from hf_reloss.learning.time_limit import Stopwatch

RUNS = FIRST_RUNS | EXAMPLES


class _Pauses(TrainerCallback):
    """What the pauses between two steps took together, in which surrogates are learned, in seconds of this process."""

    def __init__(self):
        self.seconds, self.watch = 0.0, None

    def on_step_end(self, args, state, control, **kwargs):
        self.watch = Stopwatch()

    def on_step_begin(self, args, state, control, **kwargs):
        self.seconds += self.watch.seconds() if self.watch else 0.0


def train(run: FirstRun, auto: bool, seed: int) -> dict[str, Any]:
    """What comes out of a run: the metric, in points; eval_loss; its seconds, and those of its pauses; a verdict."""
    torch.set_num_threads(1)
    kinds = ((Trainer, ReLossTrainer), (Seq2SeqTrainer, ReLossSeq2SeqTrainer))[run.writes]
    arguments = Seq2SeqTrainingArguments if run.writes else TrainingArguments
    options = run.options | ({"surrogate": "auto", "metric": run.metric} if auto else {})
    quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "report_to": "none"}
    quiet |= {"use_cpu": True, "dataloader_pin_memory": False, "per_device_eval_batch_size": 50, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, **run.arguments | quiet | ({"predict_with_generate": True} if run.writes else {}))
        set_seed(seed)
        pauses, began = _Pauses(), time.monotonic()
        trainer = kinds[auto](
            run.model(), args, train_dataset=run.train, eval_dataset=run.dev, callbacks=[pauses], **options
        )
        trainer.pop_callback(PrinterCallback)
        trainer.train()
        seconds = time.monotonic() - began
        found = trainer.predict(run.dev)
        # The model's own loss by the same ruler: a plain Trainer's, whatever it was trained with.
        ruler = TrainingArguments(folder, **quiet)
        loss = Trainer(trainer.model, ruler, data_collator=trainer.data_collator).predict(run.dev).metrics["test_loss"]
    predictions = found.predictions
    if isinstance(predictions, tuple) and not str(run.metric).startswith("squad"):
        predictions = predictions[0]
    measured = {"metric": run.score(predictions, found.label_ids), "loss": loss}
    measured |= {"seconds": seconds, "learning seconds": pauses.seconds}
    return measured | ({"verdict": trainer.loss_report.verdict} if auto else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to this less one")
    parser.add_argument("--output", type=Path, default=RESULTS / "first_runs.json")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    stored = json.loads(options.output.read_text()) if options.output.exists() else {"runs": {}}
    kinds = {name: RUNS[name]() for name in options.runs}
    jobs = {
        (name, way, str(seed)): (kinds[name], way == "auto", seed)
        for name in options.runs
        for seed in range(options.seeds)
        for way in ("usual", "auto")
    }
    done = {
        (name, way, seed): measured
        for name, of_run in stored["runs"].items()
        for way in ("usual", "auto")
        for seed, measured in of_run[way].items()
    }

    def store() -> None:
        for (name, way, seed), measured in done.items():
            stored["runs"].setdefault(name, {"usual": {}, "auto": {}})[way][seed] = measured
        for of_run in stored["runs"].values():
            scores = [{int(seed): found["metric"] for seed, found in of_run[way].items()} for way in ("auto", "usual")]
            if len(scores[0].keys() & scores[1].keys()) > 1:
                of_run["over"] = paired_difference(*scores)._asdict()
        stored["command"] = f"python benchmarks/first_runs.py --seeds {options.seeds}"
        stored["environment"] = environment()
        write_atomically(options.output, json.dumps(stored, indent=2) + "\n")

    collections.deque(tqdm(make_runs(jobs, train, done, store), total=len(jobs.keys() - done.keys())), maxlen=0)
    table = Table("first run", "usual loss", "auto", "difference [95 %]", "eval_loss, usual", "auto", "learning, s")
    for name in options.runs:
        of_run = stored["runs"][name]
        mean = {
            (way, what): float(np.mean([found[what] for found in of_run[way].values()]))
            for way in ("usual", "auto")
            for what in ("metric", "loss", "learning seconds")
        }
        scores = [{int(seed): found["metric"] for seed, found in of_run[way].items()} for way in ("auto", "usual")]
        table.add_row(
            name.replace("_", " "), f"{mean['usual', 'metric']:.2f}", f"{mean['auto', 'metric']:.2f}",
            str(paired_difference(*scores)), f"{mean['usual', 'loss']:.3f}", f"{mean['auto', 'loss']:.3f}",
            f"{mean['auto', 'learning seconds']:.1f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
