"""What a task of the benchmarks is, and the trained models that some of them start from.

Data is found in the folder that HF_RELOSS_DATA names. Validation examples are what anything is tuned on; the test files
are for reporting.

A base is a model that was trained on its task's original loss, from which compared runs go on. It is made once, with a
seed of its own, and kept in the folder that HF_RELOSS_BASES names (by default `benchmarks/bases/`, which git ignores)
with copies from earlier stages of its training, from which surrogates are recorded.
"""

import functools
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_reloss import Surrogate, SurrogateForClassification
from hf_reloss.metrics import Metric, load_metric

STAGES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Shares of a base's training after which it is kept."""

BASE_SEED = 2_000

Loss = Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], torch.Tensor]
"""A hand-made loss: from a model's outputs and inputs, labels among them, to a scalar."""


@dataclass
class Task:
    """One data set with its model and recipe.

    Attributes:
        train, evaluation: data sets as Trainer takes them.
        make_model: the model that training starts from; fresh weights come from torch's random state.
        recipe: arguments of `TrainingArguments`.
        trainer_options: further arguments of Trainer, such as the collator.
        metric: what it is trained for.
        kind: the class of its surrogates.
        structure: options of its configuration.
        measures: what is reported, from the outputs and labels of the evaluation; by default the metric.
        score: instead of these: what is reported of a trained model, in points.
        record: instead of the predictions of a run on the soft metric: what surrogates are learned from.
        learning: arguments of `SurrogateTrainingArguments`.
        original: the loss that all others are compared with: the model's own, or one of the baselines.
        baselines: hand-made losses of the task's own, by name.
        warmup: share of the training on cross-entropy before any loss of groups takes over.
        losses: those to compare, unless others are named.
        writing: arguments of `ReLossSeq2SeqTrainingArguments` for the loss `minimum_risk`.
        card: the surrogate of hub_cards/ that is the loss `transferred`, learned on a model of another kind.
        class_names: in the order of the labels, where they are known.
    """

    train: Any
    evaluation: Any
    make_model: Callable[[], nn.Module]
    recipe: dict[str, Any]
    trainer_options: dict[str, Any] = field(default_factory=dict)
    metric: Metric = field(default_factory=lambda: load_metric("accuracy"))
    kind: type[Surrogate] = SurrogateForClassification
    structure: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Callable[[Any, Any], float]] = field(default_factory=dict)
    score: Callable[[nn.Module], dict[str, float]] | None = None
    record: Callable[[], datasets.Dataset] | None = None
    learning: dict[str, Any] = field(default_factory=dict)
    original: str = "cross_entropy"
    baselines: dict[str, Loss] = field(default_factory=dict)
    warmup: float = 0.0
    losses: tuple[str, ...] = ("cross_entropy", "label_smoothing", "reloss", "unlearned", "paper", "auto")
    writing: dict[str, Any] = field(default_factory=dict)
    card: str | None = None
    class_names: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.measures = self.measures or {self.metric.name: self.metric.compute}


@dataclass
class Base:
    """How a base is trained.

    Attributes:
        train, make_model, recipe, trainer_options: as of a `Task`.
        loss: the original loss; None for the model's own.
    """

    train: Any
    make_model: Callable[[], nn.Module]
    recipe: dict[str, Any]
    trainer_options: dict[str, Any] = field(default_factory=dict)
    loss: Loss | None = None


def data_folder() -> Path:
    if "HF_RELOSS_DATA" not in os.environ:
        raise SystemExit("Set HF_RELOSS_DATA to the folder that holds fashion_mnist/, hwu64/ and so on.")
    return Path(os.environ["HF_RELOSS_DATA"])


def bases_folder() -> Path:
    return Path(os.environ.get("HF_RELOSS_BASES", Path(__file__).parent / "bases"))


class LossTrainer(Trainer):
    """A Trainer with a hand-made loss, to which a model's `auxiliary_loss` is added.

    Args:
        loss: the loss; None for the model's own.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, loss: Loss | None, **options: Any):
        super().__init__(*args, **options)
        self.loss, self.model_accepts_loss_kwargs = loss, False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        own_loss, outputs = super().compute_loss(model, dict(inputs), return_outputs=True)
        loss = own_loss if self.loss is None else self.loss(outputs, inputs) + outputs.get("auxiliary_loss", 0.0)
        return (loss, outputs) if return_outputs else loss


def base_folder(name: str, base: Base) -> Path:
    """The folder of a base, which is trained if it is not there: `stage_1.0` is the trained model."""
    folder = bases_folder() / name
    if (folder / f"stage_{STAGES[-1]}" / "model.safetensors").exists():
        return folder
    set_seed(BASE_SEED)
    with tempfile.TemporaryDirectory() as checkpoints:
        args = TrainingArguments(
            checkpoints, seed=BASE_SEED, save_strategy="no", logging_steps=100, dataloader_pin_memory=False,
            **base.recipe,
        )  # fmt: skip
        trainer = LossTrainer(
            base.make_model(), args, train_dataset=base.train, loss=base.loss, callbacks=[_KeepStages(folder)],
            **base.trainer_options,
        )  # fmt: skip
        trainer.pop_callback(PrinterCallback)
        trainer.train()
    return folder


class _KeepStages(TrainerCallback):
    """Saves the model after shares of its training."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_step_end(self, args, state, control, model=None, **kwargs):
        for stage in STAGES:
            if state.global_step == max(1, round(stage * state.max_steps)):
                model.save_pretrained(self.folder / f"stage_{stage}")


def recorded_stages(
    folder: Path, load: Callable[[Path], nn.Module], record: Callable[..., datasets.Dataset]
) -> datasets.Dataset:
    """Predictions of a base at all its stages.

    Args:
        folder: of the base.
        load: makes the model of a stage's folder.
        record: `record_predictions` with everything but the model and the stage.
    """
    stages = [functools.partial(record, stage=stage)(load(folder / f"stage_{stage}")) for stage in STAGES]
    return datasets.concatenate_datasets(stages)
