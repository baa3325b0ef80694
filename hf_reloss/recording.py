"""Predictions: what a model put out for its examples, as a `datasets.Dataset`.

The columns are `stage` (float32: the share of its training that the model had behind it, 0 to 1), `labels`, and the
evidence that a surrogate of the model's task reads, with what a metric scores:

| task | evidence | labels | what a metric scores |
|---|---|---|---|
| classification | `logits`, float32 [C] | int64 | `logits` |
| embeddings | `embeddings`, float32 [D] | int64 | `embeddings` |
| tokens, T of them count | `margins`, float32 [T, 9] | int64 [T] | texts, or `decided`, int64 [T] |
| spans | `start_logits`, `end_logits`, float32 [10], of `start_places`, `end_places`, int64 [10] | int64 [2] | texts |
| keypoints | `heatmaps`, float32 [K, H, W] | float32 [K, 3] | `decided`, float32 [K, 2] |

Margins are those of each token's label over all other classes, at its own place and, behind that, at those before and
after. Logits of spans are those of the right and the 8 likeliest places, and the log-sum-exp of all others. Texts are
in the columns `generated`, `teacher_forced` or, of spans, `answered`, and in `reference`. An additive metric's
statistics (float64 [K]) can be had too, in a column that its signature names, so that nothing is decoded or counted for
groups.

Such a data set is saved, loaded, concatenated and pushed as any other.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import find_labels

from .metrics import AdditiveMetric, Metric, load_metric
from .metrics.adapters import EvaluationMetrics
from .metrics.base import IGNORED_LABEL
from .surrogates.auto import AutoSurrogate
from .surrogates.base import Surrogate
from .surrogates.tokens import next_token_labels

GENERATED, TEACHER_FORCED, ANSWERED = "generated", "teacher_forced", "answered"
TEXTS = (GENERATED, TEACHER_FORCED, ANSWERED)
"""Columns of texts that a metric scores."""


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
        model: any model that a Trainer takes, of a task that surrogates are for.
        dataset: as for `Trainer.predict`, with a length.
        metric: what `load_metric` takes: if it is additive and the task is not classification, its statistics are
            stored.
        generate: of an encoder-decoder: whether what the metric scores is generated, as the model's `generation_config`
            says, or is the most likely token at each position after the right ones (teacher forcing). Margins are
            always those after the right ones. The column's name says which.
        data_collator, processing_class: as for Trainer. The tokenizer of a model that writes text, or answers with a
            span of it, is the second, or that of a processor.
        batch_size: examples per device and forward pass.
        max_predictions: of a larger data set, so many examples are taken at random.
        stage: the share of its training that the model has behind it, to mix with other recordings.
        seed: of the examples that are taken.

    Returns:
        A data set with the columns that are told of at the top of this module, of the examples that count.

    Raises:
        ValueError: if the data set has no labels, or such as no surrogate is for, or texts cannot be decoded.
    """
    if len(dataset) > max_predictions:
        chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:max_predictions].tolist()
        take = getattr(dataset, "select", None)
        dataset = take(chosen) if take else torch.utils.data.Subset(dataset, chosen)
    metric = None if metric is None else load_metric(metric)
    writes = writes_text(model)
    if generate and not (writes and model.config.is_encoder_decoder):
        raise ValueError(
            "Encoder-decoders can generate what is recorded, since their labels are all that they are to write, but "
            f"this is {type(model).__name__}."
        )
    tokenizer = tokenizer_of(processing_class, data_collator)
    if writes and tokenizer is None:
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
    predictions = output.predictions if isinstance(output.predictions, tuple) else (output.predictions,)
    columns = {name: torch.as_tensor(column) for name, column in zip(trainer.columns, predictions, strict=True)}
    return recorded_dataset(
        trainer.kind,
        columns | {"stage": torch.full((len(predictions[0]),), float(stage))},
        tokenizer=tokenizer if writes or trainer.kind.task == "spans" else None,
        written=GENERATED if generate else TEACHER_FORCED,
        metric=metric,
        description=described(model),
    )


def statistics_column(metric: Metric) -> str:
    """The name of the column with a metric's statistics."""
    return f"statistics of {metric.signature}"


WHOSE = "Predictions of "
"""How a description of recorded predictions begins."""


def whose(predictions: datasets.Dataset) -> list[str]:
    """The models whose predictions were recorded: the class of each and, if it has one, the id of its checkpoint."""
    lines = (predictions.info.description or "").splitlines()
    return [line.removeprefix(WHOSE) for line in lines if line.startswith(WHOSE)]


def described(model: nn.Module) -> str:
    """The description of a model's predictions."""
    model = unwrapped(model)
    checkpoint = getattr(getattr(model, "config", None), "_name_or_path", None)
    named = checkpoint and not os.path.isabs(checkpoint) and not os.path.isdir(checkpoint)  # a folder says nothing
    return f"{WHOSE}{type(model).__name__}{f' {checkpoint}' if named else ''}"


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without what compiles, distributes or adapts it."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def writes_text(model: nn.Module) -> bool:
    """Whether a model writes text: an encoder-decoder or a causal language model, and not a classifier or tagger."""
    model = unwrapped(model)
    return hasattr(model, "can_generate") and bool(model.can_generate())


def batch_labels(model: nn.Module, inputs: Mapping[str, Any], names: Sequence[str]) -> torch.Tensor | None:
    """The labels of a batch as surrogates read them, or None where they are missing.

    Several tensors of labels, as start and end positions are, become one: [N, number of names]. Labels of a causal
    language model, which compares each with the position before, are moved there.

    Args:
        model: the model, which may be wrapped.
        inputs: what it is given.
        names: which of these are labels.
    """
    labels = [inputs.get(name) for name in names]
    if not labels or any(each is None for each in labels):
        return None
    labels = labels[0] if len(labels) == 1 else torch.stack(labels, dim=-1)
    labels = labels if labels.is_floating_point() else labels.long()
    model = unwrapped(model)
    if labels.dim() == 2 and writes_text(model) and not model.config.is_encoder_decoder:
        return next_token_labels(labels)
    return labels


class _PredictingTrainer(Trainer):
    """Predicts what surrogates are learned from. Nothing of the vocabulary's width leaves the step."""

    def __init__(self, *args: Any, generates: bool, **options: Any):
        super().__init__(*args, **options)
        self.generates = generates
        self.kind: type[Surrogate] | None = None
        self.columns: tuple[str, ...] = ()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        labels = batch_labels(model, inputs, self.label_names)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
            if labels is None:
                return None, outputs[0] if isinstance(outputs, tuple) else next(iter(outputs.values())), None
            self.kind = AutoSurrogate.reading(outputs, labels)
            columns = self.kind.recorded(outputs, labels, inputs)
            if self.generates:
                given = {name: x for name, x in inputs.items() if name not in (*self.label_names, "decoder_input_ids")}
                columns["decided"] = self.accelerator.unwrap_model(model).generate(**given)
        self.columns = tuple(columns)
        return None, tuple(columns.values()), labels


def tokenizer_of(processing_class: Any, data_collator: Any = None) -> Any:
    """What decodes token ids: a tokenizer, that of a processor or, failing these, of the collator; None without one.

    Args:
        processing_class, data_collator: of a Trainer.
    """
    for holder in (processing_class, data_collator):
        for found in (holder, *(getattr(holder, name, None) for name in ("tokenizer", "processor"))):
            found = getattr(found, "tokenizer", found)  # of a processor, which decodes by that
            if hasattr(found, "batch_decode") and hasattr(found, "pad_token_id"):
                return found
    return None


def scored(kind: type[Surrogate], columns: Mapping[str, torch.Tensor], tokenizer: Any = None) -> tuple[Any, Any]:
    """What a metric compares of recorded columns: predictions and references, as tensors or, of token ids, texts.

    Args:
        kind: the surrogate that recorded them.
        columns: [n, ...] each.
        tokenizer: decodes token ids; None to leave them.
    """
    predictions, references = (columns[name] for name in kind.scored)
    if tokenizer is None:
        return predictions, references
    return decoded(predictions, tokenizer), decoded(references, tokenizer)


def decoded(ids: torch.Tensor, tokenizer: Any) -> list[str]:
    """Texts of token ids [n, T], of which negative ones are padding."""
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if padding is None:  # there is nothing that could be left out in decoding
        return [tokenizer.decode(row[row >= 0], skip_special_tokens=True) for row in ids]
    return tokenizer.batch_decode(ids.masked_fill(ids < 0, padding), skip_special_tokens=True)


def recorded_dataset(
    kind: type[Surrogate],
    columns: Mapping[str, torch.Tensor],
    *,
    tokenizer: Any = None,
    written: str = TEACHER_FORCED,
    metric: Metric | None = None,
    description: str = "",
) -> datasets.Dataset:
    """A data set of predictions from what a surrogate's `recorded` kept, and `stage`.

    Args:
        kind: the surrogate that recorded them.
        columns: [n, ...] each; predictions whose labels are all -100 are left out.
        tokenizer: decodes ids to texts, which are stored in their place.
        written: the column of texts that a model wrote; those that answer with a span have their own.
        metric: whose statistics are stored too, if it is additive.
        description: whose predictions they are, as `described` has it.
    """
    labels = columns["labels"]
    rows = (labels != IGNORED_LABEL).flatten(1).any(1) if labels.dim() > 1 else labels != IGNORED_LABEL
    columns = {name: column[rows] for name, column in columns.items()}
    if kind.task == "classification":
        return predictions_dataset(columns["logits"], columns["labels"], columns["stage"], description)
    # What ids stand for is stored as text.
    left_out = {name for name in kind.scored if name != "labels"} if tokenizer is not None else set()
    counts = columns["labels"] != IGNORED_LABEL if kind.task == "tokens" else None
    stored, features = {}, {}
    for name, column in columns.items():
        if name not in left_out:
            ragged = counts is not None and column.dim() > 1 and not name.startswith(EvaluationMetrics.prefixes)
            stored[name], features[name] = _stored(column, counts if ragged else None)
    compared = scored(kind, columns, tokenizer)
    if tokenizer is not None:
        texts = dict(zip((ANSWERED if kind.task == "spans" else written, "reference"), compared, strict=True))
        stored |= texts
        features |= dict.fromkeys(texts, datasets.Value("string"))
    if isinstance(metric, AdditiveMetric):
        name, statistics = statistics_column(metric), metric.statistics(*compared).cpu().numpy()
        stored[name], features[name] = statistics, datasets.List(datasets.Value("float64"), statistics.shape[-1])
    info = datasets.DatasetInfo(description=description, features=datasets.Features(features))
    return datasets.Dataset.from_dict(stored, info=info)


def _stored(column: torch.Tensor, counts: torch.Tensor | None) -> tuple[Any, Any]:
    """A column [n, ...] as data and its feature; of ragged ones, the rows of what counts [n, T]."""
    value = datasets.Value("int64" if not column.is_floating_point() else "float32")
    shape = column.shape[1:]
    if counts is not None:
        inner = value if len(shape) == 1 else datasets.List(value, shape[1])
        width = counts.shape[1]
        return [row[:width][chosen].numpy() for row, chosen in zip(column, counts, strict=True)], datasets.List(inner)
    if len(shape) < 2:
        return column.numpy(), value if not shape else datasets.List(value, shape[0])
    array = {2: datasets.Array2D, 3: datasets.Array3D, 4: datasets.Array4D}[len(shape)]
    return list(column.numpy()), array(tuple(shape), value.dtype)


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors [n, ...] one after the other, with dimensions after the first padded to the longest, with -100."""
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]

    def padded(part: torch.Tensor) -> torch.Tensor:
        missing = [long - size for long, size in zip(longest, part.shape[1:], strict=True)]
        return (
            F.pad(part, [pad for size in reversed(missing) for pad in (0, size)], value=-100) if any(missing) else part
        )

    return torch.cat([padded(part) for part in parts])


class PredictionRecorder(TrainerCallback):
    """Records the predictions that a model makes while it is trained, early and late ones alike.

    As a callback of a Trainer it listens to the model's forward passes in training mode. (With label smoothing or a
    `compute_loss_func`, Trainer keeps the labels from the model: `add` predictions yourself then.) Memory is bounded:
    when there are more than `max_predictions`, every second one is dropped and from then on every second one is
    skipped, so what is kept is always spread evenly over the run.

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
        self._hook = None
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

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self._hook is not None:  # of a run that ended in an exception
            self._hook.remove()
        self._description = described(model)
        self._hook = model.register_forward_hook(self._listen, with_kwargs=True)

    def on_step_begin(self, args, state, control, **kwargs):
        self._stage = state.global_step / max(state.max_steps, 1)

    def on_train_end(self, args, state, control, **kwargs):
        self._hook.remove()

    def hear(self, model: nn.Module, outputs: Any, inputs: Mapping[str, Any]) -> None:
        """Takes in a batch of the run that it is a callback of; one without labels is passed over."""
        labels = batch_labels(model, inputs, self.label_names or find_labels(type(unwrapped(model))))
        if labels is not None:
            self.add(outputs, labels, self._stage, inputs)

    def _listen(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], outputs: Any) -> None:
        if model.training:
            self.hear(model, outputs, kwargs)


def predictions_dataset(
    logits: torch.Tensor, labels: torch.Tensor, stage: torch.Tensor, description: str = ""
) -> datasets.Dataset:
    """A data set of predictions from logits [n, C], labels [n] and stages [n]; labels of -100 are left out."""
    counts = labels != IGNORED_LABEL
    features = datasets.Features(
        logits=datasets.List(datasets.Value("float32"), length=logits.shape[-1]),
        labels=datasets.Value("int64"),
        stage=datasets.Value("float32"),
    )
    columns = {"logits": logits.float(), "labels": labels, "stage": stage}
    return datasets.Dataset.from_dict(
        {name: column[counts].numpy() for name, column in columns.items()},
        info=datasets.DatasetInfo(description=description, features=features),
    )
