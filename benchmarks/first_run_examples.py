"""First runs in the shape of transformers' example scripts, with their own compute_metrics, on real data."""

import functools
import json
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from first_run_tasks import (
    FirstRun,
    accuracy,
    minilm,
    read,
    unanswered_questions,
    word_tokenizer,
    written_answers,
)
from scipy import stats
from segmentation_pairs import CLASSES, Streets, streets
from sklearn.metrics import f1_score
from speech_pairs import MELS, WORDS, SpeechConfig, SpeechForCTC, collate, numbers, tokenizer
from task import data_folder
from torch import nn
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorForMultipleChoice,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_reloss import load_metric


def _example(
    model: Callable[[], nn.Module], train: Any, dev: Any, key: str, compute_metrics: Callable[[Any], dict[str, float]],
    arguments: dict[str, Any], *, in_points: Callable[[float], float] = lambda score: 100 * score, writes: bool = False,
    **options: Any,
) -> FirstRun:  # fmt: skip
    """A run that is judged by what its script computes under `key`."""

    def score(predictions: Any, labels: Any) -> float:
        return in_points(compute_metrics(_Evaluation(predictions, labels))[key])

    options["compute_metrics"] = compute_metrics
    return FirstRun(model, train, dev, key, score, arguments, options, writes)


class _Evaluation:
    """What compute_metrics is given."""

    def __init__(self, predictions: Any, label_ids: Any):
        self.predictions, self.label_ids = predictions, label_ids


def emotions() -> FirstRun:
    """run_classification.py, several labels: 800 comments of GoEmotions, MiniLM fine-tuned for 150 steps, micro-F1."""
    names = json.loads((data_folder() / "goemotions" / "label_names.json").read_text())
    rows, encode = read("goemotions/train.jsonl.gz")[:1_300], AutoTokenizer.from_pretrained(minilm())
    data = datasets.Dataset.from_dict(
        dict(encode([row["text"] for row in rows], truncation=True, max_length=48))
        | {"labels": [[float(name in row["labels"]) for name in names] for row in rows]}
    )

    def compute_metrics(evaluated: Any) -> dict[str, float]:
        return {"f1": float(f1_score(evaluated.label_ids, evaluated.predictions > 0, average="micro", zero_division=0))}

    return _example(
        lambda: AutoModelForSequenceClassification.from_pretrained(
            minilm(), num_labels=len(names), problem_type="multi_label_classification"
        ),
        data.select(range(800)), data.select(range(800, 1_300)), "f1", compute_metrics,
        {"max_steps": 150, "per_device_train_batch_size": 16, "learning_rate": 5e-4}, processing_class=encode,
    )  # fmt: skip


def relatedness() -> FirstRun:
    """run_glue.py as for STS-B: 800 pairs of sentences of SICK, MiniLM fine-tuned for 120 steps, Pearson's r."""
    rows, encode = read("sick/train.jsonl.gz")[:1_300], AutoTokenizer.from_pretrained(minilm())
    texts = [[row[name] for row in rows] for name in ("sentence1", "sentence2")]
    data = datasets.Dataset.from_dict(
        dict(encode(*texts, truncation=True, max_length=64)) | {"labels": [float(row["score"]) for row in rows]}
    )

    def compute_metrics(evaluated: Any) -> dict[str, float]:
        predictions = np.squeeze(evaluated.predictions)
        return {"pearson": float(stats.pearsonr(predictions, evaluated.label_ids).statistic)}

    return _example(
        lambda: AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=1),
        data.select(range(800)), data.select(range(800, 1_300)), "pearson", compute_metrics,
        {"max_steps": 120, "per_device_train_batch_size": 16, "learning_rate": 5e-4}, processing_class=encode,
    )  # fmt: skip


def answers() -> FirstRun:
    """run_swag.py: which of four sentences answers a question (TREC), MiniLM fine-tuned for 40 steps, accuracy."""
    encode, random = AutoTokenizer.from_pretrained(minilm()), np.random.default_rng(0)
    questions: dict[str, tuple[list[str], list[str]]] = {}
    for part in ("train", "dev"):
        for row in read(f"answer_ranking/{part}.jsonl.gz"):
            questions.setdefault(row["query"], ([], []))[row["relevant"]].append(row["text"])
    rows: dict[str, list[Any]] = {"input_ids": [], "token_type_ids": [], "attention_mask": [], "labels": []}
    for question, (wrong, right) in questions.items():
        for answer in right[:12] if len(wrong) > 2 else []:
            label = int(random.integers(4))
            choices = random.choice(wrong, 3, replace=False).tolist()
            choices.insert(label, answer)
            for name, values in encode([question] * 4, choices, truncation=True, max_length=48).items():
                rows[name].append(values)
            rows["labels"].append(label)
    data = datasets.Dataset.from_dict(rows)
    half = len(data) * 2 // 3  # of other questions, but for one
    return _example(
        lambda: AutoModelForMultipleChoice.from_pretrained(minilm()),
        data.select(range(half)), data.select(range(half, len(data))), "accuracy",
        lambda evaluated: {"accuracy": accuracy(evaluated.predictions, evaluated.label_ids) / 100},
        {"max_steps": 40, "per_device_train_batch_size": 8, "learning_rate": 1e-4},
        processing_class=encode, data_collator=DataCollatorForMultipleChoice(encode),
    )  # fmt: skip


def masked_words() -> FirstRun:
    """run_mlm.py: 800 English sentences of Multi30k, a BERT from scratch, the accuracy of masked words."""
    texts = [row["en"].lower() for row in read("multi30k_en_de/train.jsonl.gz")[:1_100]]
    words = word_tokenizer(texts, 1_000)
    words.add_special_tokens({"mask_token": "<mask>"})
    data = datasets.Dataset.from_dict({"input_ids": words(texts)["input_ids"]})
    config = BertConfig(
        vocab_size=len(words), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        pad_token_id=0,
    )  # fmt: skip

    def compute_metrics(evaluated: Any) -> dict[str, float]:
        masked = evaluated.label_ids != -100
        return {"accuracy": float((evaluated.predictions[masked] == evaluated.label_ids[masked]).mean())}

    # Development data are masked once, so that all are judged by the same words.
    torch.manual_seed(0)
    collator = DataCollatorForLanguageModeling(words, mlm_probability=0.3)
    dev = [
        {name: values[0].tolist() for name, values in collator([row]).items()} for row in data.select(range(800, 1_100))
    ]

    def collated(rows: list[dict[str, Any]]) -> Any:
        if "labels" not in rows[0]:
            return collator(rows)
        labels = [{"input_ids": row.pop("labels")} for row in map(dict, rows)]
        batch = words.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
        padded = words.pad(labels, return_tensors="pt")
        return batch | {"labels": padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)}

    return _example(
        lambda: BertForMaskedLM(config), data.select(range(800)), dev, "accuracy", compute_metrics,
        {"num_train_epochs": 10, "per_device_train_batch_size": 16, "learning_rate": 2e-3},
        data_collator=collated, preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
    )  # fmt: skip


def spoken_digits() -> FirstRun:
    """run_audio_classification.py: 800 spoken digits, a wav2vec 2.0 from scratch, accuracy."""
    with np.load(data_folder() / "spoken_digits" / "recordings.npz") as file:
        found = {name: file[name] for name in file.files}
    companded = found["audio"].astype(np.float32) / 127.5 - 1
    audio = np.sign(companded) * (256 ** np.abs(companded) - 1) / 255
    order = np.random.default_rng(0).permutation(np.flatnonzero(found["take"] >= 5))[:1_200]

    def wave(recording: int) -> np.ndarray:
        sound = audio[found["offsets"][recording] : found["offsets"][recording + 1]][:4_000]
        return np.pad(sound / sound.std(), (0, 4_000 - len(sound))).astype(np.float32)

    rows = [{"input_values": wave(recording), "labels": int(found["digit"][recording])} for recording in order]
    config = Wav2Vec2Config(
        conv_dim=(32, 32, 64), conv_kernel=(20, 8, 4), conv_stride=(10, 4, 2), num_feat_extract_layers=3,
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, num_labels=len(WORDS),
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, mask_time_prob=0.0, classifier_proj_size=64,
        layerdrop=0.0, feat_extract_norm="layer",
    )  # fmt: skip
    return _example(
        lambda: Wav2Vec2ForSequenceClassification(config), rows[:800], rows[800:], "accuracy",
        lambda evaluated: {"accuracy": accuracy(evaluated.predictions, evaluated.label_ids) / 100},
        {"num_train_epochs": 8, "per_device_train_batch_size": 16, "learning_rate": 1e-3},
    )  # fmt: skip


def word_errors(decode: Callable[..., list[str]], evaluated: Any, **of_labels: Any) -> dict[str, float]:
    """The word error rate, as the scripts for speech compute it."""
    ids, labels = (np.where(part < 0, 0, part) for part in (evaluated.predictions, evaluated.label_ids))
    return {"wer": load_metric("wer").compute(decode(ids), decode(labels, **of_labels))}


def spoken_numbers() -> FirstRun:
    """run_speech_recognition_ctc.py: 800 numbers of spoken digits, a recurrent model from scratch, word accuracy."""

    def compute_metrics(evaluated: Any) -> dict[str, float]:
        logits = evaluated.predictions[0] if isinstance(evaluated.predictions, tuple) else evaluated.predictions
        logits = np.where(logits == -100, -1e4 * (np.arange(logits.shape[-1]) > 0), logits)  # padding is blank
        return word_errors(
            tokenizer().batch_decode, _Evaluation(logits.argmax(-1), evaluated.label_ids), group_tokens=False
        )

    config = SpeechConfig(vocab_size=len(tokenizer()))
    return _example(
        lambda: SpeechForCTC(config), numbers("train")[:800], numbers("development")[:200], "wer", compute_metrics,
        {"num_train_epochs": 8, "per_device_train_batch_size": 16, "learning_rate": 3e-3},
        in_points=lambda rate: 100 - 100 * rate, data_collator=collate, processing_class=tokenizer(),
    )  # fmt: skip


def whispered_numbers() -> FirstRun:
    """run_speech_recognition_seq2seq.py: the same by a Whisper from scratch, which writes them word by word."""
    words, frames = word_tokenizer([" ".join(WORDS)], 20), 360
    start = words.convert_tokens_to_ids("<s>")

    def rows(part: str, number: int) -> list[dict[str, Any]]:
        found = []
        for row in numbers(part)[:number]:
            features = F.pad(row["input_features"], (0, 0, 0, frames - len(row["input_features"])))[:frames]
            text = tokenizer().decode(row["labels"], group_tokens=False)
            found.append({"input_features": features.T, "labels": [*words(text)["input_ids"], 1]})
        return found

    def collated(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = words.pad([{"input_ids": example["labels"]} for example in examples], return_tensors="pt")
        return {
            "input_features": torch.stack([example["input_features"] for example in examples]),
            "labels": labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100),
        }

    sizes = {"layers": 2, "attention_heads": 4, "ffn_dim": 128}
    config = WhisperConfig(
        vocab_size=len(words), d_model=64, num_mel_bins=MELS, max_source_positions=frames // 2, max_target_positions=12,
        decoder_start_token_id=start, bos_token_id=start, eos_token_id=1, pad_token_id=0, suppress_tokens=[],
        begin_suppress_tokens=[], init_std=0.1,  # with 0.02 so small a model learns nothing in so few steps
        **{f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in sizes.items()},
    )  # fmt: skip

    def model() -> nn.Module:
        made = WhisperForConditionalGeneration(config)
        made.generation_config.update(max_length=10, num_beams=1, is_multilingual=False)
        return made

    return _example(
        model, rows("train", 800), rows("development", 200), "wer",
        functools.partial(word_errors, functools.partial(words.batch_decode, skip_special_tokens=True)),
        {"num_train_epochs": 8, "per_device_train_batch_size": 16, "learning_rate": 2e-3, "generation_max_length": 10},
        in_points=lambda rate: 100 - 100 * rate, writes=True, data_collator=collated, processing_class=words,
    )  # fmt: skip


def street_scenes() -> FirstRun:
    """run_semantic_segmentation.py: 200 images of CamVid, a SegFormer from scratch, mean IoU."""
    train, dev = (Streets(*(each[:number] for each in streets(part))) for part, number in (("train", 200), ("dev", 60)))
    metric = load_metric("mean_iou", num_labels=CLASSES)
    config = SegformerConfig(
        num_encoder_blocks=3, depths=[1, 1, 1], sr_ratios=[4, 2, 1], hidden_sizes=[16, 32, 48], patch_sizes=[7, 3, 3],
        strides=[4, 2, 2], num_attention_heads=[1, 2, 3], mlp_ratios=[2, 2, 2], decoder_hidden_size=48,
        num_labels=CLASSES,
    )  # fmt: skip

    def compute_metrics(evaluated: Any) -> dict[str, float]:
        logits = torch.from_numpy(np.asarray(evaluated.predictions))
        full = F.interpolate(logits, size=evaluated.label_ids.shape[-2:], mode="bilinear", align_corners=False)
        return {"mean_iou": metric.compute(full.argmax(1), torch.from_numpy(evaluated.label_ids))}

    return _example(
        lambda: SegformerForSemanticSegmentation(config), train, dev, "mean_iou", compute_metrics,
        {"num_train_epochs": 10, "per_device_train_batch_size": 8, "learning_rate": 2e-3},
    )  # fmt: skip


EXAMPLES = {
    make.__name__: make
    for make in (
        *(emotions, relatedness, answers, unanswered_questions, written_answers, masked_words),
        *(spoken_digits, spoken_numbers, whispered_numbers, street_scenes),
    )
}
