"""Summarization on a learned surrogate of the metric, on what the model writes, or on cross-entropy.

With a data set from the Hub:

    python trainers/summarization.py \
        --model_name_or_path google-t5/t5-small --source_prefix "summarize: " \
        --dataset_name EdinburghNLP/xsum --text_column document --summary_column summary \
        --loss reloss --surrogate auto --metric rougeL --generation_num_beams 4 \
        --do_train --do_eval --num_train_epochs 3 --learning_rate 1e-4 --output_dir xsum-reloss

With files of your own, csv, json or jsonl (also compressed: .jsonl.gz), whose sources are lists of sentences and whose
summaries are lists of references, on two processes:

    accelerate launch --num_processes 2 trainers/summarization.py \
        --model_name_or_path facebook/bart-base --text_column source --summary_column summaries \
        --train_file train.jsonl.gz --validation_file dev.jsonl.gz --max_source_length 512 --max_target_length 64 \
        --do_train --do_eval --output_dir summaries-reloss
"""

from dataclasses import dataclass, field
from typing import Any

import datasets
from common import check_columns, divide, load_splits, run, set_up
from text_to_text import (
    TextToTextDataArguments,
    TextToTextModelArguments,
    load_model,
    load_tokenizer,
    make_text_trainer,
)
from transformers import HfArgumentParser

from hf_reloss import ReLossSeq2SeqTrainingArguments


@dataclass
class SummarizationDataArguments(TextToTextDataArguments):
    """TextToTextDataArguments, for documents and their summaries."""

    text_column: str = field(
        default="text", metadata={"help": "The column of documents: texts, or lists of texts, which are joined."}
    )
    summary_column: str = field(
        default="summary",
        metadata={
            "help": "The column of summaries: texts, or lists of references. The first of them is trained on; "
            "evaluation is against all, if the metric takes several."
        },
    )
    max_source_length: int = field(default=512, metadata={"help": "Longer documents are cut to so many tokens."})


@dataclass
class SummarizationModelArguments(TextToTextModelArguments):
    """TextToTextModelArguments, with a metric of summaries."""

    metric: str = field(default="rougeL", metadata={"help": "The metric that is reported, and that auto learns."})


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((SummarizationDataArguments, SummarizationModelArguments, ReLossSeq2SeqTrainingArguments))


def pairs(data: datasets.Dataset | None, data_args: SummarizationDataArguments) -> datasets.Dataset | None:
    """Documents as `source`, first summaries as `target`, all as `references`.

    Raises:
        ValueError: for documents without a summary.
    """
    if data is None:
        return None
    text_column, summary_column = data_args.text_column, data_args.summary_column
    check_columns(data, text_column=text_column, summary_column=summary_column)

    def pair(example: dict[str, Any]) -> dict[str, Any]:
        text, summary = example[text_column], example[summary_column]
        references = [summary] if isinstance(summary, str) else summary
        if not references:
            raise ValueError(f"The column {summary_column!r} has no summary of {text!r}: leave such examples out.")
        return {
            "source": text if isinstance(text, str) else " ".join(text),
            "target": references[0],
            "references": references,
        }

    return data.map(pair, remove_columns=data.column_names, desc="reading")


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    set_up(args)
    with args.main_process_first(desc="loading the data"):
        found = divide(*load_splits(data_args, model_args, args), data_args, args)
        train, validation = (pairs(data, data_args) for data in found)
    tokenizer = load_tokenizer(model_args, args, train)
    model = load_model(model_args, tokenizer)
    trainer = make_text_trainer(data_args, model_args, args, model, tokenizer, train, validation)
    run(trainer, data_args, task="summarization")


if __name__ == "__main__":
    main()
