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

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from paired import Scores, arguments, stored_runs
from pairs import CLASS_PAIRS, Pair, logit_adjustment
from rich.console import Console
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, SurrogateForClassification
from hf_reloss.compare.statistics import comparison_table, paired_difference
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
        if not torch.is_grad_enabled():
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


class StrongPull(Learned):
    """Learns with a pull on the logits of 0.1, as of other losses, in place of 0.01."""

    word = "strong_pull"

    def to_learn(self, kind: Any, metric: Any) -> Any:
        surrogate, settings = super().to_learn(kind, metric)
        surrogate.config.scale_weight = surrogate.network.pull = 0.1
        return surrogate, settings


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
    "learned: margins over costs": _learned,
    "learned: margins over costs, a pull of 0.1": functools.partial(_learned, surrogate="strong_pull"),
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
        is_learned = getattr(make, "func", make) in (_soft, _learned)
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
    options = arguments(__doc__, TRIED, "tried.json").parse_args()
    jobs = {
        f"{name}: {way}: {seed}": (name, way, seed)
        for name in options.pairs
        for seed in range(options.seeds)
        for way in TRIED[name]
    }
    found = scores(stored_runs("tried.py", jobs, run, options, summary))
    for name in options.pairs:
        Console().print(comparison_table(found[name], "usual", title=name, metric=CLASS_PAIRS[name]().metric.name))


def scores(done: dict[str, dict[str, float]]) -> Scores:
    """What is stored; with tuned decisions a way has "decided" after its name."""
    found: Scores = {name: {} for name in TRIED}
    for key, measured in done.items():
        name, _, rest = key.partition(": ")
        way, _, seed = rest.rpartition(": ")
        for decision, value in measured.items():
            found[name].setdefault(way if decision == "argmax" else f"{way}, decided", {})[int(seed)] = value
    return found


def summary(done: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The paired differences to the usual loss."""
    return {
        "over_usual": {
            name: {way: paired_difference(of, of_ways["usual"])._asdict() for way, of in of_ways.items()}
            for name, of_ways in scores(done).items()
            if len(of_ways.get("usual", {})) > 1
        }
    }


if __name__ == "__main__":
    main()
