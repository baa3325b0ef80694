"""Recording the predictions that a model makes while it is trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import find_labels

from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from ..surrogates.auto import AutoSurrogate
from ..surrogates.base import Surrogate
from .dataset import joined, recorded_dataset
from .models import batch_labels, description_of, unwrapped


class PredictionRecorder(TrainerCallback):
    """Records the predictions that a model makes while it is trained, early and late ones alike.

    As a callback of a Trainer it listens to the model's forward passes in training mode. (With label smoothing or a
    `compute_loss_func`, Trainer keeps the labels from the model: `add` predictions yourself then.) Memory is bounded:
    when there are more than `max_predictions`, every second one is dropped and from then on every second one is
    skipped, so what is kept is always spread evenly over the run. Checkpoints hold what has been recorded, and a run
    that is resumed goes on from there.

    Args:
        max_predictions: how many are kept at most, in each process.
        label_names: the model's keywords for labels; by default those of its class.

    Example:
        >>> recorder = PredictionRecorder()  # Trainer(..., callbacks=[recorder]).train()
        >>> recorder.add(torch.randn(4, 10), torch.tensor([1, 0, 3, 3]), stage=0.0)
        >>> recorder.dataset()
        Dataset({
            features: ['logits', 'labels', 'stage'],
            num_rows: 4
        })
    """

    default_max_predictions: ClassVar[int] = 20_000

    def __init__(self, max_predictions: int = default_max_predictions, label_names: Sequence[str] | None = None):
        if max_predictions < 2:
            raise ValueError(f"max_predictions must be 2 or more, got {max_predictions}.")
        self.max_predictions = max_predictions
        self.label_names = label_names
        self.kind: type[Surrogate] | None = None
        self._parts: list[dict[str, torch.Tensor]] = []
        self._count = 0
        self._seen = 0
        self._stride = 1
        self._stage = 0.0
        self._hook: RemovableHandle | None = None
        self._description = ""

    def __len__(self) -> int:
        return self._count

    def add(
        self,
        outputs: Any,
        labels: torch.Tensor,
        stage: float,
        inputs: Mapping[str, Any] | None = None,
        beside: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Takes in a batch; predictions whose labels are all -100 are left out.

        Args:
            outputs, labels: of the model, as surrogates read them.
            stage: the share of its training that the model has behind it.
            inputs: what it was given, where a metric is to see texts that are spans of it.
            beside: further columns [n, ...] to keep.
        """
        index = torch.arange(self._seen, self._seen + len(labels))
        self._seen += len(labels)
        counts = labels != IGNORED_LABEL
        kept = (index % self._stride == 0).to(labels.device) & (
            counts.flatten(1).any(1) if counts.dim() > 1 else counts
        )
        if not kept.any():
            return
        self.kind = self.kind or AutoSurrogate.reading(outputs, labels)
        with torch.no_grad():
            columns = self.kind.recorded(outputs, labels.detach(), inputs or {}) | dict(beside or {})
        self._parts.append(
            {"index": index[kept.cpu()]}
            | {name: column.detach()[kept].cpu() for name, column in columns.items()}
            | {"stage": torch.full((int(kept.sum()),), float(stage))}
        )
        self._count += len(self._parts[-1]["index"])
        while self._count > self.max_predictions:
            self._stride *= 2
            rows = self.rows()
            kept = rows["index"] % self._stride == 0
            self._parts = [{name: column[kept] for name, column in rows.items()}]
            self._count = int(kept.sum())

    def dataset(self, *, processing_class: Any = None, metric: Metric | Any = None) -> datasets.Dataset:
        """What has been recorded, as a data set.

        Args:
            processing_class: the tokenizer of a model that writes text or answers with a span of it, for texts.
            metric: whose statistics are stored too, if it is additive and the task is not classification.
        """
        rows = self.rows()
        assert self.kind is not None
        return recorded_dataset(
            self.kind,
            {name: column for name, column in rows.items() if name != "index"},
            tokenizer=processing_class,
            metric=None if metric is None else load_metric(metric),
            description=self._description,
        )

    def save(self, path: str | Path) -> None:
        """Writes all of its state to a safetensors file, for `load`."""
        rows = self.rows() if self._parts else {}
        state = {"seen": str(self._seen), "stride": str(self._stride), "task": self.kind.task if self.kind else ""}
        save_file({name: column.contiguous() for name, column in rows.items()}, path, metadata=state)

    def load(self, path: str | Path) -> None:
        """Goes on from where `save` was called."""
        with safe_open(path, framework="pt") as file:
            rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            state = file.metadata()
        self._seen, self._stride = int(state["seen"]), int(state["stride"])
        self.kind = AutoSurrogate.of_task(state["task"]) if state["task"] else None
        self._parts = [rows] if rows else []
        self._count = len(rows["labels"]) if rows else 0

    def rows(self) -> dict[str, torch.Tensor]:
        """What has been recorded, in order: tensors `index` [n], `stage` [n] and those of `Surrogate.recorded`."""
        if not self._parts:
            raise ValueError(
                "Nothing has been recorded yet: add the recorder to the callbacks of a Trainer whose model gets the "
                "labels, then train."
            )
        return {name: joined([part[name] for part in self._parts]) for name in self._parts[0]}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if self._hook is not None:  # of a run that ended in an exception
            self._hook.remove()
        self._description = description_of(model)
        self._hook = model.register_forward_hook(self._listen, with_kwargs=True)
        checkpoint = self._checkpoint(args, state)
        if state.global_step and not len(self) and checkpoint.is_file():  # of a run that goes on in another process
            self.load(checkpoint)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._checkpoint(args, state).parent.is_dir():
            self.save(self._checkpoint(args, state))

    @staticmethod
    def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
        """Where a checkpoint of a Trainer keeps what this process has recorded."""
        assert args.output_dir is not None
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        return folder / f"predictions_{args.process_index}.safetensors"

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stage = state.global_step / max(state.max_steps, 1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._hook is not None:
            self._hook.remove()

    def record(self, model: nn.Module, outputs: Any, inputs: Mapping[str, Any]) -> None:
        """Takes in a batch of the run that it is a callback of; one without labels is passed over."""
        labels = batch_labels(model, inputs, self.label_names or find_labels(type(unwrapped(model))))
        if labels is not None:
            self.add(outputs, labels, self._stage, inputs)

    def _listen(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if model.training:
            self.record(model, outputs, kwargs)
