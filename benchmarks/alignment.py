"""How well surrogates rank groups of predictions as their metrics do, beside cross-entropy.

    HF_RELOSS_DATA=... python benchmarks/alignment.py
    HF_RELOSS_DATA=... python benchmarks/alignment.py multi30k_nat --seeds 3

One run of MiniLM on HWU64, on cross-entropy, is recorded, or what a non-autoregressive translator writes at stages of
its training on Multi30k, from English to German; from that, for each metric and seed, groups are drawn, a surrogate is
learned, and alignment is measured on groups of held-out predictions: of the learned surrogate, of the soft metric
(before anything is learned) and of cross-entropy; as they are used, and on evidence of one scale ("canonical"), in
which form surrogates are learned. Writes benchmarks/results/alignment_TASK.json.
"""

import argparse
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import torch
from nltk.stem.snowball import SnowballStemmer
from nltk.translate.meteor_score import single_meteor_score
from quality import RECORDING_SEED, RESULTS, train_and_score
from rich.console import Console
from rich.table import Table
from task import recorded_stages
from tasks import TASKS
from tqdm.auto import tqdm
from transformers import DataCollatorForSeq2Seq, Trainer, set_seed
from transformers.utils import logging
from translation import NatForTranslation, base, encoded, tokenizer

from hf_reloss import (
    PredictionRecorder,
    Surrogate,
    SurrogateForClassification,
    SurrogateForTokens,
    load_metric,
    record_predictions,
)
from hf_reloss.compare.runs import environment
from hf_reloss.compare.statistics import paired_difference
from hf_reloss.learning.learn_surrogate import learn_surrogate
from hf_reloss.metrics import Metric
from hf_reloss.metrics.translation import tokenizer_13a

LOSSES = ("learned", "unlearned", "cross_entropy")
FORMS = ("", "_canonical")  # the loss as it is used, and on evidence of one scale


def of_the_scenario(names: list[str]) -> Any:
    """A metric of one's own: 1 for the right intent, 1/2 for another of its scenario (of alarm_set, alarm)."""
    scenarios = np.unique([name.split("_")[0] for name in names], return_inverse=True)[1]

    def half_right(predictions: np.ndarray, references: np.ndarray) -> float:
        return np.mean(
            np.where(predictions == references, 1.0, 0.5 * (scenarios[predictions] == scenarios[references]))
        )

    return half_right


def german_meteor(predictions: list[str], references: list[str]) -> list[float]:
    """METEOR of each text: of words and their stems, without synonyms, for there is no WordNet of German."""
    split, nothing = tokenizer_13a(), SimpleNamespace(synsets=lambda word: ())
    pairs = zip(references, predictions, strict=True)
    return [single_meteor_score(split(r), split(p), stemmer=GERMAN, wordnet=nothing) for r, p in pairs]


GERMAN = SimpleNamespace(stem=functools.cache(SnowballStemmer("german").stem))
"""The stems of words, each of which is looked up once."""


@dataclass
class Ranked:
    """What is ranked.

    Attributes:
        predictions: recorded ones.
        metrics: by what a table calls them.
        kind: of the surrogates.
        structure: options of their configuration.
        settings: of learning them.
    """

    predictions: datasets.Dataset
    metrics: dict[str, Metric]
    kind: type[Surrogate]
    structure: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def hwu64() -> Ranked:
    task = TASKS["hwu64"]("validation")
    recorder = PredictionRecorder()
    train_and_score(task, RECORDING_SEED, Trainer, callbacks=[recorder])
    metrics = {
        "accuracy": load_metric("accuracy"),
        "macro-F1": load_metric("f1", average="macro"),
        "Matthews correlation": load_metric("matthews_correlation"),
        "a function of one's own": load_metric(of_the_scenario(task.class_names)),
    }
    return Ranked(recorder.dataset(), metrics, SurrogateForClassification)


def multi30k_nat() -> Ranked:
    record = functools.partial(
        record_predictions, dataset=encoded("train", "de"), metric="sacrebleu", max_predictions=400,
        data_collator=DataCollatorForSeq2Seq(tokenizer()), processing_class=tokenizer(),
    )  # fmt: skip
    predictions = recorded_stages(base("multi30k_nat", "de"), NatForTranslation.from_pretrained, record)
    metrics = {
        "METEOR, text by text": load_metric(german_meteor, per_example=True, name="meteor", higher_is_better=True),
        "BLEU": load_metric("sacrebleu"),
    }
    return Ranked(predictions, metrics, SurrogateForTokens, {"reach": 4}, {"group_size": 32, "num_groups": 512})


RANKED = {"hwu64": hwu64, "multi30k_nat": multi30k_nat}


def alignments(of: Ranked, metric: Metric, seed: int, learn: bool) -> dict[str, float]:
    """Of a surrogate, and of cross-entropy on the same groups."""
    set_seed(seed)
    surrogate = of.kind.for_metric(metric, **of.structure)
    # One epoch at a learning rate of 0 measures the soft metric.
    settings = of.settings | ({} if learn else {"learning_rate": 0.0, "num_train_epochs": 1})
    learn_surrogate(surrogate, of.predictions, metric, seed=seed, min_alignment=-1.0, **settings)
    record = surrogate.config.record
    name = "learned" if learn else "unlearned"
    return {
        name: record["alignment"],
        f"{name}_canonical": record["alignment_canonical"],
        "cross_entropy": record["alignment_cross_entropy"],
        "cross_entropy_canonical": record["alignment_cross_entropy_canonical"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=RANKED, nargs="?", default="hwu64")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this less one")
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/alignment_TASK.json")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(2)
    of = RANKED[options.task]()
    measured: dict[str, dict[str, dict[int, float]]] = {}
    with tqdm(total=len(of.metrics) * options.seeds * 2) as bar:
        for name, metric in of.metrics.items():
            losses = measured[name] = {loss + form: {} for loss in LOSSES for form in FORMS}
            for seed in range(options.seeds):
                for learn in (False, True):
                    for loss, alignment in alignments(of, metric, seed, learn).items():
                        losses[loss][seed] = alignment
                    bar.update()
    result = {
        "task": options.task,
        "command": f"python benchmarks/alignment.py {options.task} --seeds {options.seeds}",
        "environment": environment(),
        "recording_seed": RECORDING_SEED,
        "predictions": len(of.predictions),
        "alignment": measured,
        "over_cross_entropy": {
            name: {
                loss + form: paired_difference(losses[loss + form], losses["cross_entropy" + form])._asdict()
                for loss in LOSSES[:-1]
                for form in FORMS
            }
            for name, losses in measured.items()
        },
    }
    path = options.output or RESULTS / f"alignment_{options.task}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    title = f"alignment on held-out groups, {options.task}"
    table = Table("metric", *(loss + form for loss in LOSSES for form in FORMS), title=title)
    for name, losses in measured.items():
        table.add_row(name, *(f"{fmean(values.values()):.4f}" for values in losses.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
