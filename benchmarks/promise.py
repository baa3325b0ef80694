"""What one changed line does to the metric: "auto" with its defaults, and strict, beside the usual loss, on many pairs.

    HF_RELOSS_DATA=... python benchmarks/promise.py

Each pair of data and metric (benchmarks/pairs.py, task_pairs.py) is trained on the usual loss, on the soft metric
(nothing learned), on the loss that people use in its place, with surrogate="auto" as it comes, and with guard="strict",
on paired seeds. "auto" sees the development data as eval_dataset; what is reported is measured on test data, on which
nothing is chosen.
"usual, decision tuned" is the model of the usual loss that decides as trainer.tune_decision has it. Results are stored
after each run in benchmarks/results/promise.json, and runs found there are not repeated.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from label_pairs import LABEL_PAIRS
from paired import Scores, arguments, stored_runs
from pairs import CLASS_PAIRS, Pair
from ranking_pairs import RANKING_PAIRS
from regression_pairs import REGRESSION_PAIRS
from retrieval_pairs import RETRIEVAL_PAIRS
from rich.console import Console
from rich.table import Table
from segmentation_pairs import SEGMENTATION_PAIRS
from task_pairs import TASK_PAIRS
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from hf_reloss import ReLossTrainer, ReLossTrainingArguments
from hf_reloss.compare.statistics import paired_difference
from hf_reloss.decisions.tuning import tune_decision
from hf_reloss.metrics.credits import judges_decisions

WAYS = ("usual", "soft metric", "field's own", "auto", "auto, strict")
DECIDED = "usual, decision tuned"
OWN_TEXTS = {"minimum risk": "minimum_risk", "policy gradients": "policy"}
"""Ways that compare what a model itself writes, by what `surrogate=` is."""
PAIRS = CLASS_PAIRS | LABEL_PAIRS | RANKING_PAIRS | REGRESSION_PAIRS
PAIRS |= RETRIEVAL_PAIRS | SEGMENTATION_PAIRS | TASK_PAIRS


def run(name: str, way: str, seed: int) -> dict[str, Any]:
    """As `measured`, of a pair by its name."""
    return measured(PAIRS[name], way, seed)


def measured(make_pair: Callable[[], Pair], way: str, seed: int) -> dict[str, Any]:
    """The metric on test data, in points, of one run; with "auto", its verdict and what it cost in steps."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pair = make_pair()
    if way == "field's own" and pair.field_loss is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(pair, way, seed, folder)
        trainer.pop_callback(PrinterCallback)
        trainer.train()
        found: dict[str, Any] = {}
        if pair.score is not None:
            found[way] = pair.score(trainer)
        else:
            logits, labels = _predicted(trainer, pair.test)
            found[way] = 100 * pair.metric.compute(logits, labels)
            if way == "usual" and judges_decisions(pair.metric, logits, labels):
                rule = tune_decision(*_predicted(trainer, pair.development), pair.metric).rule
                decided = logits if rule is None else rule.decide(logits)
                found[DECIDED] = 100 * pair.metric.compute(decided, labels)
        report = getattr(trainer, "loss_report", None)
        if report is not None:
            found |= {"verdict": report.verdict, "cost": report.cost}
    return found


def _trainer(pair: Pair, way: str, seed: int, folder: str) -> Trainer:
    kind: type[Trainer] = Trainer
    options = dict(pair.options)
    recipe: dict[str, Any] = {}
    if way == "soft metric":
        kind, surrogate = ReLossTrainer, pair.kind.for_metric(pair.metric)
        usual = 0.5 if surrogate.network.is_of_groups() else 0.1
        recipe["surrogate_warmup"] = usual if pair.warmup is None else pair.warmup
        recipe["model_loss_share"] = pair.share
        options["surrogate"] = surrogate
    elif way == "field's own":
        assert pair.field_loss is not None
        options["compute_loss_func"] = pair.field_loss(pair)
    elif way.startswith("auto"):
        kind = ReLossTrainer
        options |= {"metric": pair.metric, "guard": "strict" if "strict" in way else True}
    elif way in OWN_TEXTS:
        kind = ReLossTrainer
        options |= {"surrogate": OWN_TEXTS[way], "metric": pair.metric}
    arguments = ReLossTrainingArguments if kind is ReLossTrainer else TrainingArguments
    args = pair.arguments(folder, seed, arguments, **recipe)
    set_seed(seed)
    model = pair.make_model()
    return kind(model, args, train_dataset=pair.train, eval_dataset=pair.development, **options)


def _predicted(trainer: Trainer, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, C], or scores of the classes, and labels [n] or [n, C]."""
    found = trainer.predict(data)
    labels = torch.from_numpy(np.asarray(found.label_ids))
    labels = labels if labels.dim() == 1 else labels.long()  # several for each example are floats, for the usual loss
    return torch.from_numpy(np.asarray(found.predictions)), labels


def main() -> None:
    parser = arguments(__doc__, PAIRS, "promise.json")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    jobs = {
        f"{name}, {way}, {seed}": (name, way, seed)
        for name in options.pairs
        for seed in range(options.seeds)
        for way in options.ways
    }
    Console().print(table(stored_runs("promise.py", jobs, run, options, summary)))


def summary(done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The paired differences to the usual loss, and of "auto" to the soft metric."""
    enough = {name: of for name, of in scores(done).items() if len(of.get("usual", {})) > 1}
    return {
        "over_usual": {
            name: {way: paired_difference(of, of_ways["usual"])._asdict() for way, of in of_ways.items()}
            for name, of_ways in enough.items()
        },
        "auto_over_soft_metric": {
            name: paired_difference(of_ways["auto"], of_ways["soft metric"])._asdict()
            for name, of_ways in enough.items()
            if len(of_ways.get("auto", {}).keys() & of_ways.get("soft metric", {}).keys()) > 1
        },
    }


def scores(done: dict[str, dict[str, Any]]) -> Scores:
    """Pair to way to seed to score, of what is stored."""
    found: Scores = {}
    for key, measured in done.items():
        name, _, rest = key.partition(", ")
        seed = int(rest.rpartition(", ")[2])
        for way, value in measured.items():
            if way not in ("verdict", "cost"):
                found.setdefault(name, {}).setdefault(way, {})[seed] = value
    return found


def table(done: dict[str, dict[str, Any]]) -> Table:
    """A row for each pair: the usual loss, and the paired differences of the others to it."""
    shown = Table("pair", "usual", *(f"{way} [95 %]" for way in (DECIDED, *WAYS[1:])))
    for name, of_ways in scores(done).items():
        if "usual" in of_ways:
            usual = of_ways["usual"]
            differences = [
                str(paired_difference(of_ways[way], usual)) if way in of_ways else "" for way in (DECIDED, *WAYS[1:])
            ]
            shown.add_row(name.replace("_", " "), f"{sum(usual.values()) / len(usual):.2f}", *differences)
    return shown


if __name__ == "__main__":
    main()
