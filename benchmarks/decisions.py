"""What tuning the decision gains: models that were trained on cross-entropy decide by the metric.

    HF_RELOSS_DATA=... python benchmarks/decisions.py

A rule is tuned by the metric on 500, or all 2,000, examples of development data, and judged on test examples: as it is
kept, if it gains on examples that it was not fitted on, and, "unguarded", the rule of expected credit whether or not it
does. Beside them logit adjustment after training (Menon et al. 2021), which is given the frequencies of the training
data. Pairs of data and metric are those of benchmarks/pairs.py. Results are stored after each run in
benchmarks/results/decisions.json, and runs found there are not repeated.
"""

import tempfile
from typing import Any

import numpy as np
import torch
from paired import Scores, arguments, stored_runs
from pairs import CLASS_PAIRS
from rich.console import Console
from transformers import PrinterCallback, Trainer, set_seed
from transformers.utils import logging

from hf_reloss.compare.statistics import comparison_table, paired_difference
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
    options = arguments(__doc__, TRIED, "decisions.json").parse_args()
    jobs = {f"{name} {seed}": (name, seed) for name in options.pairs for seed in range(options.seeds)}
    found = scores(stored_runs("decisions.py", jobs, run, options, summary))
    for name in options.pairs:
        Console().print(comparison_table(found[name], "argmax", title=name, metric=CLASS_PAIRS[name]().metric.name))


def scores(done: dict[str, dict[str, float]]) -> Scores:
    """What is stored, by way to decide."""
    found: Scores = {name: {} for name in TRIED}
    for key, measured in done.items():
        name, _, seed = key.rpartition(" ")
        for way, value in measured.items():
            found[name].setdefault(way, {})[int(seed)] = value
    return found


def summary(done: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The paired differences to argmax."""
    return {
        "over_argmax": {
            name: {way: paired_difference(of, of_ways["argmax"])._asdict() for way, of in of_ways.items()}
            for name, of_ways in scores(done).items()
            if len(of_ways.get("argmax", {})) > 1
        }
    }


if __name__ == "__main__":
    main()
