"""Ideas that were tried, each beside what it was to improve.

    HF_RELOSS_DATA=... python benchmarks/tried.py

Macro-F1: batches in which all classes are as frequent; sums of soft counts that run over batches; offsets of classes
that the metric fits on development data at each epoch, fed back into cross-entropy (of logits less the offsets).
Costs and kappa: margins over what confusions cost, which the metric is asked; and a loss of the expected credit, which
development data tells, in half of the sum.
Accuracy: how long the first stretch on the usual loss lasts, with the soft metric and with what is learned; learning
from predictions for development data in place of those that the run records.

All are measured on test data of pairs of benchmarks/pairs.py, argmax deciding, and "decided" with the decision tuned on
development data. Results are stored after each run in benchmarks/results/tried.json, and runs found there are not
repeated.
"""

import argparse
import collections
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pairs import CLASS_PAIRS, Pair, logit_adjustment
from quality import RESULTS
from rich.console import Console
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, SurrogateForClassification
from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.statistics import comparison_table, paired_difference
from hf_reloss.compare.stored_results import write_atomically
from hf_reloss.decisions.tuning import tune_decision
from hf_reloss.losses.learned.counts import CountNetwork
from hf_reloss.training.strategies.learned import Learned

KEPT = 0.9
"""The share of running sums that the next batch finds."""

DAMPED = 0.5
"""The share of new offsets in those that are fed back."""


class BalancedTrainer(Trainer):
    """Draws examples with replacement, each class as often as the others."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        labels = torch.stack([row["labels"] for row in self.train_dataset])
        weights = 1.0 / torch.bincount(labels)[labels]
        generator = torch.Generator().manual_seed(self.args.seed)
        return torch.utils.data.WeightedRandomSampler(weights.tolist(), len(labels), generator=generator)


class BalancedReLossTrainer(ReLossTrainer, BalancedTrainer):
    """The same on a surrogate."""


class RunningCounts(CountNetwork):
    """Adds the sums of the batches before, ever less of them, to those of a batch."""

    architecture = "running_counts"

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.before: torch.Tensor | float = 0.0

    def sums(self, evidence: Any) -> torch.Tensor:
        found = super().sums(evidence)
        if not self.training and not torch.is_grad_enabled():
            return found
        total = (found + self.before).detach()
        self.before = KEPT * total
        return total + (found - found.detach()) / (1 - KEPT)  # as steep as the loss of one batch


class DevelopmentTrainer(Trainer):
    """Reads the development data during the run.

    Args:
        pair: that is trained.
    """

    def __init__(self, *args: Any, pair: Pair, **options: Any):
        super().__init__(*args, **options)
        self.pair, self.model_accepts_loss_kwargs = pair, False

    def development(self) -> tuple[torch.Tensor, torch.Tensor]:
        state, model = self.state, self.model
        with torch.random.fork_rng(devices=[]):
            found = predicted(Trainer(model, self.args, callbacks=[]), self.pair.development)
        self.state = state
        model.train()
        return found


class OffsetsFedBack(DevelopmentTrainer):
    """Cross-entropy of logits less offsets, which the metric fits on development data after each epoch."""

    offsets: torch.Tensor | float = 0.0
    epoch = 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if model.training and int(self.state.epoch or 0) > self.epoch:
            self.epoch = int(self.state.epoch or 0)
            logits, labels = self.development()
            rule = tune_decision(logits - self.offsets, labels, self.pair.metric).fitted
            credit = rule.credit
            worth = credit.diagonal() - credit.mean(-1)
            fitted = rule.temperature * (rule.biases + worth.clamp(min=1e-3 * worth.max()).log())
            self.offsets = ((1 - DAMPED) * self.offsets + DAMPED * (fitted - fitted.mean())).float()
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs["logits"] - self.offsets, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class CreditTrainer(DevelopmentTrainer):
    """From half of the run on, half of the loss is -log of the expected credit."""

    credit: torch.Tensor | None = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if model.training and self.credit is None and 2 * self.state.global_step >= self.state.max_steps:
            credit = tune_decision(*self.development(), self.pair.metric).fitted.credit
            credit = credit - credit.min(-1, keepdim=True).values
            self.credit = (credit / credit.max(-1, keepdim=True).values).float()
        outputs = model(**inputs)
        logits, labels = outputs["logits"], inputs["labels"]
        loss = F.cross_entropy(logits, labels)
        if self.credit is not None:
            expected = (logits.softmax(-1) * self.credit[labels]).sum(-1)
            loss = 0.5 * loss - 0.5 * expected.clamp(min=1e-6).log().mean()
        return (loss, outputs) if return_outputs else loss


class HeldOut(Learned):
    """Learns from predictions for the development data."""

    word = "held_out"

    def learn(self) -> Any:
        kind = self.recording.kind
        with torch.random.fork_rng(devices=[]):
            self.recording.recorder = self.trainer.recorded_evaluation(self.trainer.eval_dataset, 10_000)
        self.recording.recorder.kind = kind
        return super().learn()


def _usual(pair: Pair, *trainer: Any, **data: Any) -> Trainer:
    return Trainer(*trainer, **data)


def _soft(
    pair: Pair, *trainer: Any, warmup: float = 0.5, kind: Any = ReLossTrainer, running: bool = False, **data: Any
) -> Trainer:
    surrogate = SurrogateForClassification.for_metric(pair.metric)
    if running:
        surrogate.network = RunningCounts(scores={surrogate.network.metrics[0].name: {"average": "macro"}})
    trainer[1].surrogate_warmup = warmup
    return kind(*trainer, surrogate=surrogate, **data)


def _learned(pair: Pair, *trainer: Any, warmup: float = 0.1, surrogate: str = "auto", **data: Any) -> Trainer:
    trainer[1].surrogate_warmup, trainer[1].tune_decision = warmup, False
    return ReLossTrainer(*trainer, surrogate=surrogate, metric=pair.metric, guard=False, **data)


Make = Callable[..., Trainer]

FOR_F1: dict[str, Make] = {
    "usual": _usual,
    "usual, balanced batches": lambda pair, *trainer, **data: BalancedTrainer(*trainer, **data),
    "logit adjustment": lambda pair, *trainer, **data: Trainer(
        *trainer, **data, compute_loss_func=logit_adjustment(pair)
    ),
    "offsets fed back": lambda pair, *trainer, **data: OffsetsFedBack(*trainer, **data, pair=pair),
    "soft metric": _soft,
    "soft metric, balanced batches": functools.partial(_soft, kind=BalancedReLossTrainer),
    "soft metric, running sums": functools.partial(_soft, running=True),
}

FOR_CREDIT: dict[str, Make] = {
    "usual": _usual,
    "soft metric": functools.partial(_soft, warmup=0.1),
    "learned: margins over costs": functools.partial(_learned, warmup=0.1),
    "half expected credit": lambda pair, *trainer, **data: CreditTrainer(*trainer, **data, pair=pair),
}

FOR_ACCURACY: dict[str, Make] = {
    "usual": _usual,
    **{f"soft metric after {share}": functools.partial(_soft, warmup=share) for share in (0.0, 0.1, 0.5)},
    **{f"learned after {share}": functools.partial(_learned, warmup=share) for share in (0.0, 0.1, 0.5)},
    "learned after 0.1 from held-out data": functools.partial(_learned, surrogate="held_out"),
}

TRIED: dict[str, dict[str, Make]] = {
    "hwu64_macro_f1": FOR_F1,
    "clinc150_macro_f1": FOR_F1,
    "hwu64_hand_over": FOR_CREDIT,
    "hwu64_pair_costs": FOR_CREDIT,
    "sick_kappa": FOR_CREDIT,
    "digits_slowly": FOR_ACCURACY,
    "hwu64_accuracy": FOR_ACCURACY,
}
"""The ideas, by pair."""


def run(name: str, way: str, seed: int) -> dict[str, float]:
    """The metric on test data, in points, of a model; also of its tuned decisions."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pair, make = CLASS_PAIRS[name](), TRIED[name][way]
    with tempfile.TemporaryDirectory() as folder:
        is_learned = make.func in (_soft, _learned) if isinstance(make, functools.partial) else make is _soft
        args = pair.arguments(folder, seed, ReLossTrainingArguments if is_learned else TrainingArguments)
        set_seed(seed)
        trainer = make(pair, pair.make_model(), args, train_dataset=pair.train, eval_dataset=pair.development)
        trainer.pop_callback(PrinterCallback)
        trainer.train()
        logits, labels = predicted(trainer, pair.test)
        rule = tune_decision(*predicted(trainer, pair.development), pair.metric).rule
    decided = logits.argmax(-1) if rule is None else rule.decide(logits)
    return {
        "argmax": 100 * pair.metric.compute(logits.argmax(-1), labels),
        "decided": 100 * pair.metric.compute(decided, labels),
    }


def predicted(trainer: Trainer, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, C] and labels [n]."""
    found = trainer.predict(data)
    return torch.from_numpy(np.asarray(found.predictions)), torch.from_numpy(np.asarray(found.label_ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=TRIED, default=list(TRIED))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this less one")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time, of one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS / "tried.json")
    options = parser.parse_args()
    stored = json.loads(options.output.read_text()) if options.output.exists() else {"runs": {}}
    done: dict[str, dict[str, float]] = stored["runs"]
    jobs = {
        f"{name}: {way}: {seed}": (name, way, seed)
        for name in options.pairs
        for seed in range(options.seeds)
        for way in TRIED[name]
    }

    def scores(name: str) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        for key, measured in done.items():
            pair, _, rest = key.partition(": ")
            way, _, seed = rest.rpartition(": ")
            for decision, value in measured.items() if pair == name else ():
                found.setdefault(way if decision == "argmax" else f"{way}, decided", {})[int(seed)] = value
        return found

    def store() -> None:
        stored["command"], stored["environment"] = "python benchmarks/tried.py", environment()
        stored["over_usual"] = {
            name: {way: paired_difference(of, scores(name)["usual"])._asdict() for way, of in scores(name).items()}
            for name in TRIED
            if len(scores(name).get("usual", {})) > 1
        }
        write_atomically(options.output, json.dumps(stored, indent=2) + "\n")

    left = make_runs(jobs, run, done, store, workers=options.workers)
    collections.deque(tqdm(left, total=len(jobs.keys() - done.keys())), maxlen=0)
    for name in options.pairs:
        Console().print(comparison_table(scores(name), "usual", title=name, metric=CLASS_PAIRS[name]().metric.name))


if __name__ == "__main__":
    main()
