"""How fast groups are scored, for benchmarks/speed.py: real sentences, each metric against its usual way.

evaluate's modules cannot be had without a download: their ways are written out here, each an `evaluate.Metric` that
does with the defining library what the module of that name does.
"""

import gzip
import json
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
from sklearn.metrics import f1_score
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


class TextModule(evaluate.Metric):
    """A module of evaluate for texts, with one reference each."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(predictions=datasets.Value("string"), references=datasets.Value("string"))
        return evaluate.MetricInfo(description="", citation="", features=features)


class Sacrebleu(TextModule):
    def _compute(self, predictions, references):
        return {"score": sacrebleu.corpus_bleu(predictions, [references], smooth_method="exp").score}


class Chrf(TextModule):
    def _compute(self, predictions, references):
        return {"score": sacrebleu.CHRF().corpus_score(predictions, [references]).score}


class RougeL(TextModule):
    def _compute(self, predictions, references):
        return {"score": rouge_l(predictions, references)}


def rouge_l(predictions: list[str], references: list[str]) -> float:
    scorer = RougeScorer(["rougeL"])
    return np.mean([scorer.score(*pair)["rougeL"].fmeasure for pair in zip(references, predictions, strict=True)])


def group_scores(metric: AdditiveMetric, module: evaluate.Metric, timer: Timer) -> dict[str, float]:
    """256 groups of 32 pairs, from statistics that have been extracted; and that the scores are equal."""
    predictions, references = sentence_pairs()
    index = torch.randint(PAIRS, (GROUPS, GROUP_SIZE), generator=torch.Generator().manual_seed(0))
    statistics, rows = metric.statistics(predictions, references), index.tolist()

    def ours() -> torch.Tensor:
        return metric.score(add_up(statistics, index))

    def theirs() -> torch.Tensor:
        scores = [
            module.compute(predictions=[predictions[i] for i in row], references=[references[i] for i in row])["score"]
            for row in rows
        ]
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
    decisions = {"macro-F1 of 256 groups of 128, against scikit-learn": lambda: macro_f1(device, timer)}
    if device == "cuda":
        return decisions
    scored = {
        "BLEU": (load_metric("sacrebleu"), Sacrebleu),
        "chrF": (load_metric("chrf"), Chrf),
        "ROUGE-L": (load_metric("rougeL"), RougeL),
    }
    libraries = {
        "sacrebleu": lambda p, r: sacrebleu.BLEU().corpus_score(p, [r]).score,
        "chrf": lambda p, r: sacrebleu.CHRF().corpus_score(p, [r]).score,
        "ter": lambda p, r: sacrebleu.TER().corpus_score(p, [r]).score,
        "rougeL": rouge_l,
        "wer": lambda p, r: jiwer.wer(r, p),
        "cer": lambda p, r: jiwer.cer(r, p),
    }
    return {
        **{
            f"{name} of 256 groups of 32 sentences, against evaluate": (
                lambda metric=metric, module=module: group_scores(metric, module(keep_in_memory=True), timer)
            )
            for name, (metric, module) in scored.items()
        },
        **decisions,
        **{
            f"statistics of 512 sentences for {name}, against its library's score": (
                lambda name=name, library=library: extraction(name, library, timer)
            )
            for name, library in libraries.items()
        },
        "statistics of 3,000 tagged sentences, against seqeval's score": lambda: tag_extraction(timer),
    }
