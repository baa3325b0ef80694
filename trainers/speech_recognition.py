"""Speech recognition: on the expected word error rate (minimum risk), a surrogate of it, or the model's own loss.

With a data set from the Hub, the recordings of which `datasets` decodes:

    python trainers/speech_recognition.py \
        --model_name_or_path facebook/wav2vec2-base --make_tokenizer \
        --dataset_name openslr/librispeech_asr --dataset_config_name clean --text_column text \
        --loss ctc --do_train --do_eval --num_train_epochs 3 --learning_rate 1e-4 --output_dir librispeech-ctc

With files of your own, csv, json or jsonl (also compressed: .jsonl.gz), that name recordings (.wav, 16 bits, one
channel) and say what is spoken in them; from a model that was trained on CTC:

    python trainers/speech_recognition.py \
        --model_name_or_path librispeech-ctc --train_file train.jsonl --validation_file dev.jsonl \
        --loss minimum_risk --metric wer --do_train --do_eval --max_steps 500 --learning_rate 2e-5 --output_dir mine

With an encoder-decoder, a checkpoint of which comes with its processor, such as Whisper: `--loss ce` is its own.

    python trainers/speech_recognition.py \
        --model_name_or_path openai/whisper-tiny.en --train_file train.jsonl --validation_file dev.jsonl \
        --loss reloss --metric wer --do_train --do_eval --max_steps 500 --learning_rate 1e-5 --output_dir mine
"""

import json
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from common import (
    ON_OWN_TEXTS,
    DatasetArguments,
    ModelArguments,
    check_columns,
    divide,
    load_config,
    load_splits,
    load_table,
    run,
    set_up,
    trainer_of_loss,
    wanted_metric,
)
from text_to_text import LearnedTrainer as LearnedWriter
from text_to_text import UsualTrainer as UsualWriter
from transformers import (
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    Trainer,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from hf_reloss import ReLossSeq2SeqTrainingArguments, ReLossTrainer, ReLossTrainingArguments
from hf_reloss.training.strategies.aligned import frame_lengths


@dataclass
class SpeechDataArguments(DatasetArguments):
    """DatasetArguments, for recordings and what is spoken in them."""

    audio_column: str = field(
        default="audio",
        metadata={"help": "The column of recordings: decoded ones, or paths of .wav files, from the file's folder on."},
    )
    text_column: str = field(default="text", metadata={"help": "The column of what is spoken."})
    sampling_rate: int = field(
        default=16_000,
        metadata={"help": "From scratch or with --make_tokenizer: samples a second that the model reads."},
    )


@dataclass
class SpeechModelArguments(ModelArguments):
    """ModelArguments, for CTC and encoder-decoders."""

    loss: Literal["ctc", "ce", "reloss", "minimum_risk", "policy"] = field(
        default="minimum_risk",
        metadata={
            "help": "ctc: the own loss of models of CTC. ce: that of encoder-decoders. reloss: of these, a learned "
            "surrogate. minimum_risk and policy (policy gradients): what the model transcribes, scored by --metric; "
            "start from a model trained on its own loss, or give it --surrogate_warmup. See --risk_candidates, "
            "--model_loss_share."
        },
    )
    metric: str = field(default="wer", metadata={"help": "The metric that is reported, and trained for."})
    make_tokenizer: bool = field(
        default=False,
        metadata={"help": "For a checkpoint without a tokenizer: one of the characters of the training texts is made."},
    )


class _Likeliest:
    """Evaluates the likeliest token of each frame, and nothing of what pads a batch."""

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if logits is None:
            return loss, None, labels
        lengths = frame_lengths(model, inputs, logits).to(logits.device)
        counts = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
        return loss, logits.argmax(-1).masked_fill(~counts, self.model.config.pad_token_id), labels


class UsualTrainer(_Likeliest, Trainer):
    """Trains on CTC."""


class LearnedTrainer(_Likeliest, ReLossTrainer):
    """Trains on the expected risk."""


def make_parser() -> HfArgumentParser:
    """The command line."""
    return HfArgumentParser((SpeechDataArguments, SpeechModelArguments, ReLossSeq2SeqTrainingArguments))


def load_recordings(path: str) -> datasets.Dataset:
    """A table, with the paths of recordings seen from its folder."""
    data, folder = load_table(path), Path(path).resolve().parent
    paths = {
        name: [value if value is None else str(folder / value) for value in data[name][:]]
        for name, feature in data.features.items()
        if getattr(feature, "dtype", None) == "string" and all(str(value).endswith(".wav") for value in data[name][:])
    }
    for name, values in paths.items():
        data = data.remove_columns(name).add_column(name, values)
    return data


def samples(audio: Any, rate: int) -> np.ndarray:
    """The samples [T] float32 of a recording, between -1 and 1.

    Args:
        audio: decoded by `datasets`, or the path of a .wav file.
        rate: samples a second that are wanted.

    Raises:
        ValueError: for a file of another rate, with several channels, or not of 16 bits.
    """
    if not isinstance(audio, str):
        return np.asarray(audio["array"], dtype=np.float32)
    with wave.open(audio) as file:
        kind = file.getframerate(), file.getnchannels(), 8 * file.getsampwidth()
        if kind != (rate, 1, 16):
            raise ValueError(
                f"{audio} has {kind[0]:,} samples a second, {kind[1]} channels and {kind[2]} bits a sample, but "
                f"{rate:,}, 1 and 16 are wanted: convert it, or pass --sampling_rate for a model from scratch."
            )
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 2**15


def load_processor(
    data_args: SpeechDataArguments,
    model_args: SpeechModelArguments,
    args: ReLossTrainingArguments,
    train: datasets.Dataset | None,
) -> Any:
    """The processor of the checkpoint, or one for the characters of the training texts, saved in the output folder."""
    if model_args.model_name_or_path and not model_args.make_tokenizer:
        return AutoProcessor.from_pretrained(model_args.model_name_or_path)
    if train is None:
        raise ValueError("A tokenizer is made of the training texts: pass --do_train, or a checkpoint that has one.")
    folder = Path(args.output_dir)
    with args.main_process_first(desc="making the tokenizer"):
        if args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            letters = sorted({letter for text in train[data_args.text_column] for letter in text} - {" "})
            vocabulary = {token: place for place, token in enumerate(["<pad>", "<unk>", "|", *letters])}
            (folder / "vocab.json").write_text(json.dumps(vocabulary))
        tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), bos_token=None, eos_token=None, pad_token="<pad>")
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=data_args.sampling_rate, return_attention_mask=True)
    return Wav2Vec2Processor(extractor, tokenizer)


def load_model(model_args: SpeechModelArguments, tokenizer: Any) -> PreTrainedModel:
    """The model of a checkpoint or, from scratch, one of CTC that fits the tokenizer; Wav2Vec2 unless said otherwise.

    The CTC loss is the mean over examples of that per token, and 0 for texts that the frames are too few for.

    Raises:
        ValueError: for a loss of other models, and for an encoder-decoder from scratch.
    """
    if not (model_args.model_name_or_path or model_args.config_name or model_args.model_type):
        model_args.model_type = "wav2vec2"
    config = load_config(model_args)
    losses = (*(("ce", "reloss") if config.is_encoder_decoder else ("ctc",)), *ON_OWN_TEXTS)
    if model_args.loss not in losses:
        kind = "an encoder-decoder" if config.is_encoder_decoder else "a model of CTC"
        raise ValueError(f"{config.model_type} is {kind}: --loss is {' or '.join(losses)}, but got {model_args.loss}.")
    if config.is_encoder_decoder:
        if not model_args.model_name_or_path or model_args.make_tokenizer:
            raise ValueError(
                f"{config.model_type} is an encoder-decoder: pass --model_name_or_path a checkpoint that has its own "
                "tokenizer, and leave --make_tokenizer out."
            )
        return AutoModelForSpeechSeq2Seq.from_pretrained(model_args.model_name_or_path, dtype=torch.float32)
    config.ctc_loss_reduction, config.ctc_zero_infinity = "mean", True
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    if model_args.model_name_or_path:
        return AutoModelForCTC.from_pretrained(model_args.model_name_or_path, config=config, dtype=torch.float32)
    return AutoModelForCTC.from_config(config, dtype=torch.float32)


def main() -> None:
    """Runs the command line."""
    data_args, model_args, args = make_parser().parse_args_into_dataclasses()
    set_up(args)
    audio, text = data_args.audio_column, data_args.text_column
    with args.main_process_first(desc="loading the data"):
        train, validation = divide(
            *load_splits(data_args, model_args, args, load_recordings), data_args=data_args, args=args
        )
    for data in (train, validation):
        if data is not None:
            check_columns(data, audio_column=audio, text_column=text)
    processor = load_processor(data_args, model_args, args, train)
    tokenizer, rate = processor.tokenizer, processor.feature_extractor.sampling_rate
    model, metric = load_model(model_args, tokenizer), wanted_metric(model_args)

    writes = model.config.is_encoder_decoder
    if writes:
        args.predict_with_generate = True

    def encode(example: dict[str, Any]) -> dict[str, Any]:
        inputs = processor.feature_extractor(samples(example[audio], rate), sampling_rate=rate)
        labels = tokenizer(example[text]).input_ids
        if writes and labels[0] == model.config.decoder_start_token_id:  # which the decoder reads in any case
            labels = labels[1:]
        return {model.main_input_name: inputs[model.main_input_name][0], "labels": labels}

    def encoded(data: datasets.Dataset) -> datasets.Dataset:
        if isinstance(data.features[audio], datasets.Audio):
            data = data.cast_column(audio, datasets.Audio(sampling_rate=rate))
        return data.map(encode, remove_columns=data.column_names, desc="encoding")

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = [{model.main_input_name: row[model.main_input_name]} for row in rows]
        batch = processor.feature_extractor.pad(inputs, padding=True, return_tensors="pt")
        labels = tokenizer.pad({"input_ids": [row["labels"] for row in rows]}, padding=True, return_tensors="pt")
        return dict(batch) | {"labels": labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)}

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        ids, right = (
            np.where(given < 0, tokenizer.pad_token_id, given)
            for given in (evaluation.predictions, evaluation.label_ids)
        )
        if writes:
            texts, references = (
                [found.strip() for found in tokenizer.batch_decode(each, skip_special_tokens=True)]
                for each in (ids, right)
            )
        else:
            texts, references = tokenizer.batch_decode(ids), tokenizer.batch_decode(right, group_tokens=False)
        return {metric.name: metric.compute(texts, references)}

    with args.main_process_first(desc="encoding"):
        train, validation = (data and encoded(data) for data in (train, validation))
    trainer = trainer_of_loss(
        model_args,
        metric,
        UsualWriter if writes else UsualTrainer,
        LearnedWriter if writes else LearnedTrainer,
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        data_collator=collate,
        compute_metrics=compute_metrics,
    )
    run(trainer, data_args, task="automatic-speech-recognition")


if __name__ == "__main__":
    main()
