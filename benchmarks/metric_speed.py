"""How fast groups are scored, for benchmarks/speed.py: real sentences, each metric against its usual way.

evaluate's modules cannot be had without a download: their ways are written out here, each an `evaluate.Metric` that
does with the defining library what the module of that name does. Where HF_RELOSS_MODULES is the folder `metrics` of a
copy of evaluate, its modules are taken.
"""

import gzip
import json
import os
import random
from collections.abc import Callable

import datasets
import evaluate
import jiwer
import numpy as np
import sacrebleu
import seqeval.metrics
import torch
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_score, recall_score
from task import data_folder

from hf_reloss import load_metric
from hf_reloss.metrics import AdditiveMetric
from hf_reloss.metrics.base import add_up

PAIRS, GROUPS, GROUP_SIZE = 512, 256, 32

Timer = Callable[[Callable[[], None], Callable[[], None]], dict[str, float]]


def sentence_pairs() -> tuple[list[str], list[str]]:
    """Captions of Multi30k, and the same with words that are lost, doubled, swapped or of another caption."""
    with gzip.open(data_folder() / "multi30k_en_de" / "test2016.jsonl.gz", "rt", encoding="utf-8") as lines:
        references = [json.loads(line)["en"] for line in lines][:PAIRS]
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


def sentence_tags() -> tuple[list[list[str]], list[list[str]]]:
    """Tags of 512 sentences, nine in ten right."""
    generator = random.Random(0)
    tags = ["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    references = [[generator.choice(tags) for _ in range(generator.randint(5, 40))] for _ in range(PAIRS)]
    return [[t if generator.random() < 0.9 else generator.choice(tags) for t in row] for row in references], references


def decisions() -> tuple[list[int], list[int]]:
    """512 decisions between ten classes, seven in ten right."""
    generator = random.Random(0)
    references = [generator.randrange(10) for _ in range(PAIRS)]
    return [label if generator.random() < 0.7 else generator.randrange(10) for label in references], references


class Module(evaluate.Metric):
    """A module of evaluate that calls a library.

    Args:
        function: of predictions and references.
        feature: what each of these is.
    """

    def __init__(self, function: Callable[[list, list], float], feature: datasets.Value | datasets.List):
        self.function, self.feature = function, feature
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(predictions=self.feature, references=self.feature)
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"score": float(self.function(predictions, references))}


TEXT, LABEL, TAGS = datasets.Value("string"), datasets.Value("int32"), datasets.List(datasets.Value("string"))

DATA = {"text": (sentence_pairs, TEXT), "label": (decisions, LABEL), "tags": (sentence_tags, TAGS)}
"""What is scored, and what a module of evaluate calls it."""

NOUNS = {"text": "sentences", "label": "decisions", "tags": "tagged sentences"}

TITLES = {"sacrebleu": "BLEU", "chrf": "chrF", "rougeL": "ROUGE-L", "f1": "macro-F1"}


def rouge_l(predictions: list[str], references: list[str]) -> float:
    scorer = RougeScorer(["rougeL"])
    return np.mean([scorer.score(*pair)["rougeL"].fmeasure for pair in zip(references, predictions, strict=True)])


WAYS: dict[str, tuple[dict[str, str], str, Callable[[list, list], float]]] = {
    "sacrebleu": ({}, "text", lambda p, r: sacrebleu.corpus_bleu(p, [r], smooth_method="exp").score),
    "chrf": ({}, "text", lambda p, r: sacrebleu.CHRF().corpus_score(p, [r]).score),
    "ter": ({}, "text", lambda p, r: sacrebleu.TER().corpus_score(p, [r]).score),
    "rougeL": ({}, "text", rouge_l),
    "wer": ({}, "text", lambda p, r: jiwer.wer(r, p)),
    "cer": ({}, "text", lambda p, r: jiwer.cer(r, p)),
    "exact_match": ({}, "text", lambda p, r: np.mean(np.asarray(p) == np.asarray(r))),
    "accuracy": ({}, "label", lambda p, r: accuracy_score(r, p)),
    "precision": ({"average": "macro"}, "label", lambda p, r: precision_score(r, p, average="macro", zero_division=0)),
    "recall": ({"average": "macro"}, "label", lambda p, r: recall_score(r, p, average="macro", zero_division=0)),
    "f1": ({"average": "macro"}, "label", lambda p, r: f1_score(r, p, average="macro", zero_division=0)),
    "matthews_correlation": ({}, "label", lambda p, r: matthews_corrcoef(r, p)),
    "seqeval": ({}, "tags", lambda p, r: seqeval.metrics.f1_score(r, p)),
}
"""Options, data and the way of the module, by the name of an additive metric."""


def module_of(metric: AdditiveMetric) -> tuple[evaluate.Metric, str]:
    """evaluate's module of a metric, or its way, and the key of the score."""
    folder = os.environ.get("HF_RELOSS_MODULES")
    if folder:
        return evaluate.load(f"{folder}/{metric.evaluate_module}", keep_in_memory=True), metric.evaluate_key
    _, data, way = WAYS[metric.name]
    return Module(way, DATA[data][1]), "score"


def group_scores(name: str, timer: Timer) -> dict[str, float]:
    """256 groups of 32 examples, from statistics that have been extracted; and that the scores are equal."""
    options, data, _ = WAYS[name]
    metric = load_metric(name, **options)
    module, key = module_of(metric)
    predictions, references = DATA[data][0]()
    index = torch.randint(PAIRS, (GROUPS, GROUP_SIZE), generator=torch.Generator().manual_seed(0))
    statistics, rows = metric.statistics(predictions, references), index.tolist()

    def ours() -> torch.Tensor:
        return metric.score(add_up(statistics, index))

    def theirs() -> torch.Tensor:
        scores = []
        for row in rows:
            group = {"predictions": [predictions[i] for i in row], "references": [references[i] for i in row]}
            found = module.compute(**group, **(options if key != "score" else {}))
            scores.append(found[key] if isinstance(found, dict) else found)
        return torch.tensor(scores, dtype=torch.float64)

    difference = (ours() - theirs()).abs().max().item()
    return timer(ours, theirs) | {"largest_difference": difference}


def extraction(name: str, library: Callable[[list[str], list[str]], float], timer: Timer) -> dict[str, float]:
    """Statistics of 512 pairs, against the library's own score of them all; each call by an object of its own."""
    pairs = sentence_pairs()
    return timer(lambda: load_metric(name).statistics(*pairs), lambda: library(*pairs))


def tag_extraction(timer: Timer) -> dict[str, float]:
    """Statistics of 3,000 tagged sentences, nine tags in ten right, against seqeval's own score of them all."""
    generator = random.Random(0)
    tags = ["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    references = [[generator.choice(tags) for _ in range(generator.randint(5, 40))] for _ in range(3_000)]
    predictions = [[t if generator.random() < 0.9 else generator.choice(tags) for t in row] for row in references]
    metric = load_metric("seqeval")
    return timer(
        lambda: metric.statistics(predictions, references), lambda: seqeval.metrics.f1_score(references, predictions)
    )


def macro_f1(device: str, timer: Timer) -> dict[str, float]:
    """256 groups of 128 decisions between 10 classes, against scikit-learn group by group."""
    generator = torch.Generator().manual_seed(0)
    references = torch.randint(10, (20_000,), generator=generator)
    predictions = torch.where(torch.rand(20_000, generator=generator) < 0.7, references, references.flip(0))
    index = torch.randint(20_000, (GROUPS, 128), generator=generator)
    metric = load_metric("f1", average="macro")
    rows = [(references[row].numpy(), predictions[row].numpy()) for row in index]
    on_device = [tensor.to(device) for tensor in (predictions, references, index)]

    def ours() -> torch.Tensor:
        return metric.score_groups(*on_device)

    def theirs() -> torch.Tensor:
        return torch.tensor([f1_score(*row, average="macro", zero_division=0) for row in rows], dtype=torch.float64)

    difference = (ours().cpu() - theirs()).abs().max().item()
    return timer(ours, theirs) | {"largest_difference": difference}


def measures(device: str, timer: Timer) -> dict[str, Callable[[], dict[str, float]]]:
    """What to measure, by name. Texts are counted on the CPU, so a GPU has none of them."""
    of_groups = {"macro-F1 of 256 groups of 128, against scikit-learn": lambda: macro_f1(device, timer)}
    if device == "cuda":
        return of_groups
    return {
        **{
            f"{TITLES.get(name, name)} of 256 groups of 32 {NOUNS[data]}, against evaluate": (
                lambda name=name: group_scores(name, timer)
            )
            for name, (_, data, _) in WAYS.items()
        },
        **of_groups,
        **{
            f"statistics of 512 sentences for {name}, against its library's score": (
                lambda name=name: extraction(name, WAYS[name][2], timer)
            )
            for name in ("sacrebleu", "chrf", "ter", "rougeL", "wer", "cer")
        },
        "statistics of 3,000 tagged sentences, against seqeval's score": lambda: tag_extraction(timer),
    }
