"""What additive metrics are compared with: the usual way to each, and data for it.

evaluate's modules cannot be had without a download: their ways are written out here, each an `evaluate.Metric` that
does with the defining library what the module of that name does. Where HF_RELOSS_MODULES is the folder `metrics` of a
copy of evaluate, its modules are taken.
"""

import collections
import gzip
import json
import math
import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import datasets
import evaluate
import jiwer
import numpy as np
import sacrebleu
import seqeval.metrics
import sklearn.metrics as sk
import torch
import torch.nn.functional as F
from nltk.translate.bleu_score import corpus_bleu
from nltk.translate.gleu_score import corpus_gleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from task import data_folder

EXAMPLES, CLASSES = 512, 10

Data = tuple[Any, Any]
"""Predictions and references: lists of texts or of tags, or arrays."""


def sentence_pairs() -> Data:
    """Captions of Multi30k, and the same with words that are lost, doubled, swapped or of another caption."""
    with gzip.open(data_folder() / "multi30k_en_de" / "test2016.jsonl.gz", "rt", encoding="utf-8") as lines:
        references = [json.loads(line)["en"] for line in lines][:EXAMPLES]
    generator = random.Random(0)
    predictions = []
    for reference, other in zip(references, references[1:] + references[:1], strict=True):
        words, others = reference.split(), other.split()
        for i in range(len(words)):
            change = generator.random()
            if change < 0.1:
                words[i] = ""
            elif change < 0.2:
                words[i] = generator.choice(others)
            elif change < 0.25 and i:
                words[i - 1], words[i] = words[i], words[i - 1]
        predictions.append(" ".join(filter(None, words)))
    return predictions, references


def sentence_tags(sentences: int = EXAMPLES) -> Data:
    """Tags of sentences, nine in ten right."""
    generator = random.Random(0)
    tags = ["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    references = [[generator.choice(tags) for _ in range(generator.randint(5, 40))] for _ in range(sentences)]
    return [[t if generator.random() < 0.9 else generator.choice(tags) for t in row] for row in references], references


def decisions() -> Data:
    """Decisions between ten classes, seven in ten right."""
    generator = np.random.default_rng(0)
    references, others = generator.integers(CLASSES, size=(2, EXAMPLES))
    return np.where(generator.random(EXAMPLES) < 0.7, references, others), references


def logits() -> Data:
    """Of ten classes; seven in ten are highest where they should be."""
    generator, (decided, references) = np.random.default_rng(1), decisions()
    return generator.normal(size=(EXAMPLES, CLASSES)) + 3 * np.eye(CLASSES)[decided], references


def several_labels() -> Data:
    """Five labels for each example, nine in ten right."""
    generator = np.random.default_rng(0)
    references = generator.integers(2, size=(EXAMPLES, 5))
    return np.where(generator.random((EXAMPLES, 5)) < 0.9, references, 1 - references), references


def probabilities() -> Data:
    """Of the one of two classes."""
    generator = np.random.default_rng(0)
    likely = generator.random(EXAMPLES)
    return likely, (generator.random(EXAMPLES) < likely).astype(np.int64)


def numbers() -> Data:
    generator = np.random.default_rng(0)
    references = generator.normal(3, 1, size=EXAMPLES)
    return references + generator.normal(0, 0.5, size=EXAMPLES), references


def maps() -> Data:
    """Of 16 by 16 pixels of five classes, eight in ten right."""
    generator = np.random.default_rng(0)
    references, others = generator.integers(5, size=(2, EXAMPLES, 16, 16))
    return np.where(generator.random(references.shape) < 0.8, references, others), references


def documents() -> Data:
    """Scores of 20 documents for each query, of which one or more are relevant."""
    generator = np.random.default_rng(0)
    relevant = (generator.random((EXAMPLES, 20)) < 0.2).astype(np.int64)
    relevant[:, 0] = 1
    return relevant + generator.normal(size=relevant.shape), relevant


TEXT, INTEGER, FLOAT = (datasets.Value(kind) for kind in ("string", "int32", "float64"))


@dataclass
class Peer:
    """How a metric is scored usually.

    Attributes:
        data: gives what is scored.
        function: the score of predictions and references.
        library: where the function is from.
        options: of the metric here.
        features: what evaluate's module of it calls predictions and references; None where it has no module.
    """

    data: Callable[[], Data]
    function: Callable[[Any, Any], float]
    library: str
    options: dict[str, Any] = field(default_factory=dict)
    features: tuple[Any, Any] | None = None


class Module(evaluate.Metric):
    """A module of evaluate that calls a library."""

    def __init__(self, peer: Peer):
        self.peer = peer
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(dict(zip(("predictions", "references"), self.peer.features or (), strict=True)))
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"score": float(self.peer.function(predictions, references))}


def rouge(name: str) -> Callable[[list[str], list[str]], float]:
    def score(predictions: list[str], references: list[str]) -> float:
        scorer = RougeScorer([name])
        return np.mean([scorer.score(*pair)[name].fmeasure for pair in zip(references, predictions, strict=True)])

    return score


def tokens(texts: list[str]) -> list[list[str]]:
    return [Tokenizer13a()(text).split() for text in texts]


def meteor(predictions: list[str], references: list[str]) -> float:
    """Of words and stems; data of WordNet are a download of their own."""
    empty = SimpleNamespace(synsets=lambda word: ())
    pairs = zip(references, predictions, strict=True)
    return np.mean([single_meteor_score(r.split(), p.split(), wordnet=empty) for r, p in pairs])


def plain(text: str) -> list[str]:
    """The words of an answer, as the script of SQuAD takes them."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def answers_f1(predictions: list[str], references: list[str]) -> float:
    found = []
    for prediction, reference in zip(map(plain, predictions), map(plain, references), strict=True):
        same = sum((collections.Counter(prediction) & collections.Counter(reference)).values())
        p, r = same / max(1, len(prediction)), same / max(1, len(reference))
        found.append(2 * p * r / (p + r) if same else 0)
    return 100 * np.mean(found)


def mean_iou(predictions: Any, references: Any) -> float:
    """As evaluate's module counts: map by map, with histograms."""
    both, either = np.zeros(5), np.zeros(5)
    for prediction, reference in zip(map(np.array, predictions), map(np.array, references), strict=True):
        count = [np.histogram(x, bins=5, range=(0, 4))[0] for x in (prediction[prediction == reference], prediction)]
        both += count[0]
        either += count[1] + np.histogram(reference, bins=5, range=(0, 4))[0] - count[0]
    return np.nanmean(both / either)


def of_pixels(function: Callable[..., float], **options: Any) -> Callable[[Any, Any], float]:
    return lambda p, r: function(np.ravel(r), np.ravel(p), **options)


def of_classes(function: Callable[..., float], **options: Any) -> Callable[[Any, Any], float]:
    return lambda p, r: function(r, p, **options)


def _text(function: Callable[[list[str], list[str]], float], library: str, **options: Any) -> Peer:
    return Peer(sentence_pairs, function, library, options, (TEXT, TEXT))


def _classes(function: Callable[..., float], **options: Any) -> Peer:
    averaged = options | ({"zero_division": 0} if options else {})
    return Peer(decisions, of_classes(function, **averaged), "scikit-learn", options, (INTEGER, INTEGER))


def _numbers(function: Callable[..., float], library: str = "scikit-learn", **options: Any) -> Peer:
    return Peer(numbers, of_classes(function), library, options, (FLOAT, FLOAT))


SERIES = (1.0, 2.5, 2.0, 3.5)

EVALUATE: dict[str, Peer] = {
    "accuracy": _classes(sk.accuracy_score),
    "precision": _classes(sk.precision_score, average="macro"),
    "recall": _classes(sk.recall_score, average="macro"),
    "f1": _classes(sk.f1_score, average="macro"),
    "matthews_correlation": _classes(sk.matthews_corrcoef),
    "subset_accuracy": Peer(
        several_labels, of_classes(sk.accuracy_score), "scikit-learn", features=(datasets.List(INTEGER),) * 2
    ),
    "brier_score": Peer(probabilities, of_classes(sk.brier_score_loss), "scikit-learn", features=(FLOAT, INTEGER)),
    "mse": _numbers(sk.mean_squared_error),
    "rmse": _numbers(sk.root_mean_squared_error),
    "mae": _numbers(sk.mean_absolute_error),
    "mape": _numbers(sk.mean_absolute_percentage_error),
    "smape": _numbers(
        lambda r, p: np.mean(2 * np.abs(np.subtract(p, r)) / (np.abs(p) + np.abs(r))), "NumPy, its definition"
    ),
    "mase": _numbers(
        lambda r, p: sk.mean_absolute_error(r, p) / np.abs(np.diff(SERIES)).mean(), training=SERIES, periodicity=1
    ),
    "bleu": _text(lambda p, r: corpus_bleu([[text] for text in tokens(r)], tokens(p)), "NLTK"),
    "sacrebleu": _text(lambda p, r: sacrebleu.corpus_bleu(p, [r], smooth_method="exp").score, "sacrebleu"),
    "google_bleu": _text(lambda p, r: corpus_gleu([[text] for text in tokens(r)], tokens(p)), "NLTK"),
    "chrf": _text(lambda p, r: sacrebleu.CHRF().corpus_score(p, [r]).score, "sacrebleu"),
    "ter": _text(lambda p, r: sacrebleu.TER().corpus_score(p, [r]).score, "sacrebleu"),
    "meteor": _text(meteor, "NLTK", tokenizer=str.split, synonyms=False),
    **{name: _text(rouge(name), "rouge-score") for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")},
    "exact_match": _text(lambda p, r: np.mean(np.asarray(p) == np.asarray(r)), "NumPy, its definition"),
    "wer": _text(of_classes(jiwer.wer), "jiwer"),
    "cer": _text(of_classes(jiwer.cer), "jiwer"),
    "squad_exact_match": _text(
        lambda p, r: 100 * np.mean([a == b for a, b in zip(map(plain, p), map(plain, r), strict=True)]),
        "SQuAD's script",
    ),
    "squad_f1": _text(answers_f1, "SQuAD's script"),
    "seqeval": Peer(
        sentence_tags, of_classes(seqeval.metrics.f1_score), "seqeval", features=(datasets.List(TEXT),) * 2
    ),
    "mean_iou": Peer(
        maps, mean_iou, "NumPy, its way", {"num_labels": 5}, (datasets.List(datasets.List(INTEGER)),) * 2
    ),
}  # fmt: skip
"""Metrics with a module of evaluate, by the name here."""

LIBRARIES: dict[str, Peer] = {
    "fbeta": Peer(
        decisions, of_classes(sk.fbeta_score, beta=2.0, average="macro", zero_division=0), "scikit-learn",
        {"beta": 2.0, "average": "macro"},
    ),
    "balanced_accuracy": Peer(decisions, of_classes(sk.balanced_accuracy_score), "scikit-learn"),
    "cohen_kappa": Peer(
        decisions, of_classes(sk.cohen_kappa_score, weights="quadratic"), "scikit-learn", {"weights": "quadratic"}
    ),
    "top_k_accuracy": Peer(
        logits, of_classes(sk.top_k_accuracy_score, k=2, labels=range(CLASSES)), "scikit-learn", {"k": 2}
    ),
    "perplexity": Peer(
        logits, lambda p, r: math.exp(F.cross_entropy(torch.from_numpy(p), torch.from_numpy(r))), "torch"
    ),
    "ndcg": Peer(documents, of_classes(sk.ndcg_score), "scikit-learn"),
    "map": Peer(documents, of_classes(sk.label_ranking_average_precision_score), "scikit-learn"),
    "mer": Peer(sentence_pairs, of_classes(jiwer.mer), "jiwer"),
    "wil": Peer(sentence_pairs, of_classes(jiwer.wil), "jiwer"),
    "dice": Peer(maps, of_pixels(sk.f1_score, average="macro"), "scikit-learn", {"num_labels": 5}),
    "pixel_accuracy": Peer(maps, of_pixels(sk.accuracy_score), "scikit-learn", {"num_labels": 5}),
}  # fmt: skip
"""Metrics that evaluate has no module of, with functions of libraries."""

LEFT_OUT = {
    **dict.fromkeys(("brier", "expected_calibration_error"), "another name"),
    **dict.fromkeys(("seqeval_precision", "seqeval_recall"), "counted as seqeval"),
    **dict.fromkeys(("squad_v2_exact", "squad_v2_f1", "cmrc_exact_match", "cmrc_f1"), "counted as SQuAD's v1.1"),
    **dict.fromkeys(("bertscore", "bertscore_precision", "bertscore_recall"), "its way runs a model for each group"),
    **dict.fromkeys(("sari", "charcut_mt"), "what defines it is no library of the benchmarks"),
    **dict.fromkeys(
        ("ece", "mrr", "precision_at_k", "ranked_recall_at_k", "pck", "oks", "boundary_iou"), "no library here has it"
    ),
}
"""Additive metrics that are compared with nothing here, and why."""
