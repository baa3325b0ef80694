"""Predictions: what a model put out for its examples, as a `datasets.Dataset`.

Of models that give an example one label the columns are `logits` (float32 [C]), `labels` (int64) and `stage` (float32:
the share of its training that the model had behind it, 0 to 1). Of models that give it many, as translators and taggers
do, they are, with T labels that count in an example: `margins` (float32 [T], of each label over all other classes),
`labels` (int64 [T]), `stage`, and what a metric scores: the texts `generated` or `teacher_forced` and `reference`, or
else `decided` (int64 [T]). There an additive metric's statistics (float64 [K]) can be had too, in a column that its
signature names, so that nothing is decoded or counted for groups.

Such a data set is saved, loaded, concatenated and pushed as any other.
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

from .metrics import AdditiveMetric, Metric, load_metric
from .metrics.base import IGNORED_LABEL
from .surrogates.base import output_tensor

GENERATED, TEACHER_FORCED = "generated", "teacher_forced"


def record_predictions(
    model: nn.Module,
    dataset: Any,
    *,
    metric: Metric | Any = None,
    generate: bool = False,
    data_collator: Any = None,
    processing_class: Any = None,
    batch_size: int = 64,
    max_predictions: int = 20_000,
    stage: float = 1.0,
    seed: int = 0,
) -> datasets.Dataset:
    """A model's predictions, in evaluation mode, on a data set with labels.

    Args:
        model: any model that a Trainer takes, and that gives each example a label, or one to each of its positions.
        dataset: as for `Trainer.predict`, with a length.
        metric: what `load_metric` takes: if it is additive and there are many labels, its statistics are stored.
        generate: of an encoder-decoder: whether what the metric scores is generated, as the model's `generation_config`
            says, or is the most likely token at each position after the right ones (teacher forcing). Margins are
            always those after the right ones. The column's name says which.
        data_collator, processing_class: as for Trainer. The tokenizer of an encoder-decoder is the second.
        batch_size: examples per device and forward pass.
        max_predictions: of a larger data set, so many examples are taken at random.
        stage: the share of its training that the model has behind it, to mix with other recordings.
        seed: of the examples that are taken.

    Returns:
        A data set with the columns that are told of at the top of this module.

    Raises:
        ValueError: if the data set has no labels or others than integers, or texts cannot be decoded.
    """
    if len(dataset) > max_predictions:
        chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:max_predictions].tolist()
        take = getattr(dataset, "select", None)
        dataset = take(chosen) if take else torch.utils.data.Subset(dataset, chosen)
    metric = None if metric is None else load_metric(metric)
    writes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    only_decodes = not writes and hasattr(model, "can_generate") and model.can_generate()
    if only_decodes or (generate and not writes):
        raise ValueError(
            "Texts can be recorded of encoder-decoders, whose labels are what they are to write, but this is "
            f"{type(model).__name__}."
        )
    if writes and not hasattr(processing_class, "batch_decode"):
        raise ValueError("A model that writes text wants its tokenizer, processing_class=, to decode what it wrote.")
    if writes and isinstance(metric, AdditiveMetric):
        metric.statistics(["a"], ["a"])  # what cannot count should say so before the model has written all
    with tempfile.TemporaryDirectory() as folder:
        trainer = _PredictingTrainer(
            model,
            TrainingArguments(folder, per_device_eval_batch_size=batch_size, report_to="none"),
            data_collator=data_collator,
            processing_class=processing_class,
            generates=generate,
        )
        output = trainer.predict(dataset)
    if output.label_ids is None:
        raise ValueError("record_predictions wants examples with labels: without them the metric has no score.")
    labels = torch.as_tensor(output.label_ids)
    if labels.is_floating_point():
        raise ValueError(f"record_predictions wants integer labels, one per example or position, not {labels.dtype}.")
    if labels.dim() == 1:
        return predictions_dataset(torch.as_tensor(output.predictions), labels, torch.full(labels.shape, float(stage)))
    margins, decided = map(torch.as_tensor, output.predictions)
    counts = labels != IGNORED_LABEL
    columns = {
        "margins": _ragged(margins, counts),
        "labels": _ragged(labels, counts),
        "stage": [float(stage)] * len(labels),
    }
    features = {
        "margins": datasets.List(datasets.Value("float32")),
        "labels": datasets.List(datasets.Value("int64")),
        "stage": datasets.Value("float32"),
    }
    if writes:
        written = GENERATED if generate else TEACHER_FORCED
        scored = {written: _decoded(decided, processing_class), "reference": _decoded(labels, processing_class)}
        features |= dict.fromkeys(scored, datasets.Value("string"))
        columns |= scored
    else:
        scored = {"decided": decided, "labels": labels}
        columns["decided"], features["decided"] = _ragged(decided, counts), features["labels"]
    if isinstance(metric, AdditiveMetric):
        name, statistics = statistics_column(metric), metric.statistics(*scored.values()).cpu().numpy()
        columns[name], features[name] = statistics, datasets.List(datasets.Value("float64"), statistics.shape[-1])
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def statistics_column(metric: Metric) -> str:
    """The name of the column with a metric's statistics."""
    return f"statistics of {metric.signature}"


class _PredictingTrainer(Trainer):
    """Predicts logits or, of labels at many positions, their margins and what was decided.

    Nothing of the vocabulary's width leaves the step.
    """

    def __init__(self, *args: Any, generates: bool, **options: Any):
        super().__init__(*args, **options)
        self.generates = generates

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get(self.label_names[0])
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = output_tensor(model(**inputs), "logits")
            if labels is None or labels.dim() == 1 or labels.is_floating_point():
                return None, logits, labels
            if logits.shape[:-1] != labels.shape:
                raise ValueError(
                    f"Logits {list(logits.shape)} do not give each of the labels {list(labels.shape)} its own: models "
                    "that label each position, and encoder-decoders that write text, can be recorded."
                )
            decided = logits.argmax(-1).masked_fill(labels == IGNORED_LABEL, IGNORED_LABEL)
            if self.generates:
                given = {name: x for name, x in inputs.items() if name not in (*self.label_names, "decoder_input_ids")}
                decided = self.accelerator.unwrap_model(model).generate(**given)
            # The margin, without another tensor of the vocabulary's width.
            label, logits = labels.clamp(min=0)[..., None], logits.float()
            margin = logits.gather(-1, label) - logits.scatter_(-1, label, -torch.inf).logsumexp(-1, keepdim=True)
            return None, (margin.squeeze(-1), decided), labels


def _ragged(values: torch.Tensor, counts: torch.Tensor) -> list[list]:
    return [row[chosen].tolist() for row, chosen in zip(values, counts, strict=True)]


def _decoded(ids: torch.Tensor, tokenizer: Any) -> list[str]:
    """Texts of token ids [n, T], of which negative ones are padding."""
    return tokenizer.batch_decode(ids.masked_fill(ids < 0, tokenizer.pad_token_id), skip_special_tokens=True)


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
