"""Predictions: what a model put out for its examples, as a `datasets.Dataset`.

Columns: `logits` (float32 [C]), `labels` (int64), `stage` (float32: the share of its training that the model had behind
it, 0 to 1). Such a data set is saved, loaded, concatenated and pushed as any other.
"""

import tempfile
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from .metrics.base import IGNORED_LABEL
from .surrogates.base import output_tensor


def record_predictions(
    model: nn.Module,
    dataset: Any,
    *,
    data_collator: Any = None,
    processing_class: Any = None,
    batch_size: int = 64,
    max_predictions: int = 20_000,
    stage: float = 1.0,
    seed: int = 0,
) -> datasets.Dataset:
    """A model's predictions, in evaluation mode, on a data set with labels.

    Args:
        model: any model that a Trainer takes.
        dataset: as for `Trainer.predict`, with a length.
        data_collator, processing_class: as for Trainer.
        batch_size: examples per device and forward pass.
        max_predictions: of a larger data set, so many examples are taken at random.
        stage: the share of its training that the model has behind it, to mix with other recordings.
        seed: of the examples that are taken.

    Returns:
        A data set with the columns `logits`, `labels` and `stage`.

    Raises:
        ValueError: if the data set has no labels.
    """
    if len(dataset) > max_predictions:
        chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:max_predictions].tolist()
        take = getattr(dataset, "select", None)
        dataset = take(chosen) if take else torch.utils.data.Subset(dataset, chosen)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(folder, per_device_eval_batch_size=batch_size, report_to="none"),
            data_collator=data_collator,
            processing_class=processing_class,
            preprocess_logits_for_metrics=lambda outputs, labels: output_tensor(outputs, "logits"),
        )
        output = trainer.predict(dataset)
    if output.label_ids is None:
        raise ValueError("record_predictions wants examples with labels: without them the metric has no score.")
    logits, labels = torch.as_tensor(output.predictions), torch.as_tensor(output.label_ids)
    return predictions_dataset(logits, labels, torch.full(labels.shape, float(stage)))


class PredictionRecorder(TrainerCallback):
    """Records the predictions that a model makes while it is trained, early and late ones alike.

    As a callback of a Trainer it listens to the model's forward passes in training mode. (With label smoothing or a
    `compute_loss_func`, Trainer keeps the labels from the model: `add` predictions yourself then.) Memory is bounded:
    when there are more than `max_predictions`, every second one is dropped and from then on every second one is
    skipped, so what is kept is always spread evenly over the run.

    Args:
        max_predictions: how many are kept at most, in each process.
        label_name: the model's keyword for labels.

    Example:
        >>> recorder = PredictionRecorder()  # Trainer(..., callbacks=[recorder]).train()
        >>> recorder.add(torch.randn(4, 10), torch.tensor([1, 0, 3, 3]), stage=0.0)
        >>> recorder.dataset()
        Dataset({
            features: ['logits', 'labels', 'stage'],
            num_rows: 4
        })
    """

    def __init__(self, max_predictions: int = 20_000, label_name: str = "labels"):
        if max_predictions < 2:
            raise ValueError(f"max_predictions must be 2 or more, got {max_predictions}.")
        self.max_predictions = max_predictions
        self.label_name = label_name
        self._parts: list[dict[str, torch.Tensor]] = []
        self._count = 0
        self._seen = 0
        self._stride = 1
        self._stage = 0.0
        self._hook = None

    def __len__(self) -> int:
        return self._count

    def add(self, outputs: Any, labels: torch.Tensor, stage: float) -> None:
        """Takes in a batch: a model's outputs and its labels; those of -100 are left out."""
        index = torch.arange(self._seen, self._seen + len(labels))
        self._seen += len(labels)
        kept = (index % self._stride == 0).to(labels.device) & (labels != IGNORED_LABEL)
        labels = labels.detach()[kept].cpu()
        if len(labels) == 0:
            return
        self._count += len(labels)
        self._parts.append(
            {
                "index": index[kept.cpu()],
                "logits": output_tensor(outputs, "logits").detach()[kept].float().cpu(),
                "labels": labels,
                "stage": torch.full(labels.shape, float(stage)),
            }
        )
        while self._count > self.max_predictions:
            self._stride *= 2
            rows = self.rows()
            kept = rows["index"] % self._stride == 0
            self._parts = [{name: column[kept] for name, column in rows.items()}]
            self._count = int(kept.sum())

    def dataset(self) -> datasets.Dataset:
        """What has been recorded: a data set with the columns `logits`, `labels` and `stage`."""
        rows = self.rows()
        return predictions_dataset(rows["logits"], rows["labels"], rows["stage"])

    def save(self, path: str | Path) -> None:
        """Writes all of its state to a safetensors file, for `load`."""
        rows = self.rows() if self._parts else {}
        save_file(rows, path, metadata={"seen": str(self._seen), "stride": str(self._stride)})

    def load(self, path: str | Path) -> None:
        """Goes on from where `save` was called."""
        with safe_open(path, framework="pt") as file:
            rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            self._seen, self._stride = (int(file.metadata()[name]) for name in ("seen", "stride"))
        self._parts = [rows] if rows else []
        self._count = len(rows["labels"]) if rows else 0

    def rows(self) -> dict[str, torch.Tensor]:
        """What has been recorded: tensors `logits` [n, C], `labels` [n], `stage` [n] and `index` [n], in order."""
        if not self._parts:
            raise ValueError(
                "Nothing has been recorded yet: add the recorder to the callbacks of a Trainer whose model gets the "
                "labels, then train."
            )
        return {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self._hook is not None:  # of a run that ended in an exception
            self._hook.remove()
        self._hook = model.register_forward_hook(self._listen, with_kwargs=True)

    def on_step_begin(self, args, state, control, **kwargs):
        self._stage = state.global_step / max(state.max_steps, 1)

    def on_train_end(self, args, state, control, **kwargs):
        self._hook.remove()

    def _listen(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], outputs: Any) -> None:
        if model.training and kwargs.get(self.label_name) is not None:
            self.add(outputs, kwargs[self.label_name], self._stage)


def predictions_dataset(logits: torch.Tensor, labels: torch.Tensor, stage: torch.Tensor) -> datasets.Dataset:
    """A data set of predictions from logits [n, C], labels [n] and stages [n]; labels of -100 are left out."""
    counts = labels != IGNORED_LABEL
    features = datasets.Features(
        logits=datasets.List(datasets.Value("float32"), length=logits.shape[-1]),
        labels=datasets.Value("int64"),
        stage=datasets.Value("float32"),
    )
    columns = {"logits": logits.float(), "labels": labels, "stage": stage}
    return datasets.Dataset.from_dict(
        {name: column[counts].numpy() for name, column in columns.items()}, features=features
    )
