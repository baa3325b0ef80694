"""Tagging of tokens on a learned surrogate of the metric, or on cross-entropy.

With a data set from the Hub:

    python trainers/token_classification.py \
        --model_name_or_path distilbert/distilbert-base-cased \
        --dataset_name lhoestq/conll2003 --label_column ner_tags \
        --loss reloss --surrogate auto --metric seqeval \
        --do_train --do_eval --num_train_epochs 3 --learning_rate 5e-5 --output_dir conll-reloss

With files of your own, json or jsonl (also compressed: .jsonl.gz), from scratch on two processes:

    accelerate launch --num_processes 2 trainers/token_classification.py \
        --model_type bert --config_overrides num_hidden_layers=2,hidden_size=128,num_attention_heads=2 \
        --tokenizer_name google-bert/bert-base-cased \
        --train_file train.jsonl --validation_file dev.jsonl --text_column tokens --label_column tags \
        --do_train --do_eval --output_dir tags-reloss
"""

import itertools
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
    wanted_metric,
)
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    HfArgumentParser,
)

from hf_reloss import ReLossTrainingArguments
from hf_reloss.metrics.base import IGNORED_LABEL


@dataclass
class TagDataArguments(DataArguments):
    """DataArguments, for sentences that are split into words, each of which has a tag."""

    text_column: str = field(default="tokens", metadata={"help": "The column of lists of words."})
    label_column: str = field(default="tags", metadata={"help": "The column of lists of tags: integers or strings."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer sentences are cut to so many tokens."})


@dataclass
class TagModelArguments(ModelArguments):
    """ModelArguments, with a tokenizer and a metric of tags."""

    tokenizer_name: str | None = field(
        default=None, metadata={"help": "The tokenizer, if it is not that of --model_name_or_path or --config_name."}
    )
    metric: str = field(
        default="seqeval", metadata={"help": "The metric that is reported beside accuracy, and that auto learns."}
    )


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((TagDataArguments, TagModelArguments, ReLossTrainingArguments))


def tag_names(data: datasets.Dataset, column: str) -> list[str]:
    """The names of all tags in a column of lists of them: those of its ClassLabel, or else its sorted values."""
    return class_names(_flat(data, column), column)


def encode_tags(data: datasets.Dataset, column: str, names: list[str]) -> datasets.Dataset:
    """The data with a column `labels` of lists of class indices, of tags by their names.

    Raises:
        ValueError: for tags that are missing or not in `names`.
    """
    tags = iter(encode_labels(_flat(data, column), column, names)["labels"])
    labels = [list(itertools.islice(tags, len(row))) for row in data[column]]
    data = data.remove_columns([name for name in ("labels",) if name in data.column_names])
    return data.add_column("labels", labels)


def _flat(data: datasets.Dataset, column: str) -> datasets.Dataset:
    """The tags of all sentences, one after the other, as a data set of one column."""
    check_columns(data, label_column=column)
    inner = getattr(data.features[column], "feature", None)
    if inner is None:
        raise ValueError(f"The column {column!r} wants a list of tags for each sentence, but has {data[0][column]!r}.")
    tags = [tag for row in data[column] for tag in row]
    return datasets.Dataset.from_dict({column: tags}, features=datasets.Features({column: inner}))


def tokenized(data: datasets.Dataset | None, tokenizer: Any, data_args: TagDataArguments) -> datasets.Dataset | None:
    """The data as token ids; the first token of each word has its tag, the others -100.

    Raises:
        ValueError: for a sentence that has not one tag for each word.
    """
    if data is None:
        return None
    column = data_args.text_column
    check_columns(data, text_column=column)
    length = min(data_args.max_seq_length, tokenizer.model_max_length)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = tokenizer(batch[column], truncation=True, max_length=length, is_split_into_words=True)
        labels = []
        for row, (words, tags) in enumerate(zip(batch[column], batch["labels"], strict=True)):
            if len(words) != len(tags):
                raise ValueError(f"A sentence of {len(words)} words has {len(tags)} tags: {' '.join(words)!r}.")
            places = encoded.word_ids(row)
            labels.append(
                [
                    IGNORED_LABEL if place is None or place == before else tags[place]
                    for before, place in zip([None, *places], places, strict=False)
                ]
            )
        return {**encoded, "labels": labels}

    return data.map(encode, batched=True, remove_columns=data.column_names, desc="tokenizing")


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    set_up(args)
    with args.main_process_first(desc="loading the data"):
        train, validation, names = load_data(data_args, model_args, args, load_table, tag_names, encode_tags)

    source = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
    if source is None:
        raise ValueError("--model_type alone has no tokenizer: pass --tokenizer_name.")
    tokenizer = AutoTokenizer.from_pretrained(source)
    if getattr(tokenizer, "add_prefix_space", None) is False:  # without it, those of RoBERTa's kind join words
        tokenizer = AutoTokenizer.from_pretrained(source, add_prefix_space=True)
    if not tokenizer.is_fast:
        raise ValueError(f"The tokenizer of {source} cannot tell which word a token is of: choose a fast one.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = load_config(model_args, names, vocab_size=len(tokenizer))
    config.pad_token_id, config.problem_type = tokenizer.pad_token_id, None
    # In float32 whatever the checkpoint is stored in: --bf16 is autocast.
    if model_args.model_name_or_path:
        model = AutoModelForTokenClassification.from_pretrained(
            model_args.model_name_or_path, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    else:
        model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)

    with args.main_process_first(desc="tokenizing"):
        train, validation = (tokenized(data, tokenizer, data_args) for data in (train, validation))
    # Metrics of entities read tags by their names.
    options = {"label_names": names} if model_args.metric.startswith("seqeval") else {}
    trainer = make_trainer(
        model_args,
        wanted_metric(model_args, **options),
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    run(trainer, data_args, task="token-classification")


if __name__ == "__main__":
    main()
