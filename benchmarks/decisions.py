"""What tuning the decision gains: models that were trained on cross-entropy decide by the metric.

    HF_RELOSS_DATA=... python benchmarks/decisions.py

A rule is tuned by the metric on 500, or all 2,000, examples of development data, and judged on test examples: as it is
kept, if it gains on examples that it was not fitted on, and, "unguarded", the rule of expected credit whether or not it
does. Beside them logit adjustment after training (Menon et al. 2021), which is given the frequencies of the training
data. Pairs of data and metric are those of benchmarks/pairs.py. Results are stored after each run in
benchmarks/results/decisions.json, and runs found there are not repeated.
"""

import argparse
import collections
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from pairs import CLASS_PAIRS
from quality import RESULTS
from rich.console import Console
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, set_seed
from transformers.utils import logging

from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.statistics import comparison_table, paired_difference
from hf_reloss.compare.stored_results import write_atomically
from hf_reloss.decisions.tuning import tune_decision

TRIED = (
    *("fashion_macro_f1", "fashion_accuracy", "hwu64_macro_f1", "clinc150_macro_f1", "sick_kappa"),
    *("hwu64_class_costs", "hwu64_pair_costs", "hwu64_hand_over"),
)
"""The pairs."""

SIZES = (500, 2_000)


def run(name: str, seed: int) -> dict[str, float]:
    """The metric on test data, in points, of the ways to decide, for one model."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pair = CLASS_PAIRS[name]()
    with tempfile.TemporaryDirectory() as folder:
        args = pair.arguments(folder, seed)
        set_seed(seed)
        trainer = Trainer(pair.make_model(), args, train_dataset=pair.train)
        trainer.pop_callback(PrinterCallback)
        trainer.train()
        parts = {name: trainer.predict(getattr(pair, name)) for name in ("development", "test")}
    logits, labels = (torch.from_numpy(np.asarray(part)) for part in parts["test"][:2])
    held_out = [torch.from_numpy(np.asarray(part)) for part in parts["development"][:2]]
    order = torch.randperm(len(held_out[1]), generator=torch.Generator().manual_seed(0))
    frequencies = torch.bincount(_labels(pair.train), minlength=logits.shape[-1]).double() + 1
    decided = {"argmax": logits.argmax(-1), "logit adjustment": (logits - frequencies.log()).argmax(-1)}
    for size in SIZES:
        found = tune_decision(held_out[0][order[:size]], held_out[1][order[:size]], pair.metric)
        decided[f"with {size}"] = logits.argmax(-1) if found.rule is None else found.rule.decide(logits)
        decided[f"with {size}, unguarded"] = found.fitted.decide(logits)
    return {way: 100 * float(pair.metric.compute(chosen, labels)) for way, chosen in decided.items()}


def _labels(data: torch.utils.data.Dataset) -> torch.Tensor:
    return torch.stack([torch.as_tensor(data[row]["labels"]) for row in range(len(data))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=CLASS_PAIRS, default=list(TRIED))
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
            for name in TRIED
            if len(scores(name).get("argmax", {})) > 1
        }
        write_atomically(options.output, json.dumps(stored, indent=2) + "\n")

    left = make_runs(jobs, run, done, store, workers=options.workers)
    collections.deque(tqdm(left, total=len(jobs.keys() - done.keys())), maxlen=0)
    for name in options.tasks:
        Console().print(comparison_table(scores(name), "argmax", title=name, metric=CLASS_PAIRS[name]().metric.name))


if __name__ == "__main__":
    main()
