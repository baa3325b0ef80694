"""Recording the predictions of a model on a data set, in evaluation."""

import tempfile
from typing import Any

import datasets
import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import Trainer, TrainingArguments

from ..metrics import AdditiveMetric, Metric
from ..surrogates.auto import AutoSurrogate
from ..surrogates.base import Surrogate
from .dataset import GENERATED, TEACHER_FORCED, recorded_dataset
from .models import batch_labels, description_of, metric_for, tokenizer_of, unwrapped, writes_text


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
        max_predictions: of a larger data set, a random sample of this size is taken.
        stage: the share of its training that the model has behind it, to mix with other recordings.
        seed: of the examples that are taken.

    Returns:
        A data set with the columns that `hf_reloss.predictions.dataset` describes, of the examples that count.

    Raises:
        ValueError: if the data set has no labels, or such as no surrogate is for, or texts cannot be decoded.
    """
    if len(dataset) > max_predictions:
        chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:max_predictions].tolist()
        take = getattr(dataset, "select", None)
        dataset = take(chosen) if take else torch.utils.data.Subset(dataset, chosen)
    metric = None if metric is None else metric_for(model, metric)
    writes = writes_text(model)
    if generate and not (writes and unwrapped(model).config.is_encoder_decoder):
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
    kind = trainer.kind
    if output.label_ids is None or kind is None:
        raise ValueError("record_predictions wants examples with labels: without them the metric has no score.")
    predictions = output.predictions if isinstance(output.predictions, tuple) else (output.predictions,)
    columns = {name: torch.as_tensor(column) for name, column in zip(trainer.columns, predictions, strict=True)}
    return recorded_dataset(
        kind,
        columns | {"stage": torch.full((len(predictions[0]),), float(stage))},
        tokenizer=tokenizer if writes or kind.answers else None,
        written=GENERATED if generate else TEACHER_FORCED,
        metric=metric,
        description=description_of(model),
    )


class _PredictingTrainer(Trainer):
    """Predicts what surrogates are learned from. Nothing of the vocabulary's width leaves the step."""

    def __init__(self, *args: Any, generates: bool, **options: Any):
        super().__init__(*args, **options)
        self.generates = generates
        self.kind: type[Surrogate] | None = None
        self.columns: tuple[str, ...] = ()

    def prediction_step(  # type: ignore[override]  # several outputs are a tuple
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor | tuple[torch.Tensor, ...], torch.Tensor | None]:
        inputs = send_to_device(inputs, self.args.device)
        labels = batch_labels(model, inputs, self.label_names)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
            if labels is None:
                return None, outputs[0] if isinstance(outputs, tuple) else next(iter(outputs.values())), None
            self.kind = AutoSurrogate.reading(outputs, labels)
            columns = self.kind.recorded(outputs, labels, inputs)
            if self.generates:
                given = {name: x for name, x in inputs.items() if name not in (*self.label_names, "decoder_input_ids")}
                columns[self.kind.scored[0]] = self.accelerator.unwrap_model(model).generate(**given)
        self.columns = tuple(columns)
        return None, tuple(columns.values()), labels
