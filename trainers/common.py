"""What the programs of this folder share: their arguments, their labels, and the usual course of a run."""

import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from transformers import AutoConfig, EvalPrediction, PreTrainedConfig, Trainer, TrainingArguments, set_seed

from hf_reloss import Metric, ReLossTrainer, hand_made_losses, load_metric
from hf_reloss.predictions.models import metric_for

logger = logging.getLogger(__name__)


@dataclass
class DatasetArguments:
    """Which data to train and evaluate on."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(default=None, metadata={"help": "Local data to train on."})
    validation_file: str | None = field(default=None, metadata={"help": "Local data to evaluate on."})
    validation_split_name: str = field(
        default="validation", metadata={"help": "The split of --dataset_name to evaluate on."}
    )
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training data to evaluate on where there is no validation data."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many random examples."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many random examples."})


@dataclass
class DataArguments(DatasetArguments):
    """DatasetArguments, for data with a label per example."""

    label_column: str = field(default="label", metadata={"help": "The column of labels: integers or strings."})


BASELINES = ("ala", "approximation", *hand_made_losses())
"""Other ways to train for a metric, for one label per example."""

ON_OWN_TEXTS = ("minimum_risk", "policy")
"""Losses that score what the model writes in training."""


@dataclass
class ModelArguments:
    """Which model to train, and on which loss."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint: a Hub id or a folder."})
    config_name: str | None = field(default=None, metadata={"help": "From scratch: the configuration of this model."})
    model_type: str | None = field(
        default=None, metadata={"help": "From scratch: the default configuration of this type, e.g. bert or resnet."}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "From scratch: changes to the configuration: num_hidden_layers=2,hidden_sizes=[16,32]"},
    )
    loss: Literal[("ce", "reloss", *BASELINES)] = field(
        default="reloss",
        metadata={
            "help": "ce: the usual loss, with a plain Trainer. reloss: a learned surrogate. For classes also its "
            "baselines: ala, approximation, or a hand-made loss such as focal."
        },
    )
    surrogate: str = field(
        default="auto", metadata={"help": "Folder or Hub id of a surrogate, or auto: learn one in this very run."}
    )
    metric: str = field(default="accuracy", metadata={"help": "The metric that is reported, and that auto learns."})
    metric_options: str = field(default="{}", metadata={"help": 'The metric\'s options as JSON: {"average": "macro"}.'})


def set_up(args: TrainingArguments) -> None:
    """Seeds, and logs progress on the main process."""
    logging.basicConfig(format="%(asctime)s - %(levelname)s - %(name)s - %(message)s", stream=sys.stdout)
    if args.should_log:
        for name in ("hf_reloss", __name__, "__main__"):
            logging.getLogger(name).setLevel(logging.INFO)
    set_seed(args.seed)


def load_table(path: str) -> datasets.Dataset:
    """Examples from a csv, json or jsonl file, compressed or not."""
    kinds = {".csv": "csv", ".json": "json", ".jsonl": "json"}
    kind = next((kinds[suffix] for suffix in Path(path).suffixes[-2:] if suffix in kinds), None)
    if kind is None:
        raise ValueError(f"{path} is neither a csv, a json nor a jsonl file.")
    return datasets.load_dataset(kind, data_files=path, split="train")


def packed_images(path: str, arrays: Mapping[str, np.ndarray], *beside: str) -> list[Any]:
    """The images of an .npz file: `image`, uint8 [n, height, width, 3], or JPEG files end to end, `jpeg` and `offsets`.

    Args:
        path: of the file.
        arrays: that it holds.
        beside: other arrays that are wanted.

    Raises:
        ValueError: if some are missing.
    """
    names = set(arrays)
    if not set(beside) < names or not ("image" in names or {"jpeg", "offsets"} < names):
        wanted = ", ".join(map(repr, beside))
        raise ValueError(
            f"{path} holds {sorted(names)}, but it should hold {wanted}, and either 'image' or 'jpeg' and 'offsets'."
        )
    if "image" in names:
        return list(arrays["image"])
    jpeg, offsets = arrays["jpeg"], arrays["offsets"]
    return [{"bytes": jpeg[start:end].tobytes()} for start, end in itertools.pairwise(offsets)]


def load_splits(
    data_args: DatasetArguments,
    model_args: ModelArguments,
    args: TrainingArguments,
    load_file: Callable[[str], datasets.Dataset] = load_table,
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """The training and the validation data as they come, None where there are none.

    Args:
        load_file: reads what `--train_file` or `--validation_file` names.

    Raises:
        ValueError: for data that are missing or named twice, and for nothing to do or no model to evaluate.
    """
    if not args.do_train and not args.do_eval:
        raise ValueError("Nothing to do: pass --do_train, --do_eval or both.")
    local = data_args.train_file or data_args.validation_file
    if bool(data_args.dataset_name) == bool(local):
        raise ValueError("Pass either --dataset_name or --train_file and --validation_file.")
    if local:
        files = {"train": data_args.train_file, "validation": data_args.validation_file}
        found = {split: load_file(file) for split, file in files.items() if file}
        validation_split = "validation"
    else:
        found = datasets.load_dataset(data_args.dataset_name, data_args.dataset_config_name)
        validation_split = data_args.validation_split_name
    train, validation = found.get("train"), found.get(validation_split)
    if train is None and (args.do_train or validation is None):
        wanted = "train" if args.do_train else validation_split
        raise ValueError(f"The data have no split {wanted!r}, but {sorted(found)}.")
    if not args.do_train and not model_args.model_name_or_path:
        raise ValueError("--do_eval without --do_train wants a trained model: pass --model_name_or_path.")
    return train, validation


def load_data(
    data_args: DataArguments,
    model_args: ModelArguments,
    args: TrainingArguments,
    load_file: Callable[[str], datasets.Dataset],
    find_names: Callable[[datasets.Dataset, str], list[str]] | None = None,
    encode: Callable[[datasets.Dataset, str, list[str]], datasets.Dataset] | None = None,
) -> tuple[datasets.Dataset | None, datasets.Dataset | None, list[str]]:
    """The data to train on, the data to evaluate on, and the class names; labels are class indices in `labels`.

    Class names come from the training data, sorted. Without training they are those of the checkpoint.

    Args:
        load_file: reads what `--train_file` or `--validation_file` names.
        find_names, encode: `class_names` and `encode_labels`, or the like of other labels than one per example.

    Raises:
        ValueError: for data that are missing or named twice, and for labels that are missing or unknown.
    """
    train, validation = load_splits(data_args, model_args, args, load_file)
    if args.do_train:
        names = (find_names or class_names)(train, data_args.label_column)
    else:
        id2label = AutoConfig.from_pretrained(model_args.model_name_or_path).id2label
        names = [id2label[index] for index in range(len(id2label))]
    encode = encode or encode_labels
    train, validation = (
        None if data is None else encode(data, data_args.label_column, names) for data in (train, validation)
    )
    return *divide(train, validation, data_args, args), names


def divide(
    train: datasets.Dataset | None,
    validation: datasets.Dataset | None,
    data_args: DatasetArguments,
    args: TrainingArguments,
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """What is trained and evaluated on: no more examples than wanted, and some held out where validation data lack."""
    if args.do_eval and validation is None:
        parts = train.train_test_split(data_args.train_val_split, seed=args.seed)
        train, validation = parts["train"], parts["test"]
        logger.info(f"No validation data given: {len(validation)} training examples are held out to evaluate on.")
    train, validation = (
        data.shuffle(seed=args.seed).select(range(most)) if data is not None and most and most < len(data) else data
        for data, most in ((train, data_args.max_train_samples), (validation, data_args.max_eval_samples))
    )
    return train if args.do_train else None, validation if args.do_eval else None


def class_names(data: datasets.Dataset, column: str) -> list[str]:
    """The names of all classes in a column of labels: those of its ClassLabel, or else its sorted values."""
    values = _labels(data, column)
    feature = data.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else [str(value) for value in sorted(set(values))]
    if len(names) < 2:
        raise ValueError(f"The column {column!r} has one class only, {names}: there is nothing to classify.")
    return names


def encode_labels(data: datasets.Dataset, column: str, names: list[str]) -> datasets.Dataset:
    """The data with a column `labels` of class indices.

    By name and not by index: two folders of images, say, may not hold the same classes.

    Raises:
        ValueError: for labels that are not in `names`.
    """
    index = {name: position for position, name in enumerate(names)}
    labels = [str(value) for value in _labels(data, column)]
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise ValueError(
            f"Unknown labels in the column {column!r}: {', '.join(map(repr, unknown[:5]))}"
            f"{', ...' if len(unknown) > 5 else ''}, in {sum(label not in index for label in labels)} of {len(labels)} "
            f"examples. The {len(names)} classes of the model are {', '.join(names[:10])}"
            f"{', ...' if len(names) > 10 else ''}: correct these labels, or leave the examples out."
        )
    data = data.remove_columns([name for name in ("labels",) if name in data.column_names])
    return data.add_column("labels", [index[label] for label in labels])


def _labels(data: datasets.Dataset, column: str) -> list[int] | list[str]:
    """A column of labels; those of a ClassLabel by their names."""
    check_columns(data, label_column=column)
    labels, feature = data[column][:], data.features[column]
    if isinstance(feature, datasets.ClassLabel):
        labels = [None if label in (None, -1) else feature.int2str(label) for label in labels]
    if None in labels:
        raise ValueError(f"{labels.count(None)} of {len(labels)} examples have no label in the column {column!r}.")
    wrong = next((label for label in labels if not isinstance(label, int | str)), None)
    if wrong is not None:
        raise ValueError(f"Labels must be integers or strings, but the column {column!r} holds {wrong!r}.")
    return labels


def check_columns(data: datasets.Dataset, **columns: str) -> None:
    """Refuses a data set that lacks one of the columns that flags of these names say it has."""
    for flag, column in columns.items():
        if column not in data.column_names:
            raise ValueError(f"The data have no column {column!r}, but {data.column_names}: pass --{flag}.")


def load_config(model_args: ModelArguments, names: list[str] | None = None, **defaults: Any) -> PreTrainedConfig:
    """The configuration of a checkpoint or, from scratch, a new one.

    Args:
        names: of the classes, where the model tells some apart.
        defaults: from scratch, values for those of these fields that the configuration has.

    Raises:
        ValueError: if there is not one model, or for overrides that do not fit it.
    """
    given = [model_args.model_name_or_path, model_args.config_name, model_args.model_type]
    if sum(map(bool, given)) != 1:
        raise ValueError("Pass one of --model_name_or_path (a checkpoint), --config_name and --model_type.")
    classes: dict[str, Any] = {}
    if names is not None:
        classes = {
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": "single_label_classification",
        }
    if model_args.model_name_or_path:
        if model_args.config_overrides:
            raise ValueError("--config_overrides is for models from scratch: leave out --model_name_or_path.")
        return AutoConfig.from_pretrained(model_args.model_name_or_path, **classes)

    def load(**changes: Any) -> PreTrainedConfig:
        if model_args.config_name:
            return AutoConfig.from_pretrained(model_args.config_name, **changes)
        return AutoConfig.for_model(model_args.model_type, **changes)

    base = load()
    overrides = parse_overrides(model_args.config_overrides or "")
    unknown = [name for name in overrides if not hasattr(base, name)]
    if unknown:
        raise ValueError(f"--config_overrides: {type(base).__name__} has no {', '.join(unknown)}.")
    defaults = {name: value for name, value in defaults.items() if hasattr(base, name)}
    return load(**classes, **{**defaults, **overrides})


def parse_overrides(overrides: str) -> dict[str, Any]:
    """`"depths=[1,1],hidden_act=gelu"` as a dict. Values are JSON, or else strings."""
    changes = {}
    for change in filter(None, re.split(r",(?=\s*\w+=)", overrides)):
        name, separator, value = change.strip().partition("=")
        if not separator:
            raise ValueError(f"--config_overrides wants name=value,name=value, but got {change!r}.")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            changes[name] = value
    return changes


def wanted_metric(model_args: ModelArguments, **defaults: Any) -> Metric:
    """The metric of `--metric` with its `--metric_options`; `defaults` are options that those may replace."""
    return load_metric(model_args.metric, **defaults | json.loads(model_args.metric_options))


def make_trainer(
    model_args: ModelArguments, metric: Metric | None = None, beside: str = "accuracy", **options: Any
) -> Trainer:
    """The trainer for `--loss` of a model that tells classes apart.

    Args:
        metric: by default that of `--metric`.
        beside: what is reported as well.
        options: those of Trainer.
    """
    metric = metric_for(options["model"], metric or wanted_metric(model_args))
    also = metric_for(options["model"], load_metric(beside))
    metrics = {also.name: also, metric.name: metric}

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        return {name: each.compute(evaluation.predictions, evaluation.label_ids) for name, each in metrics.items()}

    options.update(compute_metrics=compute_metrics, preprocess_logits_for_metrics=_logits_only)
    return trainer_of_loss(model_args, metric, **options)


def trainer_of_loss(
    model_args: ModelArguments,
    metric: Metric,
    usual: type[Trainer] = Trainer,
    learned: type[ReLossTrainer] = ReLossTrainer,
    **options: Any,
) -> Trainer:
    """The trainer for `--loss`: with a surrogate, which auto learns of `metric`, on a baseline, or on the usual loss.

    Args:
        usual, learned: the two kinds of trainers.
        options: of either.
    """
    if model_args.loss not in ("reloss", "ala", "approximation", *ON_OWN_TEXTS, *hand_made_losses(None)):
        return usual(**options)
    surrogate = model_args.surrogate if model_args.loss == "reloss" else model_args.loss
    metric = metric if surrogate in ("auto", "approximation", "ala", *ON_OWN_TEXTS) else None
    return learned(**options, surrogate=surrogate, metric=metric)


def _logits_only(logits: Any, labels: torch.Tensor) -> torch.Tensor:
    # Some models put out more than logits, which would be gathered and kept too.
    return logits[0] if isinstance(logits, tuple | list) else logits


def run(trainer: Trainer, data_args: DataArguments, task: str) -> None:
    """Trains, evaluates, saves and publishes, as the arguments say."""
    args = trainer.args
    if args.do_train:
        # On the command line, True (the last checkpoint of the output folder) is a string.
        resume = args.resume_from_checkpoint
        metrics = trainer.train(resume_from_checkpoint=resume == "True" or resume).metrics
        metrics["train_samples"] = len(trainer.train_dataset)
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
    if args.do_eval:
        metrics = trainer.evaluate()
        metrics["eval_samples"] = len(trainer.eval_dataset)
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if args.push_to_hub:
        trainer.push_to_hub(tasks=task, dataset_tags=data_args.dataset_name, dataset=data_args.dataset_name)
