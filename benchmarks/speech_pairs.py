"""Spoken numbers: digits of the Free Spoken Digit Dataset in a row, recognized by small models of CTC and of Whisper.

    HF_RELOSS_DATA=... python benchmarks/speech_pairs.py

compares losses with the model's own on paired seeds: word error rates on test data, of which less is better. Takes
below 5 are the official test split; 5 to 9 are development data, and the model is trained on the others. A base is
trained on the model's own loss; compared runs go on from it for equal numbers of steps.
"""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from first_run_tasks import word_tokenizer
from paired import arguments, stored_runs
from pairs import Pair, label_smoothing
from promise import OWN_TEXTS, measured, scores
from task import Base, base_folder, data_folder
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Wav2Vec2CTCTokenizer,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_outputs import ModelOutput
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from hf_reloss import SurrogateForTokens, load_metric
from hf_reloss.compare.statistics import paired_difference

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

RATE, WINDOW, STEP, MELS = 8_000, 200, 80, 40
"""Samples a second; samples of a window, and from one to the next; bands."""

TAKES = {"train": range(10, 50), "development": range(5, 10), "test": range(5)}
NUMBERS = {"train": 4_000, "development": 400, "test": 600}
NOISE = 0.006
"""Standard deviation of white noise that is added, beside samples of -1 to 1."""

FRAMES = 160
"""That the encoder of Whisper reads, each the mean of two of 10 ms; one number of 300 is longer, and is cut off."""

RECIPE = {"per_device_train_batch_size": 32, "per_device_eval_batch_size": 100, "warmup_steps": 0.1}


@functools.cache
def tokenizer() -> Wav2Vec2CTCTokenizer:
    """The letters of the ten words, `|` between words, and `<pad>`, which is the blank."""
    tokens = ["<pad>", "<unk>", "|", *sorted({letter for word in WORDS for letter in word})]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
        return Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None)


@functools.cache
def spoken(part: str) -> list[tuple[torch.Tensor, str]]:
    """Numbers of three to five digits, spoken by one voice each: features [T, 40], and the words."""
    with np.load(data_folder() / "spoken_digits" / "recordings.npz") as file:
        found = {name: file[name] for name in file.files}
    companded = found["audio"].astype(np.float32) / 127.5 - 1
    audio = torch.from_numpy(np.sign(companded) * (256 ** np.abs(companded) - 1) / 255)
    speakers = sorted(set(found["speaker"]))
    chosen = np.isin(found["take"], TAKES[part])
    of_speaker = [np.flatnonzero(chosen & (found["speaker"] == speaker)) for speaker in speakers]
    random = np.random.default_rng([*part.encode()])
    rows = []
    for number in range(NUMBERS[part]):
        recordings = random.choice(of_speaker[number % len(speakers)], random.integers(3, 6))
        sound = torch.cat([audio[found["offsets"][i] : found["offsets"][i + 1]] for i in recordings])
        sound = sound + NOISE * torch.from_numpy(random.standard_normal(len(sound)).astype(np.float32))
        rows.append((log_mel(sound), " ".join(WORDS[found["digit"][i]] for i in recordings)))
    return rows


def log_mel(sound: torch.Tensor) -> torch.Tensor:
    """Features [T, 40] of samples, of mean 0 and deviation 1 in each band."""
    bands = mel_filter_bank(WINDOW // 2 + 1, MELS, 50.0, RATE / 2, RATE, mel_scale="htk")
    window = torch.hann_window(WINDOW)
    power = torch.stft(sound.float(), WINDOW, STEP, window=window, return_complex=True).abs().square()
    features = (power.T @ torch.from_numpy(bands).float() + 1e-6).log()
    return (features - features.mean(0)) / features.std(0)


@functools.cache
def numbers(part: str) -> list[dict[str, Any]]:
    """Spoken numbers for CTC: `input_features` [T, 40], and letters as `labels`."""
    return [
        {"input_features": features, "labels": torch.tensor(tokenizer()(text)["input_ids"])}
        for features, text in spoken(part)
    ]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Padded numbers, with a mask; labels are padded with -100."""
    features = [row["input_features"] for row in rows]
    return {
        "input_features": pad_sequence(features, batch_first=True),
        "attention_mask": pad_sequence([torch.ones(len(each)).long() for each in features], batch_first=True),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100),
    }


class SpeechConfig(PreTrainedConfig):
    """Of `SpeechForCTC`."""

    model_type = "small_speech"
    hidden_size: int = 64
    vocab_size: int = 18
    dropout: float = 0.1
    pad_token_id: int = 0
    ctc_loss_reduction: str = "mean"


class SpeechForCTC(PreTrainedModel):
    """A convolution that halves the frames, a recurrent layer in both directions, and letters."""

    config_class = SpeechConfig

    def __init__(self, config: SpeechConfig):
        super().__init__(config)
        width = config.hidden_size
        self.convolution = nn.Conv1d(MELS, width, 5, stride=2, padding=2)
        self.recurrent = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * width, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves torch's own start."""

    def _get_feat_extract_output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        return (lengths + 1) // 2

    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> ModelOutput:
        frames = self.convolution(input_features.transpose(1, 2)).relu().transpose(1, 2)
        lengths = self._get_feat_extract_output_lengths(attention_mask.sum(-1))
        packed = nn.utils.rnn.pack_padded_sequence(
            self.dropout(frames), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        hidden, _ = nn.utils.rnn.pad_packed_sequence(
            self.recurrent(packed)[0], batch_first=True, total_length=frames.shape[1]
        )
        logits = self.head(self.dropout(hidden))
        loss = None if labels is None else ctc(logits, lengths, labels)
        return ModelOutput(loss=loss, logits=logits, lengths=lengths)


def ctc(logits: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The CTC loss per letter, the mean over numbers."""
    log_p = logits.log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(log_p, labels.clamp(min=0), lengths, (labels >= 0).sum(-1))


def smoothed_ctc(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """CTC with a tenth of the cross-entropy to all letters alike."""
    logits, lengths = outputs["logits"], outputs["lengths"]
    counts = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
    return 0.9 * ctc(logits, lengths, labels) - 0.1 * logits.log_softmax(-1).mean(-1)[counts].mean()


def error_rate(model: nn.Module, part: str) -> float:
    """The word error rate, in points, of the likeliest letter of each frame."""
    model.eval()
    rows, texts = numbers(part), []
    for first in range(0, len(rows), 100):
        batch = collate(rows[first : first + 100]) | {"labels": None}
        with torch.no_grad():
            outputs = model(
                **{name: value if value is None else value.to(model.device) for name, value in batch.items()}
            )
        counts = torch.arange(outputs["logits"].shape[1], device=model.device) < outputs["lengths"][:, None]
        texts += tokenizer().batch_decode(outputs["logits"].argmax(-1).masked_fill(~counts, 0))
    references = tokenizer().batch_decode([row["labels"] for row in rows], group_tokens=False)
    return 100 * load_metric("wer").compute(texts, references)


def digits_ctc() -> Pair:
    """Numbers of three to five spoken digits, letter by letter; the word error rate, of which less is better."""
    options = {"data_collator": collate, "processing_class": tokenizer()}
    config = SpeechConfig(vocab_size=len(tokenizer()))
    recipe = RECIPE | {"num_train_epochs": 6, "learning_rate": 3e-3}
    base = base_folder("digits_ctc", Base(numbers("train"), lambda: SpeechForCTC(config), recipe, options))
    return Pair(
        train=numbers("train"),
        development=numbers("development"),
        test=None,
        make_model=lambda: SpeechForCTC.from_pretrained(base / "stage_1.0"),
        recipe=RECIPE | {"max_steps": 200, "learning_rate": 1e-3},
        metric=load_metric("wer"),
        field_loss=lambda pair: smoothed_ctc,
        options=options,
        score=lambda trainer: error_rate(trainer.model, "test"),
    )


@functools.cache
def words() -> PreTrainedTokenizerFast:
    """The ten words, each a token, with `<pad>` (0), `</s>` (1) and `<s>` (3), which all texts start from."""
    return word_tokenizer([" ".join(WORDS)], 20)


@functools.cache
def words_spoken(part: str) -> list[dict[str, Any]]:
    """Spoken numbers for Whisper: `input_features` [40, FRAMES], and words as `labels`."""
    rows = []
    for features, text in spoken(part):
        halved = F.avg_pool1d(features.T, 2)[:, :FRAMES]
        ids = torch.tensor([*words()(text)["input_ids"], words().eos_token_id])
        rows.append({"input_features": F.pad(halved, (0, FRAMES - halved.shape[1])), "labels": ids})
    return rows


def whisper_config() -> WhisperConfig:
    """An encoder of two layers and a decoder of one; weights of 0.02, as large ones have, hide what it reads."""
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 1, "dropout": 0.1, "init_std": 0.1}
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    feed_forward = dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 128)
    longest = {"max_source_positions": FRAMES // 2, "max_target_positions": 10}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3, "decoder_start_token_id": 3}
    given: dict[str, Any] = sizes | heads | feed_forward | longest | tokens
    return WhisperConfig(
        vocab_size=len(words()), num_mel_bins=MELS, suppress_tokens=[], begin_suppress_tokens=[], **given
    )


def collate_words(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Numbers with the inputs of the decoder, which a loss that takes the labels away has no other place for."""
    labels = pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100)
    return {
        "input_features": torch.stack([row["input_features"] for row in rows]),
        "labels": labels,
        "decoder_input_ids": shift_tokens_right(labels, 0, 3),
    }


def written_error_rate(model: nn.Module, part: str) -> float:
    """The word error rate, in points, of what is written greedily."""
    model.eval()
    rows, texts = words_spoken(part), []
    for first in range(0, len(rows), 100):
        features = torch.stack([row["input_features"] for row in rows[first : first + 100]])
        ids = model.generate(features.to(model.device), num_beams=1, do_sample=False)
        texts += words().batch_decode(ids, skip_special_tokens=True)
    return 100 * load_metric("wer").compute(texts, [text for _, text in spoken(part)])


def whisper(folder: Path | None = None) -> WhisperForConditionalGeneration:
    """A fresh model, or that of a folder, which writes ten tokens at most."""
    kind = WhisperForConditionalGeneration
    model = kind(whisper_config()) if folder is None else kind.from_pretrained(folder)
    model.generation_config.update(max_length=10, num_beams=1, is_multilingual=False)
    return model


def digits_whisper() -> Pair:
    """The same, written word by word."""
    options = {"data_collator": collate_words, "processing_class": words()}
    recipe = RECIPE | {"num_train_epochs": 5, "learning_rate": 2e-3}
    base = base_folder("digits_whisper", Base(words_spoken("train"), whisper, recipe, options))
    return Pair(
        train=words_spoken("train"),
        development=words_spoken("development"),
        test=None,
        make_model=lambda: whisper(base / "stage_1.0"),
        recipe=RECIPE | {"max_steps": 200, "learning_rate": 1e-3},
        metric=load_metric("wer"),
        field_loss=lambda pair: label_smoothing,
        kind=SurrogateForTokens,
        options=options,
        share=0.5,
        score=lambda trainer: written_error_rate(trainer.model, "test"),
    )


SPEECH_PAIRS: dict[str, Callable[[], Pair]] = {"digits_ctc": digits_ctc, "digits_whisper": digits_whisper}
"""All of these, by name."""

WAYS = {
    "digits_ctc": ("usual", "field's own", "minimum risk"),
    "digits_whisper": ("usual", "field's own", "soft metric", "auto", "auto, strict", *OWN_TEXTS),
}
"""The losses that each is trained on; of CTC, "auto" stays on the model's own."""


def run(name: str, way: str, seed: int) -> dict[str, Any]:
    """The score on test data of one run; with "auto", its verdict and what it cost in steps."""
    return measured(SPEECH_PAIRS[name], way, seed)


def summary(done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The word error rates of each pair and way, and the paired differences to the usual loss."""
    found = scores(done)
    means = {name: {way: sum(of.values()) / len(of) for way, of in of_ways.items()} for name, of_ways in found.items()}
    over_usual = {
        name: {
            way: paired_difference(of, of_ways["usual"])._asdict()
            for way, of in of_ways.items()
            if way != "usual" and len(of.keys() & of_ways.get("usual", {}).keys()) > 1
        }
        for name, of_ways in found.items()
    }
    return {"means": means, "over_usual": over_usual}


def main() -> None:
    options = arguments(__doc__, SPEECH_PAIRS, "speech.json").parse_args()
    jobs = {
        f"{name}, {way}, {seed}": (name, way, seed)
        for name in options.pairs
        for seed in range(options.seeds)
        for way in WAYS[name]
    }
    print(json.dumps(summary(stored_runs("speech_pairs.py", jobs, run, options, summary)), indent=2))


if __name__ == "__main__":
    main()
