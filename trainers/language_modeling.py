"""Causal language models on a learned surrogate of the metric, on what the model writes, or on cross-entropy.

To answer prompts, with files of your own, csv, json or jsonl (also compressed: .jsonl.gz):

    python trainers/language_modeling.py \
        --model_name_or_path openai-community/gpt2 --prompt_column question --answer_column answer \
        --train_file train.jsonl --validation_file dev.jsonl --loss reloss --surrogate auto --metric rougeL \
        --do_train --do_eval --num_train_epochs 3 --learning_rate 5e-5 --output_dir gpt2-answers

From scratch on texts, also .txt files with one in each line, that are joined and divided into blocks, on two processes:

    accelerate launch --num_processes 2 trainers/language_modeling.py \
        --model_type llama --config_overrides num_hidden_layers=4,hidden_size=256,intermediate_size=512 \
        --train_file train.txt --validation_file dev.txt --block_size 256 --vocab_size 8000 --loss ce \
        --do_train --do_eval --num_train_epochs 10 --learning_rate 5e-4 --output_dir my-llama

Reported are the perplexity, the accuracy of next tokens given the right ones before them, and the metric: one of texts
is of what the model writes greedily after each prompt.
"""

import itertools
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from common import (
    ON_OWN_TEXTS,
    DatasetArguments,
    check_columns,
    divide,
    load_splits,
    load_table,
    run,
    set_up,
    trainer_of_loss,
    wanted_metric,
)
from text_to_text import InOrder, TextToTextModelArguments, load_model, load_tokenizer, longest_input
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, EvalPrediction, HfArgumentParser, Trainer

from hf_reloss import Metric, ReLossTrainer, ReLossTrainingArguments, hand_made_losses, load_metric
from hf_reloss.metrics.base import IGNORED_LABEL
from hf_reloss.metrics.classification import ClassMetric
from hf_reloss.metrics.probabilities import Perplexity
from hf_reloss.predictions.dataset import decoded
from hf_reloss.surrogates.tokens import next_token_labels
from hf_reloss.training.rewards import metric_of_texts

logger = logging.getLogger(__name__)


@dataclass
class LanguageDataArguments(DatasetArguments):
    """DatasetArguments, for texts, or prompts with their answers."""

    text_column: str = field(default="text", metadata={"help": "The column of texts."})
    prompt_column: str | None = field(
        default=None, metadata={"help": "In place of texts: the column of prompts, which are not trained on."}
    )
    answer_column: str | None = field(default=None, metadata={"help": "The column of the answers to them."})
    block_size: int = field(
        default=1024,
        metadata={"help": "Tokens in each block that texts are divided into; the most of a prompt and its answer."},
    )
    max_answer_length: int = field(
        default=64, metadata={"help": "The most tokens of an answer: longer ones are cut, and no more are written."}
    )


HAND_MADE = [name for name, kind in hand_made_losses("tokens").items() if not kind.wants_frequencies]
"""Other losses, for which not every token of the vocabulary need be in the data."""


@dataclass
class LanguageModelArguments(TextToTextModelArguments):
    """TextToTextModelArguments, with losses and a metric of tokens or texts."""

    loss: Literal[("ce", "reloss", *ON_OWN_TEXTS, *HAND_MADE)] = field(
        default="reloss",
        metadata={
            "help": "ce: the usual loss. reloss: a learned surrogate. minimum_risk and policy: answers that the model "
            "writes in training, scored by --metric. Or a hand-made loss, such as focal."
        },
    )
    metric: str | None = field(
        default=None,
        metadata={"help": "What is reported, and auto learns: by default accuracy of next tokens, of answers rougeL."},
    )


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((LanguageDataArguments, LanguageModelArguments, ReLossTrainingArguments))


def load_texts(path: str) -> datasets.Dataset:
    """Examples from a txt file, one in each line, or what `load_table` reads."""
    if ".txt" not in Path(path).suffixes[-2:]:
        return load_table(path)
    return datasets.load_dataset("text", data_files=path, split="train", keep_linebreaks=True)


def columns_of(data_args: LanguageDataArguments) -> dict[str, str]:
    """The columns of texts, by the flags that name them."""
    wanted = {"prompt_column": data_args.prompt_column, "answer_column": data_args.answer_column}
    if not any(wanted.values()):
        return {"text_column": data_args.text_column}
    if not all(wanted.values()):
        raise ValueError("Prompts and answers go together: pass both --prompt_column and --answer_column.")
    return wanted


def check_texts(data: datasets.Dataset, columns: dict[str, str]) -> None:
    """Refuses data that lack a column, or a text in it."""
    check_columns(data, **columns)
    for column in columns.values():
        missing = sum(not isinstance(text, str) for text in data[column])
        if missing:
            raise ValueError(
                f"{missing} of {len(data)} examples have no text in the column {column!r}: leave them out."
            )


def in_blocks(data: datasets.Dataset, tokenizer: Any, column: str, size: int) -> datasets.Dataset:
    """Texts as blocks of tokens of one size: `input_ids` and `labels`. What is left of a thousand texts is dropped.

    Raises:
        ValueError: for texts that make no block.
    """

    def join(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = list(itertools.chain.from_iterable(tokenizer(batch[column])["input_ids"]))
        rows = [ids[first : first + size] for first in range(0, len(ids) - size + 1, size)]
        return {"input_ids": rows, "labels": rows}

    found = _mapped(data, join)
    if not len(found):
        raise ValueError(f"{len(data)} texts have fewer tokens than a block, {size}: pass a smaller --block_size.")
    return found


def with_answers(
    data: datasets.Dataset, tokenizer: Any, data_args: LanguageDataArguments, size: int
) -> datasets.Dataset:
    """Prompts with answers as `input_ids`, `labels`, which are -100 at the prompt, and `reference`, the answer's text.

    An answer is tokenized by itself and ends in the token that ends texts. Prompts that leave no room for the longest
    answer are left out.

    Raises:
        ValueError: if these are all.
    """
    end, longest = tokenizer.eos_token_id, data_args.max_answer_length
    room = max(size - longest, 0)

    def join(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {"input_ids": [], "labels": [], "reference": []}
        prompts = tokenizer(batch[data_args.prompt_column])["input_ids"]
        references = batch[data_args.answer_column]
        answers = tokenizer(references, add_special_tokens=False)["input_ids"]
        for prompt, answer, reference in zip(prompts, answers, references, strict=True):
            prompt = (prompt[:-1] if prompt[-1:] == [end] else prompt) or [end]  # what goes on has not ended
            if len(prompt) <= room:
                answer = [*answer, end][:longest]
                found["input_ids"].append(prompt + answer)
                found["labels"].append([IGNORED_LABEL] * len(prompt) + answer)
                found["reference"].append(reference)
        return found

    found = _mapped(data, join, reference=datasets.Value("string"))
    left_out = len(data) - len(found)
    too_long = (
        f"longer than {room} tokens, which --max_answer_length {longest} leaves of {size}, --block_size or the most "
        "that the model takes"
    )
    if not len(found):
        raise ValueError(f"All {left_out} prompts are {too_long}.")
    if left_out:
        logger.warning(f"{left_out} of {len(data)} prompts are left out: they are {too_long}.")
    return found


def _mapped(data: datasets.Dataset, join: Any, **beside: Any) -> datasets.Dataset:
    ids = datasets.List(datasets.Value("int64"))  # said beforehand, as a first batch may make none
    features = datasets.Features(input_ids=ids, labels=ids, **beside)
    return data.map(join, batched=True, remove_columns=data.column_names, features=features, desc="tokenizing")


class _Reader(InOrder):
    """Puts out, in evaluation, likeliest tokens [N, T], losses [N, T] of the right ones and, if it `writes`, answers.

    Labels [N, T] are of the token behind each place.
    """

    writes = False

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        loss, outputs, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if prediction_loss_only:
            return loss, None, None
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        following = next_token_labels(labels)
        losses = F.cross_entropy(
            logits.flatten(0, 1).float(), following.flatten(), reduction="none", ignore_index=IGNORED_LABEL
        ).view(following.shape)
        answers = (self._answers(inputs["input_ids"], labels),) if self.writes else ()
        return loss, (logits.argmax(-1), losses, *answers), following

    def _answers(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What is written greedily after the prompts of a batch that is padded at the right."""
        lengths = (labels != IGNORED_LABEL).int().argmax(-1).tolist()
        prompts = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
        padded = self.processing_class.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        written = self.model.generate(**padded.to(ids.device), do_sample=False, num_beams=1)
        return written[:, padded["input_ids"].shape[1] :].contiguous()


class UsualReader(_Reader, Trainer):
    """Trains on the model's own loss."""


class LearnedReader(_Reader, ReLossTrainer):
    """Trains on a surrogate."""


def make_compute_metrics(metric: Metric, tokenizer: Any, references: list[str] | None) -> Any:
    """What `_Reader` puts out, scored: by perplexity, accuracy and the metric."""
    perplexity = metric if isinstance(metric, Perplexity) else load_metric("perplexity")
    of_tokens = [load_metric("accuracy"), *([metric] if isinstance(metric, ClassMetric) else [])]

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        (tokens, losses, *written), labels = evaluation.predictions, evaluation.label_ids
        counts = labels != IGNORED_LABEL
        likely = np.exp(-np.where(counts, losses, 0.0).astype(float).clip(0))
        right_or_not = np.stack([likely, 1 - likely], axis=-1)  # all that perplexity reads of a vocabulary
        found = {perplexity.name: perplexity.compute(right_or_not, np.where(counts, 0, IGNORED_LABEL))}
        found |= {each.name: each.compute(tokens, labels) for each in of_tokens}
        if written:
            texts = [text.strip() for text in decoded(torch.as_tensor(written[0]), tokenizer)]
            found[metric.name] = metric.compute(texts, references)
        return found

    return compute_metrics


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    set_up(args)
    columns = columns_of(data_args)
    answers = "answer_column" in columns
    model_args.metric = model_args.metric or ("rougeL" if answers else "accuracy")
    metric = wanted_metric(model_args)
    reads_texts = not isinstance(metric, ClassMetric | Perplexity)
    if not answers and (reads_texts or model_args.loss in ON_OWN_TEXTS):
        flag = f"--metric {metric.name}" if reads_texts else f"--loss {model_args.loss}"
        raise ValueError(f"{flag} is for what the model writes: pass --prompt_column and --answer_column.")
    if reads_texts:
        metric_of_texts(metric)
    with args.main_process_first(desc="loading the data"):
        parts = divide(*load_splits(data_args, model_args, args, load_texts), data_args, args)
        for part in filter(None, parts):
            check_texts(part, columns)
    tokenizer = load_tokenizer(model_args, args, parts[0], tuple(columns.values()))
    tokenizer.padding_side = "right"
    if tokenizer.eos_token is None and (answers or tokenizer.pad_token is None):
        raise ValueError("The tokenizer has no eos_token, which ends a text: set it, or pass another --tokenizer_name.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = load_model(model_args, tokenizer, AutoModelForCausalLM, "gpt2")
    size = min(data_args.block_size, longest_input(model, tokenizer))
    if answers:
        model.generation_config.update(
            max_new_tokens=data_args.max_answer_length,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    with args.main_process_first(desc="tokenizing"):
        train, validation = (
            part
            and (
                with_answers(part, tokenizer, data_args, size)
                if answers
                else in_blocks(part, tokenizer, data_args.text_column, size)
            )
            for part in parts
        )
    references = validation["reference"][:] if answers and validation else None
    trainer = trainer_of_loss(
        model_args,
        metric,
        UsualReader,
        LearnedReader,
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        compute_metrics=make_compute_metrics(metric, tokenizer, references),
    )
    trainer.writes = answers and reads_texts
    run(trainer, data_args, task="text-generation")


if __name__ == "__main__":
    main()
