"""SurrogateTrainer: a Trainer whose examples are groups of predictions."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ..distributed import gathered, is_filled_up, own_rows
from ..hub.pages import write_page
from ..losses.base import Evidence
from ..metrics import Metric, load_metric
from ..predictions.dataset import recorded_models
from ..predictions.groups import PredictionGroups, draw_groups, sampled
from ..ranking import spearman
from ..surrogates.base import Surrogate
from .checkpoints import last_whole_checkpoint
from .objectives import OBJECTIVES, Objective

SETTINGS = (
    *("learning_rate", "weight_decay", "num_train_epochs", "max_steps", "warmup_steps", "lr_scheduler_type"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "held_out", "corruption"),
)
"""The settings that a record holds where they are not the default ones; sizes and seed it always has."""

SHOWN_GROUPS = 256
"""How many held-out groups the record keeps, for the picture on a page."""


class MisalignedSurrogateError(RuntimeError):
    """A surrogate that does not rank as its metric does, and would lead a model astray.

    Attributes:
        summary: how well it ranks, without advice.
    """

    def __init__(self, summary: str, advice: str = ""):
        super().__init__(f"{summary} {advice}".strip())
        self.summary = summary


@dataclass
class SurrogateTrainingArguments(TrainingArguments):
    """TrainingArguments with the defaults of a surrogate's training, and what groups and objective need.

    A batch is a number of groups. All of a step are ranked together, those of accumulated batches and of all processes.
    """

    output_dir: str = field(default="surrogate", metadata={"help": "Where checkpoints are written."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Groups per process and step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Held-out groups per process and step."})
    learning_rate: float = field(default=1e-2, metadata={"help": "The initial learning rate."})
    weight_decay: float = field(default=1e-3, metadata={"help": "Pulls a surrogate towards its hand-made start."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the groups."})
    logging_steps: float = field(default=32, metadata={"help": "Steps between two lines of the log."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When alignment is measured."})
    save_strategy: str = field(default="epoch", metadata={"help": "When checkpoints are written."})
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints are kept."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the best aligned surrogate."})
    metric_for_best_model: str | None = field(default="alignment", metadata={"help": "What best means."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Groups are small."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Groups have no columns to remove."})

    num_groups: int = field(default=2048, metadata={"help": "Groups that are drawn to train on."})
    num_eval_groups: int = field(default=512, metadata={"help": "Groups that are drawn to measure alignment on."})
    group_size: int = field(default=128, metadata={"help": "Predictions in a group."})
    held_out: float = field(
        default=0.2, metadata={"help": "Share of the predictions held out for alignment, if no eval_dataset is given."}
    )
    corruption: float = field(default=1.0, metadata={"help": "Largest share of a group's labels that is replaced."})
    objective: str = field(
        default="relational", metadata={"help": "What is learned: relational (ranks) or approximation (values)."}
    )
    gradient_penalty: float | None = field(
        default=None, metadata={"help": "Weight of the gradient penalty; by default the surrogate's own."}
    )
    min_alignment: float = field(
        default=0.5, metadata={"help": "A surrogate whose held-out canonical alignment ends lower is refused."}
    )


class SurrogateTrainer(Trainer):
    """Trains a surrogate of any task to rank groups of predictions as a metric does.

    It logs `rho` (the soft rank correlation of a batch; with the objective `"approximation"`, which regresses the
    metric, `negative_squared_error`) and `penalty`; its evaluation gives, on held-out groups, `eval_alignment`
    (Spearman's correlation of the negated loss with the metric) and that of the loss that the task is usually trained
    on (`eval_alignment_cross_entropy`), and both on evidence in the form in which surrogates are
    learned, where what the metric does not see is alike (`..._canonical`). Under several processes all groups of a step
    are ranked together. Everything else is Trainer's: checkpoints, resuming, logging, `push_to_hub`.

    Args:
        model: the surrogate.
        args: `SurrogateTrainingArguments`.
        train_dataset: predictions, from `record_predictions` or a `PredictionRecorder`. Of more than 262,144, which may
            lie on disk, a random sample of that size is read, a part of it in each process.
        eval_dataset: held-out predictions; by default a share of `train_dataset`.
        metric: a `Metric`, or what `load_metric` takes.
        trainer_options: passed to Trainer (`callbacks`, `optimizers`).

    Raises:
        ValueError: if there is no metric, or nothing can be learned from the predictions (see `draw_groups`).
        MisalignedSurrogateError: from `train`, for a surrogate that ends below `min_alignment`.
    """

    args: SurrogateTrainingArguments
    model: Surrogate
    train_dataset: PredictionGroups
    eval_dataset: PredictionGroups
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: Surrogate,
        args: SurrogateTrainingArguments | None = None,
        *,
        train_dataset: datasets.Dataset,
        eval_dataset: datasets.Dataset | None = None,
        metric: Metric | Any = None,
        **trainer_options: Any,
    ):
        args = args or SurrogateTrainingArguments()
        if not isinstance(model, Surrogate):
            raise ValueError(f"SurrogateTrainer trains a Surrogate, but got {type(model).__name__}.")
        if metric is None:
            raise ValueError('SurrogateTrainer wants the metric to learn, e.g. metric="accuracy".')
        missing = {*model.read_columns, "labels", "stage"} - set(train_dataset.column_names)
        if missing:
            raise ValueError(
                f"A surrogate for {model.task} is learned from predictions with the columns "
                f"{', '.join((*model.read_columns, 'labels', 'stage'))}, but these have "
                f"{', '.join(train_dataset.column_names)}."
            )
        self.metric = load_metric(metric)
        model.requires_grad_(True)  # one that has served as a loss was frozen for it
        train_dataset = sampled(train_dataset, args.seed)
        if eval_dataset is None:
            parts = train_dataset.train_test_split(args.held_out, seed=args.seed)
            train_dataset, eval_dataset = parts["train"], parts["test"]
        else:
            eval_dataset = sampled(eval_dataset, args.seed)
        model.begin(train_dataset, self.metric)
        self.num_predictions, self.models = len(train_dataset), recorded_models(train_dataset)
        if args.objective not in OBJECTIVES:
            raise ValueError(f"objective={args.objective!r} is not one of {', '.join(OBJECTIVES)}.")
        usual = model.network.gradient_penalty if args.objective == "relational" else 0.0
        weight = usual if args.gradient_penalty is None else args.gradient_penalty
        self.objective: Objective = OBJECTIVES[args.objective](weight)
        self._progress: dict[str, list[torch.Tensor]] = {self.objective.logged: [], "penalty": []}
        self._held_out: dict[str, list[float]] = {}
        self._coming: deque[tuple[Any, ...]] = deque()
        self._part: tuple[Any, ...] | None = None
        draw: dict[str, Any] = {"metric": self.metric, "group_size": args.group_size, "corruption": args.corruption}
        super().__init__(
            model,
            args,
            data_collator=_taken_together,
            train_dataset=draw_groups(train_dataset, num_groups=args.num_groups, seed=args.seed, **draw),
            eval_dataset=draw_groups(eval_dataset, num_groups=args.num_eval_groups, seed=args.seed + 1, **draw),
            compute_metrics=self._alignments,
            **trainer_options,
        )
        self.model_accepts_loss_kwargs = False
        self.label_names = ["score"]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains, then writes alignment and settings into the surrogate's configuration.

        Takes and returns what `Trainer.train` does; True resumes from the last checkpoint that was written to its end.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        measured = self.evaluate()
        surrogate = self.accelerator.unwrap_model(self.model)
        usual = surrogate.original_loss
        alignments = {name.removeprefix("eval_"): value for name, value in measured.items() if "alignment" in name}
        learned, reference = alignments["alignment_canonical"], alignments[f"alignment_{usual}_canonical"]
        surrogate.config.metric, surrogate.config.origin = self.metric.signature, None
        surrogate.config.record = {
            **alignments,
            "models": self.models,
            "eval_groups": len(self.eval_dataset),
            "train_groups": len(self.train_dataset),
            "group_size": self.args.group_size,
            "predictions": self.num_predictions,
            "gradient_penalty": self.objective.gradient_penalty,
            "seed": self.args.seed,
            "steps": self.state.best_global_step or self.state.global_step,
            "settings": self._changed_settings(),
            "held_out": self._held_out,
        }
        if not learned >= self.args.min_alignment:
            raise MisalignedSurrogateError(
                f"The surrogate's alignment with {self.metric.name} on held-out groups is {learned:.3f} "
                f"({usual.replace('_', ' ')}: {reference:.3f}), below {self.args.min_alignment}: a model trained on it "
                "would not get better at the metric.",
                "Record predictions from early and late in training, raise group_size or num_groups, train for more "
                "epochs, or use the default architecture, whose sign cannot be wrong. (The bar is min_alignment.)",
            )
        return result

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | list[str] | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes the surrogate's page into `output_dir`, as `save_pretrained` does; arguments as of `Trainer`'s.

        Its name, task and figures are the surrogate's own, whatever `model_name`, `tasks` and `dataset_args` say.
        """
        if self.is_world_process_zero():
            surrogate = self.accelerator.unwrap_model(self.model)
            data = {"license": license, "language": language, "base_model": finetuned_from}
            data |= {"datasets": dataset_tags or dataset, "tags": [tags] if isinstance(tags, str) else tags}
            write_page(surrogate.facts(), self.args.output_dir, self.hub_model_id or self.args.hub_model_id, **data)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._coming.clear()
        if len(batches) > 1 or (batches and is_filled_up(self)):
            self._coming.extend(self._parts_of_step([send_to_device(batch, device) for batch in batches]))
        return batches, items

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor | Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        self._part = self._coming.popleft() if self._coming else None
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._part = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        surrogate = self.accelerator.unwrap_model(model)
        evidence = surrogate.network.canonical(surrogate.evidence(inputs, inputs["labels"]))
        losses = model(evidence)
        if self._part is None:
            whole = self.objective.gain(gathered(losses), gathered(inputs["score"]))
            penalty, share, gain = self._penalty(surrogate, evidence), 1.0, whole
        else:
            slopes, whole, rows, share = self._part
            gain = (slopes * losses).sum()
            gain = gain + (whole - gain).detach()  # its gradient, and the value of the whole step
            own = Evidence(*(tensor[:rows] for tensor in evidence))
            penalty = self._penalty(surrogate, own) if rows else losses.new_zeros(())
        self._progress[self.objective.logged].append(whole.detach())
        self._progress["penalty"].append(penalty.detach())
        loss = self.objective.gradient_penalty * share * penalty - gain
        return (loss, {"losses": losses}) if return_outputs else loss

    def _penalty(self, surrogate: Surrogate, evidence: Evidence) -> torch.Tensor:
        if not self.objective.gradient_penalty:
            return evidence.outputs.new_zeros(())
        return self.objective.penalty(*surrogate.network.gradient_norms(evidence))

    @torch.no_grad()
    def _parts_of_step(self, batches: list[dict[str, torch.Tensor]]) -> list[tuple[Any, ...]]:
        """Of the micro-batches of a step, whose groups are ranked all together, what each adds to the gradient.

        Their losses are taken first, without gradients; that of the gain with respect to them is then a sum.

        Returns:
            Of each micro-batch: the slopes of the gain [m] over its losses, times micro-batches and processes, over
            which a Trainer takes means; the gain; how many groups do not fill it up; and its weight by their number.
        """
        processes, number = self.args.world_size, len(batches)
        rows = [len(batch["score"]) for batch in batches]
        rows[-1] = own_rows(self, rows[-1])
        parts, scores, count = [], [], []
        for batch, own in zip(batches, rows, strict=True):
            evidence = self.model.network.canonical(self.model.evidence(batch, batch["labels"]))
            parts.append(gathered(self.model(evidence)))
            scores.append(gathered(batch["score"]))
            count.append(gathered((torch.arange(len(batch["score"]), device=self.args.device) < own).float()))
        sizes = [len(part) for part in parts]
        losses, counts = torch.cat(parts).requires_grad_(), torch.cat(count) > 0
        with torch.enable_grad():
            whole = self.objective.gain(losses[counts], torch.cat(scores)[counts])
        slopes = torch.autograd.grad(whole, losses)[0] if whole.requires_grad else torch.zeros_like(losses)
        own_slopes = (part.chunk(processes)[self.args.process_index] for part in slopes.split(sizes))
        total = counts.sum().item()
        return [
            (part * (number * processes), whole.detach(), own, own * number * processes / total)
            for part, own in zip(own_slopes, rows, strict=True)
        ]

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        inputs = send_to_device(inputs, self.args.device)
        surrogate = self.accelerator.unwrap_model(model)
        with torch.no_grad():
            evidence = surrogate.evidence(inputs, inputs["labels"])
            forms = (evidence, surrogate.network.canonical(evidence))
            losses = [model(form) for form in forms]
            losses += [surrogate.network.mean(surrogate.original_losses(form), form.counts) for form in forms]
        return None, torch.stack(losses, dim=-1), inputs["score"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, values in self._progress.items():
                logs[name] = torch.stack(values).mean().item()
                values.clear()
        super().log(logs, start_time)

    def _alignments(self, evaluation: EvalPrediction) -> dict[str, float]:
        """Alignment over all held-out groups."""
        losses, scores = (torch.from_numpy(np.asarray(x)) for x in (evaluation.predictions, evaluation.label_ids))
        original = self.accelerator.unwrap_model(self.model).original_loss
        columns = {"score": scores, "loss": losses[:, 0], original: losses[:, 2]}
        self._held_out = {
            name: [float(f"{value:.4g}") for value in column[:SHOWN_GROUPS].tolist()]
            for name, column in columns.items()
        }
        usual = f"alignment_{original}"
        names = ("alignment", "alignment_canonical", usual, f"{usual}_canonical")
        return dict(zip(names, spearman(-losses.double().T, scores.double().expand(4, -1)).tolist(), strict=True))

    def _changed_settings(self) -> dict[str, Any]:
        """The settings of its learning that are not the default ones."""
        defaults = {field.name: field.default for field in fields(SurrogateTrainingArguments)}
        return {name: value for name in SETTINGS if (value := getattr(self.args, name)) != defaults[name]}


def _taken_together(batch: Any) -> dict[str, torch.Tensor]:
    """The collator: `PredictionGroups` hands out whole batches."""
    return batch
