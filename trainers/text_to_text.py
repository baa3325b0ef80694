"""What the programs share whose models write a text for a text: their arguments, tokenizers, models and trainers.

Their data are examples with the columns `source` and `target`, texts, and `references`, lists of texts to judge by.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import datasets
import torch
from common import DatasetArguments, ModelArguments, load_config, trainer_of_loss, wanted_metric
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    TrainingArguments,
)

from hf_reloss import ReLossSeq2SeqTrainer, ReLossSeq2SeqTrainingArguments
from hf_reloss.metrics.text import ErrorRate, TextMetric
from hf_reloss.predictions.dataset import decoded


@dataclass
class TextToTextDataArguments(DatasetArguments):
    """DatasetArguments, for pairs of texts in csv, json or jsonl files, compressed or not."""

    source_prefix: str = field(default="", metadata={"help": "Stands before each source, as T5 wants it."})
    max_source_length: int = field(default=128, metadata={"help": "Longer sources are cut to so many tokens."})
    max_target_length: int = field(
        default=128, metadata={"help": "Longer targets are cut to so many tokens, and no more are generated."}
    )


@dataclass
class TextToTextModelArguments(ModelArguments):
    """ModelArguments, with a tokenizer."""

    loss: Literal["ce", "reloss", "minimum_risk", "policy"] = field(
        default="reloss",
        metadata={
            "help": "ce: cross-entropy. reloss: a learned surrogate. minimum_risk and policy (policy gradients): what "
            "the model writes in training, scored by --metric; see --risk_candidates."
        },
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "The tokenizer, if it is not that of --model_name_or_path or --config_name."}
    )
    vocab_size: int = field(
        default=8000, metadata={"help": "From scratch without a tokenizer: the most tokens of the one that is trained."}
    )


class InOrder:
    """Evaluates examples in their order, where training groups them by length too: texts are compared by place."""

    def _get_eval_sampler(self, eval_dataset: Any) -> None:
        return None


class UsualTrainer(InOrder, Seq2SeqTrainer):
    """Trains on the model's own loss."""

    def evaluation_loop(self, *args: Any, **kwargs: Any):
        # Seq2SeqTrainer would also gather what fills up the last batch of several processes, and score it twice.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)


class LearnedTrainer(InOrder, ReLossSeq2SeqTrainer):
    """Trains on a surrogate."""


def load_tokenizer(
    model_args: TextToTextModelArguments,
    args: TrainingArguments,
    train: datasets.Dataset | None,
    columns: Sequence[str] = ("source", "target"),
) -> Any:
    """The tokenizer that was named, or one that is trained on columns of texts and saved in the output folder."""
    place = model_args.tokenizer_name or model_args.model_name_or_path or model_args.config_name
    if place is not None:
        return AutoTokenizer.from_pretrained(place)
    with args.main_process_first(desc="training the tokenizer"):
        if args.should_save:
            texts = (text for column in columns for text in train[column])
            train_tokenizer(texts, model_args.vocab_size).save_pretrained(args.output_dir)
        return PreTrainedTokenizerFast.from_pretrained(args.output_dir)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer with `<pad>` (0) and `</s>` (1), which stands at the end of each text.

    Its smallest tokens are the 256 bytes, so that no text is unknown.

    Args:
        texts: what it learns from.
        vocab_size: how many tokens there are at most, beside the special ones and the bytes at least.
    """
    special = ["<pad>", "</s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def load_model(
    model_args: TextToTextModelArguments,
    tokenizer: Any,
    kind: type[AutoModelForSeq2SeqLM] | type[AutoModelForCausalLM] = AutoModelForSeq2SeqLM,
    usual: str = "t5",
) -> PreTrainedModel:
    """The model of a checkpoint or, from scratch, one that fits the tokenizer.

    Args:
        kind: of models: encoder-decoders or causal language models.
        usual: the type of one from scratch, unless said otherwise.
    """
    if not (model_args.model_name_or_path or model_args.config_name or model_args.model_type):
        model_args.model_type = usual
    config = load_config(
        model_args,
        vocab_size=len(tokenizer),
        decoder_vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    # In float32 whatever the checkpoint is stored in: --bf16 is autocast.
    if model_args.model_name_or_path:
        return kind.from_pretrained(model_args.model_name_or_path, config=config, dtype=torch.float32)
    if config.is_encoder_decoder:
        config.decoder_start_token_id = tokenizer.pad_token_id  # not all configurations have it before it is set
    return kind.from_config(config, dtype=torch.float32)


def longest_input(model: PreTrainedModel, tokenizer: Any) -> int:
    """The most tokens that a model and its tokenizer take."""
    return min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**9)


def make_text_trainer(
    data_args: TextToTextDataArguments,
    model_args: TextToTextModelArguments,
    args: ReLossSeq2SeqTrainingArguments,
    model: PreTrainedModel,
    tokenizer: Any,
    train: datasets.Dataset | None,
    validation: datasets.Dataset | None,
) -> Seq2SeqTrainer:
    """The trainer for `--loss`, whose evaluation compares what the model generates with the references' own texts."""
    longest = longest_input(model, tokenizer)
    source_length, target_length = min(data_args.max_source_length, longest), min(data_args.max_target_length, longest)
    prefix = data_args.source_prefix

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        sources = [prefix + source for source in batch["source"]]
        encoded = tokenizer(sources, truncation=True, max_length=source_length)
        targets = tokenizer(text_target=batch["target"], truncation=True, max_length=target_length)
        return {**encoded, "labels": targets["input_ids"]}

    with args.main_process_first(desc="tokenizing"):
        train, validation = (
            data and data.map(encode, batched=True, remove_columns=["source", "target"], desc="tokenizing")
            for data in (train, validation)
        )
    args.predict_with_generate = True
    args.generation_max_length = args.generation_max_length or target_length + 1  # with the token it starts from
    if not model_args.model_name_or_path:
        model.generation_config.max_length = args.generation_max_length  # for whoever loads it
    metric = wanted_metric(model_args)
    references = None if validation is None else _references(validation, metric)

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        texts = decoded(torch.as_tensor(evaluation.predictions), tokenizer)
        return {metric.name: metric.compute([text.strip() for text in texts], references)}

    return trainer_of_loss(
        model_args,
        metric,
        UsualTrainer,
        LearnedTrainer,
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_metrics=compute_metrics,
    )


def _references(data: datasets.Dataset, metric: Any) -> list[Any]:
    """The references of each example; the first of them, if the metric is no metric of several."""
    references: Iterator[list[str]] = iter(data["references"])
    if isinstance(metric, TextMetric) and not isinstance(metric, ErrorRate):
        return list(references)
    return [given[0] for given in references]
