"""How fast groups are scored: each additive metric against its usual way.

    HF_RELOSS_DATA=... python benchmarks/metric_speed.py

Of 512 examples, 256 groups of 32 are scored from statistics that were counted once, and the first 8 of these groups by
the module of evaluate or, where there is none, by the library that defines the metric (benchmarks/metric_peers.py).
That takes as long for each group, so it stands times 32. Both are timed in turns, in one process and on one thread,
by the processor's time; a ratio is the median of the ratios of the turns. Writes
benchmarks/results/metric_speed_cpu.json and prints a table.
"""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import seqeval.metrics
import torch
from metric_peers import EVALUATE, EXAMPLES, LIBRARIES, Module, Peer, sentence_pairs, sentence_tags
from rich.console import Console
from rich.table import Table
from sklearn.metrics import f1_score
from tables import RESULTS
from tqdm.auto import tqdm
from transformers.utils import logging
from turns import in_turns

from hf_reloss import load_metric
from hf_reloss.compare.runs import environment
from hf_reloss.metrics import AdditiveMetric
from hf_reloss.metrics.base import add_up, take

GROUPS, GROUP_SIZE, SCORED_USUALLY = 256, 32, 8
LEARNED_FROM = 2_560  # groups of a surrogate, by default

Timer = Callable[[Callable[[], object], Callable[[], object]], dict[str, float]]


def usual_way(metric: AdditiveMetric, peer: Peer) -> Callable[[Any, Any], float]:
    """What scores predictions and references: evaluate's module of a metric, or its way, or the library's function."""
    if peer.features is None:
        return peer.function
    folder = os.environ.get("HF_RELOSS_MODULES")
    if folder is None:
        module, key, options = Module(peer), "score", {}
    else:
        module = evaluate.load(f"{folder}/{metric.evaluate_module}", keep_in_memory=True)
        key, options = metric.evaluate_key, peer.options

    def score(predictions: Any, references: Any) -> float:
        found = module.compute(predictions=predictions, references=references, **options)
        return found[key] if isinstance(found, dict) else found

    return score


def of_groups(name: str, peer: Peer, turns: int) -> dict[str, Any]:
    """How long groups of one metric take both ways, how long counting takes, and how far the scores differ."""
    metric = load_metric(name, **peer.options)
    score = usual_way(metric, peer)
    predictions, references = peer.data()
    index = torch.randint(EXAMPLES, (GROUPS, GROUP_SIZE), generator=torch.Generator().manual_seed(0))
    groups = [(take(predictions, row), take(references, row)) for row in index[:SCORED_USUALLY].numpy()]
    counting = []
    for _ in range(turns):
        start = time.process_time()
        statistics_of_all = load_metric(name, **peer.options).statistics(predictions, references)
        counting.append(1e3 * (time.process_time() - start))

    def ours() -> torch.Tensor:
        return metric.score(add_up(statistics_of_all, index))

    def theirs() -> torch.Tensor:
        return torch.tensor([float(score(*group)) for group in groups], dtype=torch.float64)

    difference = (ours()[:SCORED_USUALLY] - theirs()).abs().max().item()
    few = in_turns(lambda: [ours() for _ in range(20)], theirs, turns, "cpu", 1, time.process_time)
    share, counted = GROUPS / SCORED_USUALLY, statistics.median(counting)
    measured = {
        "ours_ms": few["ours_ms"] / 20,
        "theirs_ms": share * few["theirs_ms"],
        "ratio": 20 * share * few["ratio"],
    }
    learned = LEARNED_FROM / GROUPS
    return measured | {
        "counting_ms": counted,
        "ratio_with_counting": learned * measured["theirs_ms"] / (learned * measured["ours_ms"] + counted),
        "largest_difference": difference,
        "library": peer.library,
    }


def extraction(name: str, library: Callable[[Any, Any], float], timer: Timer) -> dict[str, float]:
    """Statistics of 512 pairs, against the library's own score of them all; each call by an object of its own."""
    pairs = sentence_pairs()
    return timer(lambda: load_metric(name).statistics(*pairs), lambda: library(*pairs))


def tag_extraction(timer: Timer) -> dict[str, float]:
    """Statistics of 3,000 tagged sentences, against seqeval's own score of them all."""
    predictions, references = sentence_tags(3_000)
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
    """For benchmarks/speed.py: what to measure, by name. Texts are counted on the CPU, so a GPU has none of them."""
    on_any = {"macro-F1 of 256 groups of 128, against scikit-learn": lambda: macro_f1(device, timer)}
    if device == "cuda":
        return on_any
    return {
        **on_any,
        **{
            f"statistics of 512 sentences for {name}, against its library's score": (
                lambda name=name: extraction(name, EVALUATE[name].function, timer)
            )
            for name in ("sacrebleu", "chrf", "ter", "rougeL", "wer", "cer")
        },
        "statistics of 3,000 tagged sentences, against seqeval's score": lambda: tag_extraction(timer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "metric_speed_cpu.json")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # of libraries, of classes that a group lacks
    torch.set_num_threads(1)
    rows = {}
    for name, peer in tqdm((EVALUATE | LIBRARIES).items()):
        against = "library" if peer.features is None else "evaluate"
        rows[name] = {"against": against} | of_groups(name, peer, options.turns)
    stored = {
        "command": "python benchmarks/metric_speed.py",
        "device": platform.processor() or platform.machine(),
        "environment": environment(),
        "rows": rows,
    }
    options.output.write_text(json.dumps(stored, indent=2) + "\n")
    table = Table("metric", "against", "ours", "theirs", "ratio", "counting", "with counting", "difference")
    for name, row in rows.items():
        times = (f"{row[key]:.2f} ms" for key in ("ours_ms", "theirs_ms"))
        ratios = f"{row['ratio']:.0f}×", f"{row['counting_ms']:.1f} ms", f"{row['ratio_with_counting']:.0f}×"
        table.add_row(name, f"{row['against']} ({row['library']})", *times, *ratios, f"{row['largest_difference']:.0e}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
