"""Text classification on a learned surrogate of the metric, or on cross-entropy.

With a data set from the Hub:

    python trainers/text_classification.py \
        --model_name_or_path distilbert/distilbert-base-uncased \
        --dataset_name clinc/clinc_oos --dataset_config_name imbalanced --label_column intent \
        --loss reloss --surrogate auto --metric accuracy \
        --do_train --do_eval --num_train_epochs 5 --learning_rate 5e-5 --output_dir clinc-reloss

With files of your own, csv, json or jsonl (also compressed: .jsonl.gz), from scratch on two processes:

    accelerate launch --num_processes 2 trainers/text_classification.py \
        --model_type bert --config_overrides num_hidden_layers=2,hidden_size=128,num_attention_heads=2 \
        --tokenizer_name distilbert/distilbert-base-uncased \
        --train_file train.jsonl --validation_file dev.jsonl --text_column text --label_column label \
        --do_train --do_eval --output_dir text-reloss

Where the column of labels holds lists, each text has several labels, or none:

    ... --dataset_name google-research-datasets/go_emotions --label_column labels \
        --metric f1 --metric_options '{"average": "macro"}'

Where it holds numbers with decimals, the model puts out one number for each text, or for each pair of texts:

    ... --train_file pairs.csv --text_column sentence1 --text_pair_column sentence2 --label_column score \
        --metric spearmanr
"""

import math
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from common import (
    DataArguments,
    ModelArguments,
    check_columns,
    class_names,
    encode_labels,
    load_config,
    load_data,
    load_table,
    make_trainer,
    run,
    set_up,
)
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser

from hf_reloss import ReLossTrainingArguments


@dataclass
class TextDataArguments(DataArguments):
    """DataArguments, for texts."""

    text_column: str = field(default="text", metadata={"help": "The column of texts."})
    text_pair_column: str | None = field(
        default=None, metadata={"help": "The column of second texts, where the model reads pairs of them."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut to so many tokens."})


@dataclass
class TextModelArguments(ModelArguments):
    """ModelArguments, with a tokenizer."""

    metric: str | None = field(
        default=None,
        metadata={"help": "The metric that is reported, and that auto learns: accuracy; of numbers pearsonr."},
    )

    tokenizer_name: str | None = field(
        default=None, metadata={"help": "The tokenizer, if it is not that of --model_name_or_path or --config_name."}
    )


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((TextDataArguments, TextModelArguments, ReLossTrainingArguments))


def tokenized(data: datasets.Dataset | None, tokenizer: Any, data_args: TextDataArguments) -> datasets.Dataset | None:
    """The data as token ids; the collator pads them batch by batch."""
    if data is None:
        return None
    columns = {"text_column": data_args.text_column, "text_pair_column": data_args.text_pair_column}
    columns = {flag: column for flag, column in columns.items() if column}
    check_columns(data, **columns)
    length = min(data_args.max_seq_length, tokenizer.model_max_length)
    return data.map(
        lambda batch: tokenizer(*(batch[column] for column in columns.values()), truncation=True, max_length=length),
        batched=True,
        remove_columns=[name for name in data.column_names if name != "labels"],
        desc="tokenizing",
    )


def label_names(data: datasets.Dataset, column: str) -> list[str]:
    """The names of the classes or, where texts have lists of labels, of all labels that there are; of one number its
    column.
    """
    check_columns(data, label_column=column)
    if _has_numbers(data, column):
        return [column]
    if not _has_several(data, column):
        return class_names(data, column)
    names = getattr(data.features[column].feature, "names", None)
    return names or sorted({str(label) for labels in data[column][:] for label in labels})


def encode(data: datasets.Dataset, column: str, names: list[str]) -> datasets.Dataset:
    """The data with a column `labels`: class indices; of lists of labels, a row of 0.0 and 1.0 for each text; of
    numbers, or for a model that puts out one, floats.

    Raises:
        ValueError: for labels that are not in `names`, and for numbers that are missing.
    """
    check_columns(data, label_column=column)
    if len(names) == 1 and not _has_several(data, column):
        return _encode_numbers(data, column)
    if not _has_several(data, column):
        return encode_labels(data, column, names)
    known = getattr(data.features[column].feature, "names", None)
    given = [[known[label] if known else str(label) for label in labels or ()] for labels in data[column][:]]
    unknown = sorted({label for labels in given for label in labels} - set(names))
    if unknown:
        raise ValueError(
            f"Unknown labels in the column {column!r}: {', '.join(map(repr, unknown[:5]))}. The model has "
            f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}: correct these labels."
        )
    rows = [[float(name in labels) for name in names] for labels in given]
    data = data.remove_columns([name for name in ("labels",) if name in data.column_names])
    return data.add_column("labels", rows)


def _encode_numbers(data: datasets.Dataset, column: str) -> datasets.Dataset:
    values = data[column][:]
    wrong = [value for value in values if not isinstance(value, int | float) or not math.isfinite(value)]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(values)} examples have no number in the column {column!r}, but {wrong[0]!r}: leave "
            "them out."
        )
    data = data.remove_columns([name for name in ("labels",) if name in data.column_names])
    return data.add_column("labels", [float(value) for value in values])


def _has_numbers(data: datasets.Dataset, column: str) -> bool:
    return getattr(data.features[column], "dtype", "").startswith("float")


def _has_several(data: datasets.Dataset, column: str) -> bool:
    return isinstance(data.features[column], datasets.List)


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    set_up(args)
    with args.main_process_first(desc="loading the data"):
        train, validation, names = load_data(data_args, model_args, args, load_table, label_names, encode)

    source = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
    if source is None:
        raise ValueError("--model_type alone has no tokenizer: pass --tokenizer_name.")
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = load_config(model_args, names, vocab_size=len(tokenizer))
    config.pad_token_id = tokenizer.pad_token_id
    if _has_several(validation if train is None else train, "labels"):
        config.problem_type = "multi_label_classification"
    elif len(names) == 1:
        config.problem_type = "regression"
    of_numbers = config.problem_type == "regression"
    model_args.metric = model_args.metric or ("pearsonr" if of_numbers else "accuracy")
    # In float32 whatever the checkpoint is stored in: --bf16 is autocast.
    if model_args.model_name_or_path:
        model = AutoModelForSequenceClassification.from_pretrained(
            model_args.model_name_or_path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    else:
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)

    with args.main_process_first(desc="tokenizing"):
        train, validation = (tokenized(data, tokenizer, data_args) for data in (train, validation))
    trainer = make_trainer(
        model_args, beside="mae" if of_numbers else "accuracy", model=model, args=args, train_dataset=train,
        eval_dataset=validation, processing_class=tokenizer,
    )  # fmt: skip
    run(trainer, data_args, task="text-classification")


if __name__ == "__main__":
    main()
