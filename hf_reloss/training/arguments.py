"""The arguments of ReLossTrainer and ReLossSeq2SeqTrainer, and which of them contradict each other."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Seq2SeqTrainingArguments, Trainer, TrainingArguments
from transformers.utils import logging

from ..adaptive_loss.children import alone, launched

logger = logging.get_logger(__name__)

FEWEST_TO_LEARN = 160
"""What "auto" learns from at least, in all processes together: the held-out fifth makes groups of 16."""

FIRST_STRETCH = 0.4
"""Of a run with a strict guard, at least so much is on the model's own loss: the rest is made twice."""

SURROGATE_LOSS = "loss/surrogate"
"""The surrogate's part of the loss in the log, and in evaluations whose `eval_loss` is the model's own."""


@dataclass
class ReLossTrainingArguments(TrainingArguments):
    """TrainingArguments with the knobs of `ReLossTrainer`. Plain `TrainingArguments` work too, with these defaults."""

    model_loss_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of the model's own loss in the sum, 0 to 1; the rest is the surrogate's. By default 0, but "
            "0.5 with 'auto' for a model that writes text, and 0.25 with 'policy'."
        },
    )
    surrogate_warmup: float | None = field(
        default=None,
        metadata={
            "help": "Training on the model's own loss before the surrogate takes over: steps, or a share of all steps "
            "if below 1. By default 0 with a given surrogate or loss, 0.5 with 'ala' else, and with 'auto' 0.1, or 0.5 "
            "for metrics of whole groups, such as F1 and BLEU; it records predictions meanwhile, 160 at least, and for "
            "longer if nothing can be learned from them yet."
        },
    )
    max_recorded_predictions: int = field(
        default=20_000, metadata={"help": "With 'auto': the most predictions that each process keeps in memory."}
    )
    tune_decision: bool = field(
        default=True,
        metadata={
            "help": "With 'auto', for a classifier: whether the decision is tuned by the metric when the run is over, "
            "on development data, see ReLossTrainer.tune_decision."
        },
    )
    adapt_steps: int | None = field(
        default=None,
        metadata={
            "help": "With 'ala': steps from one action of the loss's controller to the next, K. By default 200, or a "
            "fortieth of the run if that is less."
        },
    )
    adapt_children: bool = field(
        default=False,
        metadata={
            "help": "With 'ala': each process that accelerate launch starts trains a model of its own, with a seed and "
            "a folder of its own, and they share the loss's controller."
        },
    )
    refresh_steps: int | None = field(
        default=None,
        metadata={"help": "With 'auto': after how many steps it is learned again, from what was recorded since."},
    )
    risk_candidates: int | None = field(
        default=None,
        metadata={
            "help": "With 'minimum_risk' or 'policy': texts that are drawn from the model for each example. By default "
            "4, or 8 for CTC."
        },
    )
    risk_temperature: float | None = field(
        default=None,
        metadata={
            "help": "Likewise: that the model's logits are divided by in drawing, above 0; below 1, texts are likelier "
            "ones. By default 1 with 'minimum_risk' and for CTC, else 0.5."
        },
    )
    risk_alpha: float | None = field(
        default=None,
        metadata={
            "help": "With 'minimum_risk': the power of their probabilities, which sharpens them. By default 0.005, or "
            "1 for CTC."
        },
    )
    risk_reference: bool | None = field(
        default=None,
        metadata={
            "help": "With 'minimum_risk': whether the reference is one more candidate. By default true, or false for "
            "CTC."
        },
    )

    def __post_init__(self) -> None:
        if self.adapt_children:
            if self.push_to_hub:
                raise ValueError("adapt_children=True trains several models: push the one that is chosen, afterwards.")
            children, folder = launched(self.ddp_timeout), Path(self.output_dir or "trainer_output")
            child = children.rank
            if children.number == 1:
                logger.warning(
                    "adapt_children=True, but this is the only process: one model has the controller for itself. Start "
                    "several with accelerate launch --num_processes (on CPUs, trainers/accelerate/cpu.yaml)."
                )
            if folder.name != f"child-{child}":  # which copied arguments have done already
                self.seed, self.output_dir = self.seed + child, str(folder / f"child-{child}")
                self.disable_tqdm = self.disable_tqdm or child > 0
        with alone() if self.adapt_children else contextlib.nullcontext():  # how many processes there are is found once
            super().__post_init__()


@dataclass
class ReLossSeq2SeqTrainingArguments(ReLossTrainingArguments, Seq2SeqTrainingArguments):
    """Seq2SeqTrainingArguments with the knobs of `ReLossSeq2SeqTrainer`."""


def check_kinds(trainer: object, model: object) -> None:
    """Refuses a trainer that is no `transformers.Trainer`, and a model that no such trainer trains.

    Raises:
        TypeError: for these.
    """
    if not isinstance(trainer, Trainer):
        raise TypeError(
            f"ReLossMixin goes before a transformers.Trainer or a subclass of it, but {type(trainer).__name__} has "
            "none behind it: give its own trainer a surrogate for its loss, loss(logits, labels) with loss = "
            "AutoSurrogate.from_pretrained(...), or pass its torch.nn.Module to ReLossTrainer."
        )
    if not isinstance(model, str):  # the name of one, as TRL's trainers take it
        check_model(model)


def check_model(model: object) -> None:
    """Refuses a model that is none of torch, such as SetFit's, which has two of them.

    Raises:
        TypeError: for that.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"A model is a torch.nn.Module, but {type(model).__name__} is none: pass the module within it that puts "
            "out logits."
        )


def check(args: TrainingArguments) -> None:
    """Refuses arguments that contradict each other, whatever the loss.

    Raises:
        ValueError: for these.
    """
    share = option(args, "model_loss_share") or 0.0
    if not 0 <= share <= 1:
        raise ValueError(f"model_loss_share is a share between 0 and 1, got {share}.")
    warmup = option(args, "surrogate_warmup")
    if isinstance(warmup, float) and warmup == 1.0:
        raise ValueError(
            "surrogate_warmup=1.0 is neither a share of the steps that leaves some for the surrogate nor a number of "
            "steps to speak of: pass a share below 1, or 2 steps or more."
        )
    if warmup is not None and (warmup < 0 or (warmup > 1 and not float(warmup).is_integer())):
        raise ValueError(f"surrogate_warmup is a share of all steps below 1, or a number of steps, got {warmup}.")


def check_smoothing(args: TrainingArguments, default_share: float) -> None:
    """Refuses label smoothing, which is of the model's own loss, in a run in which that has no part.

    Args:
        args: of the run.
        default_share: of the model's own loss, if nothing is said.

    Raises:
        ValueError: for that.
    """
    share = option(args, "model_loss_share")
    has_part = (default_share if share is None else share) or option(args, "surrogate_warmup")
    if args.label_smoothing_factor and not has_part:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor} smooths cross-entropy, which the surrogate "
            "replaces from the first step on: set it to 0, use Trainer, or keep a model_loss_share, which is smoothed "
            "then."
        )


def check_learning(args: TrainingArguments) -> None:
    """Refuses arguments with which nothing can be learned in a run.

    Raises:
        ValueError: for these.
    """
    most = option(args, "max_recorded_predictions")
    if most * args.world_size < 2 * FEWEST_TO_LEARN:  # a recorder that is full drops every second prediction
        raise ValueError(
            f"max_recorded_predictions={most} keeps too little to learn a surrogate from: "
            f"{2 * FEWEST_TO_LEARN} or more in all processes together, such as the default "
            f"{ReLossTrainingArguments.max_recorded_predictions:,}."
        )


def output_folder(args: TrainingArguments) -> Path:
    """Where a Trainer writes."""
    assert args.output_dir is not None  # TrainingArguments have replaced None by now
    return Path(args.output_dir)


def option(args: TrainingArguments, name: str) -> Any:
    """An argument by its name, of plain `TrainingArguments` its default."""
    return getattr(args, name, getattr(ReLossSeq2SeqTrainingArguments, name))
