"""Translation on a learned surrogate of the metric, on what the model writes, on cross-entropy or on bags of n-grams.

From a checkpoint, with a data set from the Hub:

    python trainers/translation.py \
        --model_name_or_path Helsinki-NLP/opus-mt-en-ro \
        --dataset_name wmt/wmt16 --dataset_config_name ro-en --source_lang en --target_lang ro \
        --loss reloss --surrogate auto --metric sacrebleu --generation_num_beams 4 \
        --do_train --do_eval --max_steps 5000 --learning_rate 2e-5 --output_dir en-ro-reloss

From scratch without autoregression, on translations of a teacher, on two processes, with files of your own, csv, json
or jsonl (also compressed: .jsonl.gz), that have a column for each language:

    accelerate launch --num_processes 2 trainers/translation.py \
        --architecture nat --config_overrides d_model=256,ffn_dim=1024 --vocab_size 8000 --distill en-de-teacher \
        --train_file train.jsonl.gz --validation_file dev.jsonl.gz --source_lang en --target_lang de \
        --loss ce --label_smoothing_factor 0.1 \
        --do_train --do_eval --num_train_epochs 30 --learning_rate 5e-4 --output_dir en-de-nat

The model that comes of the second is fine-tuned with `--model_name_or_path en-de-nat --loss reloss`, or
`--loss bag_of_ngrams` (Shao et al. 2020).
"""

import functools
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets
import torch
from accelerate.utils import broadcast_object_list, gather_object
from bag_of_ngrams import bag_of_ngrams_loss
from common import check_columns, divide, load_splits, run, set_up
from datasets.fingerprint import Hasher
from nat import NatForTranslation, token_cross_entropy
from text_to_text import (
    TextToTextDataArguments,
    TextToTextModelArguments,
    load_model,
    load_tokenizer,
    make_text_trainer,
)
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, HfArgumentParser, PreTrainedModel

from hf_reloss import ReLossSeq2SeqTrainingArguments

logger = logging.getLogger(__name__)


@dataclass
class TranslationDataArguments(TextToTextDataArguments):
    """TextToTextDataArguments, for sentences in two languages."""

    source_lang: str | None = field(
        default=None, metadata={"help": "The language to translate from: a column, or a key of `translation`."}
    )
    target_lang: str | None = field(default=None, metadata={"help": "The language to translate to, likewise."})
    distill: str | None = field(
        default=None,
        metadata={
            "help": "Train on translations of this model, a folder or Hub id, made once by beam search with "
            "--generation_num_beams (4 by default) and kept in the output folder."
        },
    )


@dataclass
class TranslationModelArguments(TextToTextModelArguments):
    """TextToTextModelArguments, with a metric of translations."""

    model_type: str | None = field(
        default=None,
        metadata={
            "aliases": ["--architecture"],
            "help": "From scratch: the default configuration of this type: t5 (unless said otherwise), marian, or nat "
            "for a transformer without autoregression.",
        },
    )
    loss: Literal["ce", "reloss", "minimum_risk", "policy", "bag_of_ngrams"] = field(
        default="reloss",
        metadata={
            "help": "ce: cross-entropy. reloss: a learned surrogate. minimum_risk and policy (policy gradients): what "
            "the model writes in training, scored by --metric; not for nat. bag_of_ngrams: BoN-L1 of pairs of tokens, "
            "for nat."
        },
    )
    metric: str = field(default="sacrebleu", metadata={"help": "The metric that is reported, and that auto learns."})


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((TranslationDataArguments, TranslationModelArguments, ReLossSeq2SeqTrainingArguments))


def pairs(data: datasets.Dataset | None, data_args: TranslationDataArguments) -> datasets.Dataset | None:
    """Sentences as `source` and `target`, the latter as `references` too."""
    if data is None:
        return None
    source, target = data_args.source_lang, data_args.target_lang
    if not source or not target:
        raise ValueError("Pass the languages to translate from and to: --source_lang en --target_lang de.")
    if "translation" in data.column_names:
        data = data.select_columns("translation").map(lambda example: example["translation"], desc="reading")
    check_columns(data, source_lang=source, target_lang=target)
    return data.map(
        lambda batch: {
            "source": batch[source],
            "target": batch[target],
            "references": [[reference] for reference in batch[target]],
        },
        batched=True,
        remove_columns=data.column_names,
        desc="reading",
    )


def distilled(
    data: datasets.Dataset, data_args: TranslationDataArguments, args: ReLossSeq2SeqTrainingArguments
) -> datasets.Dataset:
    """The data with a teacher's translations in place of the targets (Kim and Rush 2016).

    Each process makes its share of them, the main one keeps them in the output folder, and a later run with the same
    sources, teacher and beams reads them from there.
    """
    beams = args.generation_num_beams or 4
    lengths = data_args.max_source_length, data_args.max_target_length
    sources = [data_args.source_prefix + source for source in data["source"]]
    kept = Path(args.output_dir) / f"_distilled_{Hasher.hash([sources, data_args.distill, beams, lengths])}.json"
    known = [json.loads(kept.read_text()) if args.should_save and kept.is_file() else None]
    (targets,) = broadcast_object_list(known)
    if targets is None:
        targets = translations(sources, data_args.distill, beams, lengths, args)
        if args.should_save:
            kept.parent.mkdir(parents=True, exist_ok=True)
            unfinished = kept.with_suffix(".part")
            unfinished.write_text(json.dumps(targets))
            unfinished.rename(kept)
            logger.info(f"{len(targets)} translations by {data_args.distill} are kept in {kept}.")
    return data.remove_columns("target").add_column("target", targets)


@torch.no_grad()
def translations(
    sources: list[str], teacher: str, beams: int, lengths: tuple[int, int], args: ReLossSeq2SeqTrainingArguments
) -> list[str]:
    """Translations of all sources, which the processes share out among themselves.

    Args:
        sources: what is translated.
        teacher: folder or Hub id of an encoder-decoder.
        beams: of the search.
        lengths: the most tokens of a source and of a translation.
        args: its device, and the size of batches in evaluation.
    """
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForSeq2SeqLM.from_pretrained(teacher, dtype=torch.float32).to(args.device).eval()
    # Those of like length are translated together, and each process gets as many long ones as the others.
    order = sorted(range(len(sources)), key=lambda index: len(sources[index]), reverse=True)
    mine, size = order[args.process_index :: args.world_size], args.per_device_eval_batch_size
    made = []
    for first in tqdm(range(0, len(mine), size), "distilling", disable=not args.should_log, unit="batch"):
        batch = mine[first : first + size]
        inputs = tokenizer(
            [sources[index] for index in batch],
            truncation=True,
            max_length=min(lengths[0], tokenizer.model_max_length),
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(args.device)
        ids = model.generate(**inputs, num_beams=beams, max_length=lengths[1] + 1)
        made += zip(batch, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True)
    return [text.strip() for _, text in sorted(gather_object(made))]


def set_loss(
    model: PreTrainedModel, model_args: TranslationModelArguments, args: ReLossSeq2SeqTrainingArguments
) -> None:
    """Sets the loss of tokens of a model without autoregression, in which that of the length stands beside it.

    Raises:
        ValueError: for a difference of bags of n-grams of another model.
    """
    if not isinstance(model, NatForTranslation):
        if model_args.loss == "bag_of_ngrams":
            raise ValueError(
                "--loss bag_of_ngrams wants a model without autoregression, whose tokens are independent of each "
                f"other, but this is {type(model).__name__}: pass --architecture nat, or a checkpoint of such a model."
            )
    elif model_args.loss == "bag_of_ngrams":
        if args.label_smoothing_factor:
            raise ValueError("--label_smoothing_factor smooths cross-entropy: leave it out with --loss bag_of_ngrams.")
        model.token_loss = bag_of_ngrams_loss
    elif model_args.loss in ("ce", "reloss"):
        # Trainer's own smoothing would leave out the loss of the length.
        model.token_loss = functools.partial(token_cross_entropy, label_smoothing=args.label_smoothing_factor)
        args.label_smoothing_factor = 0.0


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    set_up(args)
    with args.main_process_first(desc="loading the data"):
        found = divide(*load_splits(data_args, model_args, args), data_args, args)
        train, validation = (pairs(data, data_args) for data in found)
    if train is not None and data_args.distill:
        train = distilled(train, data_args, args)
    tokenizer = load_tokenizer(model_args, args, train)
    model = load_model(model_args, tokenizer)
    set_loss(model, model_args, args)
    trainer = make_text_trainer(data_args, model_args, args, model, tokenizer, train, validation)
    run(trainer, data_args, task="translation")


if __name__ == "__main__":
    main()
