"""Extractive question answering on a learned surrogate of the metric, or on cross-entropy.

With a data set from the Hub:

    python trainers/question_answering.py \
        --model_name_or_path distilbert/distilbert-base-uncased --dataset_name rajpurkar/squad \
        --loss reloss --surrogate auto --metric squad_f1 \
        --do_train --do_eval --num_train_epochs 2 --learning_rate 5e-5 --output_dir squad-reloss

With files of your own, of the fields question, context and answers (text, answer_start), on two processes, and
questions that may have no answer:

    accelerate launch --num_processes 2 trainers/question_answering.py \
        --model_name_or_path distilbert/distilbert-base-uncased --version_2_with_negative \
        --train_file train.jsonl --validation_file dev.jsonl --do_train --do_eval --output_dir qa-reloss
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from answers import AnswerReader, QuestionDataArguments, make_features
from common import ModelArguments, divide, load_config, load_splits, run, set_up, trainer_of_loss, wanted_metric
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
)

from hf_reloss import ReLossTrainer, ReLossTrainingArguments, load_metric


@dataclass
class QuestionModelArguments(ModelArguments):
    """ModelArguments, with a tokenizer."""

    metric: str | None = field(
        default=None,
        metadata={"help": "What auto learns: by default squad_f1, or squad_v2_f1 with --version_2_with_negative."},
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "The tokenizer, if it is not that of --model_name_or_path or --config_name."}
    )


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((QuestionDataArguments, QuestionModelArguments, ReLossTrainingArguments))


class _InOrder:
    """Evaluates features in their order, whatever the order of training is: answers are read out by it."""

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        return SequentialSampler(eval_dataset)


class QuestionAnsweringTrainer(_InOrder, Trainer):
    """A Trainer that evaluates in order."""


class ReLossQuestionAnsweringTrainer(_InOrder, ReLossTrainer):
    """A ReLossTrainer that evaluates in order."""


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    set_up(args)
    version = "squad_v2" if data_args.version_2_with_negative else "squad"
    model_args.metric = model_args.metric or f"{version}_f1"
    metric = wanted_metric(model_args)
    names = (f"{version}_f1", f"{version}_exact" + ("" if data_args.version_2_with_negative else "_match"))
    metrics = {name: load_metric(name) for name in names} | {metric.name: metric}
    with args.main_process_first(desc="loading the data"):
        train, validation = divide(*load_splits(data_args, model_args, args), data_args, args)

    source = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
    if source is None:
        raise ValueError("--model_type alone has no tokenizer: pass --tokenizer_name.")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.padding_side = "right"  # positions are counted from the left
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = load_config(model_args, vocab_size=len(tokenizer))
    config.pad_token_id = tokenizer.pad_token_id
    # In float32 whatever the checkpoint is stored in: --bf16 is autocast.
    if model_args.model_name_or_path:
        model = AutoModelForQuestionAnswering.from_pretrained(
            model_args.model_name_or_path, config=config, dtype=torch.float32
        )
    else:
        model = AutoModelForQuestionAnswering.from_config(config, dtype=torch.float32)

    with args.main_process_first(desc="tokenizing"):
        features = {
            part: None if examples is None else make_features(examples, tokenizer, data_args)
            for part, examples in (("train", train), ("validation", validation))
        }
    reader = None if validation is None else AnswerReader(validation, features["validation"], data_args)

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        answers = reader(*evaluation.predictions[:2])
        return {name: each.compute(answers, reader.references) for name, each in metrics.items()}

    trainer = trainer_of_loss(
        model_args,
        metric,
        usual=QuestionAnsweringTrainer,
        learned=ReLossQuestionAnsweringTrainer,
        model=model,
        args=args,
        train_dataset=features["train"],
        eval_dataset=features["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=lambda logits, labels: logits[:2],  # some models put out more
        processing_class=tokenizer,
    )
    run(trainer, data_args, task="question-answering")


if __name__ == "__main__":
    main()
