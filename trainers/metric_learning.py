"""Metric learning of sentences or images, on soft Recall@k, or the triplet or the margin loss, which may be adapted.

With a data set from the Hub, Recall@1 on the last half of its classes, which is not trained on:

    python trainers/metric_learning.py \
        --dataset_name clinc/clinc_oos --dataset_config_name imbalanced --label_column intent \
        --model_name_or_path distilbert/distilbert-base-uncased --loss triplet \
        --do_train --do_eval --num_train_epochs 5 --learning_rate 5e-5 --output_dir clinc-embeddings

With images of your own, in a folder for each class or as arrays in an .npz file; a controller adapts the margin loss to
Recall@1 on a fifth of the classes that would be trained on:

    python trainers/metric_learning.py \
        --train_file birds --image_size 224 --model_name_or_path microsoft/resnet-50 \
        --loss ala --adapted_loss margin_loss --do_train --do_eval --output_dir birds-embeddings

On cross-entropy of the classes at first, and then on what is learned of Recall@k: --loss reloss.

Hand-made losses of embeddings want pytorch-metric-learning: pip install 'hf-reloss[metric-learning]'.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import image_classification
import torch
from common import (
    check_columns,
    class_names,
    divide,
    encode_labels,
    load_config,
    load_splits,
    load_table,
    logger,
    run,
    set_up,
    wanted_metric,
)
from embedder import Embedder, EmbedderConfig
from image_classification import ImageDataArguments
from text_classification import TextDataArguments, TextModelArguments, tokenized
from transformers import (
    AutoModel,
    AutoTokenizer,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedConfig,
    Trainer,
)

from hf_reloss import (
    AdaptiveLossTrainer,
    AutoSurrogate,
    ReLossTrainer,
    ReLossTrainingArguments,
    Surrogate,
    hand_made_loss,
)


@dataclass
class MetricLearningDataArguments(ImageDataArguments, TextDataArguments):
    """DataArguments, for images, if there is such a column, or texts."""

    held_out_classes: float = field(
        default=0.5,
        metadata={
            "help": "Share of the classes, the last ones, that are not trained but evaluated on: their examples in the "
            "validation data or, if there are none, in the training data. 0: all of the validation data."
        },
    )
    controller_classes: float = field(
        default=0.2,
        metadata={"help": "With ala: share of the other classes that the controller reads in place of training."},
    )
    examples_per_class: int = field(
        default=4, metadata={"help": "So many examples of a class stand together in the order of training, if it has."}
    )


@dataclass
class EmbedderArguments(TextModelArguments):
    """ModelArguments: an encoder that embeddings are made of, unless --model_name_or_path has them already."""

    loss: Literal["triplet", "margin_loss", "ala", "reloss", "ce"] = field(
        default="triplet",
        metadata={
            "help": "triplet, margin_loss: of embeddings. ala: one of these, adapted to the metric. reloss: "
            "--surrogate. ce: cross-entropy of the classes trained on, with a head, on which reloss begins, too."
        },
    )
    adapted_loss: Literal["triplet", "margin_loss"] = field(
        default="triplet", metadata={"help": "What --loss ala adapts, from the options that it is given."}
    )
    loss_options: str = field(default="{}", metadata={"help": 'Options of the loss as JSON: {"margin": 0.1}.'})
    surrogate: str = field(
        default="auto", metadata={"help": "Of --loss reloss: auto, or the folder or Hub id of a loss of embeddings."}
    )
    metric: str = field(default="recall_at_k", metadata={"help": "What is reported, and what ala adapts the loss to."})
    embedding_size: int = field(default=128, metadata={"help": "Of a new model."})


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((MetricLearningDataArguments, EmbedderArguments, ReLossTrainingArguments))


def load_file(path: str) -> datasets.Dataset:
    """Images from a folder or an .npz file, or else texts from a table; with labels."""
    images = Path(path).is_dir() or Path(path).suffix == ".npz"
    return image_classification.load_file(path) if images else load_table(path)


def load_data(
    data_args: MetricLearningDataArguments, model_args: EmbedderArguments, args: ReLossTrainingArguments
) -> tuple[datasets.Dataset | None, datasets.Dataset | None, datasets.Dataset | None, int]:
    """What is trained on, what the controller reads, what is evaluated on, and how many classes are trained on.

    Labels are class indices in `labels`: first the classes trained on, then those that the controller reads, then those
    held out.

    Raises:
        ValueError: as `load_splits`, and where there are fewer than two classes for one of the three.
    """
    train, validation = load_splits(data_args, model_args, args, load_file)
    column, given = data_args.label_column, [data for data in (train, validation) if data is not None]
    names = list(dict.fromkeys(name for data in given for name in class_names(data, column)))
    train, validation = (data and encode_labels(data, column, names) for data in (train, validation))
    held_out = round(data_args.held_out_classes * len(names))
    seen = len(names) - held_out
    read = max(2, round(data_args.controller_classes * seen)) if args.do_train and model_args.loss == "ala" else 0
    trained = seen - read
    if held_out == 1 or (args.do_train and trained < 2):
        raise ValueError(
            f"Of {len(names)} classes {trained} would be trained on, {read} read by the controller and {held_out} "
            "held out, but it takes two to tell them apart: change --held_out_classes or --controller_classes."
        )
    if held_out:
        validation = _of_classes(train if validation is None else validation, seen, len(names))
    reading = _of_classes(train, trained, seen) if read else None
    train = train and _of_classes(train, 0, trained)
    return *divide(train, validation, data_args, args), reading, trained


def _of_classes(data: datasets.Dataset, first: int, end: int) -> datasets.Dataset:
    """The examples of the classes from `first` to before `end`."""
    return data.select([row for row, label in enumerate(data["labels"][:]) if first <= label < end])


def make_model(model_args: EmbedderArguments, config: PreTrainedConfig, classes: int) -> Embedder:
    """A model that makes embeddings already, or a new one, whose encoder may be trained; in float32.

    Args:
        classes: how many a new head tells apart, for cross-entropy.
    """
    if isinstance(config, EmbedderConfig):
        config.classes = classes
        return Embedder.from_pretrained(
            model_args.model_name_or_path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    model = Embedder(EmbedderConfig(encoder_config=config, embedding_size=model_args.embedding_size, classes=classes))
    if model_args.model_name_or_path:
        model.encoder = AutoModel.from_pretrained(model_args.model_name_or_path, config=config, dtype=torch.float32)
    return model


class ClassBatches(torch.utils.data.Sampler):
    """All examples once, in a random order in which some of one class stand together, so that batches have pairs.

    Args:
        labels: [n].
        together: how many of a class.
        seed: of the order, which differs from epoch to epoch and is the same in all processes.
    """

    def __init__(self, labels: torch.Tensor, together: int, seed: int):
        self.labels, self.together, self.seed, self.epoch = labels, together, seed, 0

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        mixed = torch.randperm(len(self.labels), generator=generator)
        by_class = mixed[self.labels[mixed].argsort(stable=True)]
        sizes = torch.bincount(self.labels)
        chunks = [chunk for of_class in by_class.split(sizes.tolist()) for chunk in of_class.split(self.together)]
        for position in torch.randperm(len(chunks), generator=generator).tolist():
            yield from chunks[position].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Makes the order that of an epoch."""
        self.epoch = epoch


class _OfClasses:
    """The part of a Trainer that reads its training data by `ClassBatches`."""

    examples_per_class = 4

    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> ClassBatches:
        data = self.train_dataset if train_dataset is None else train_dataset
        labels = torch.tensor(data.with_format(None)["labels"][:])
        return ClassBatches(labels, self.examples_per_class, self.args.data_seed or self.args.seed)


class PairsTrainer(_OfClasses, ReLossTrainer):
    """A ReLossTrainer on a loss of embeddings."""


class AdaptivePairsTrainer(_OfClasses, AdaptiveLossTrainer):
    """An AdaptiveLossTrainer on a loss of embeddings."""


def begins_on_classes(model_args: EmbedderArguments) -> bool:
    """Whether a run is, or begins, on cross-entropy of the classes trained on, for which the model has a head."""
    return model_args.loss == "ce" or (model_args.loss == "reloss" and model_args.surrogate == "auto")


def make_trainer(
    model_args: EmbedderArguments, examples_per_class: int, reading: datasets.Dataset | None, **options: Any
) -> Trainer:
    """The trainer for `--loss`.

    Args:
        examples_per_class: which stand together in the order of training.
        reading: what the controller of ala reads.
        options: those of Trainer.
    """
    metric = wanted_metric(model_args)

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        return {metric.name: metric.compute(evaluation.predictions, evaluation.label_ids)}

    options["compute_metrics"] = compute_metrics
    if model_args.loss == "ce":
        return Trainer(**options)
    loss: Surrogate | str
    if model_args.loss == "reloss":
        loss = "auto" if begins_on_classes(model_args) else AutoSurrogate.from_pretrained(model_args.surrogate)
    else:
        name = model_args.adapted_loss if model_args.loss == "ala" else model_args.loss
        loss = hand_made_loss(name, **json.loads(model_args.loss_options))
    if model_args.loss == "ala" and reading is not None:
        trainer = AdaptivePairsTrainer(**options, loss=loss, validation_dataset=reading, metric=metric)
    else:
        trainer = PairsTrainer(**options, surrogate=loss, metric=metric)
    trainer.examples_per_class = examples_per_class
    return trainer


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    set_up(args)
    with args.main_process_first(desc="loading the data"):
        train, validation, reading, trained = load_data(data_args, model_args, args)
    parts = {"trained on": train, "read by the controller": reading, "evaluated on": validation}
    for what, data in parts.items():
        if data is not None:
            logger.info(f"{len(set(data['labels'][:]))} classes with {len(data)} examples are {what}.")
    columns = next(data for data in parts.values() if data is not None).column_names

    of_images = data_args.image_column in columns
    if of_images:
        args.remove_unused_columns = False  # the column of images is used, by the transform
        sizes = {} if data_args.image_size is None else {"image_size": data_args.image_size}
        config = load_config(model_args, **sizes)
        encoder = getattr(config, "encoder_config", config)
        processor = image_classification.make_processor(data_args, model_args, encoder)

        def prepare(data: datasets.Dataset | None) -> datasets.Dataset | None:
            return image_classification.processed(data, data_args.image_column, processor, encoder)

    else:
        for data in filter(None, parts.values()):
            check_columns(data, text_column=data_args.text_column)
        source = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
        if source is None:
            raise ValueError("--model_type alone has no tokenizer: pass --tokenizer_name.")
        processor = AutoTokenizer.from_pretrained(source)
        if processor.pad_token is None:
            processor.pad_token = processor.eos_token
        config = load_config(model_args, vocab_size=len(processor))

        def prepare(data: datasets.Dataset | None) -> datasets.Dataset | None:
            return tokenized(data, processor, data_args)

    model = make_model(model_args, config, trained if begins_on_classes(model_args) else 0)
    with args.main_process_first(desc="preparing the data"):
        train, validation, reading = map(prepare, (train, validation, reading))
    trainer = make_trainer(
        model_args,
        data_args.examples_per_class,
        reading,
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
    )
    run(trainer, data_args, task="image-feature-extraction" if of_images else "sentence-similarity")


if __name__ == "__main__":
    main()
