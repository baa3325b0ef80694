"""Losses of embeddings, as they are and adapted by a controller, compared by Recall@1 on intents that nobody has seen.

    HF_RELOSS_DATA=... python benchmarks/metric_learning.py --seeds 5

CLINC150 (the imbalanced variant, without what is out of scope), its 150 intents in alphabetical order: trained on the
training sentences of the first 50, measured on the 2,250 test sentences of the last 75, each a query against all
others. The 25 between are validation: on their training sentences the learning rate of each loss is chosen, of half,
once and twice 4e-3 with one seed, and that is what the controller reads. It has learned in three runs of other seeds
before, one controller for each loss. An adapted loss has the learning rate that was chosen for it as it is.

The model is the mean of a vector for each word and each pair of neighbouring words, from scratch. Runs of one seed
share their initial weights and the order of their data. Results are stored in benchmarks/results/metric_learning.json.
"""

import argparse
import collections
import gzip
import itertools
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from quality import RESULTS, train_and_score
from rich.console import Console
from task import Task, data_folder
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import ModelOutput, logging

from hf_reloss import AdaptiveLossTrainer, LossController, LossControllerConfig, ReLossTrainer
from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.statistics import comparison_table, paired_difference
from hf_reloss.compare.stored_results import write_atomically
from hf_reloss.metrics import load_metric

TRAINED, VALIDATION, TEST = range(50), range(50, 75), range(75, 150)
"""Classes."""

BUCKETS, EMBEDDING_SIZE = 2**13, 128

RECIPE = {"num_train_epochs": 8, "per_device_train_batch_size": 64, "per_device_eval_batch_size": 100}

RATES = (2e-3, 4e-3, 8e-3)

TUNING_SEED, LEARNING_SEEDS = 100, (2_000, 2_001, 2_002)
"""None of those that are compared."""

LOSSES = ("triplet", "ala_triplet", "margin_loss", "ala_margin_loss")


class Sentences(torch.utils.data.Dataset):
    """The sentences of some intents in a file, as ids [n, T] of their words and pairs of words, 0 behind them."""

    def __init__(self, part: str, classes: range):
        with gzip.open(data_folder() / "clinc150_imbalanced" / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        names = sorted({row["label"] for row in rows} - {"oos"})
        wanted = {names[index]: index for index in classes}
        rows = [row for row in rows if row["label"] in wanted]
        self.labels = torch.tensor([wanted[row["label"]] for row in rows])
        self.ids = nn.utils.rnn.pad_sequence([_ids(row["text"].split()) for row in rows], batch_first=True)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"ids": self.ids[index], "labels": self.labels[index]}


def _ids(words: list[str]) -> torch.Tensor:
    """Those of words and of pairs of neighbours, from 1 on."""
    grams = [*words, *map(" ".join, itertools.pairwise(words))]
    return torch.tensor([1 + zlib.crc32(gram.encode()) % (BUCKETS - 1) for gram in grams])


class BagOfWords(nn.Module):
    """The mean of a vector for each of the ids [N, T], as embeddings [N, 128]."""

    def __init__(self):
        super().__init__()
        self.vectors = nn.EmbeddingBag(BUCKETS, EMBEDDING_SIZE, mode="mean", padding_idx=0)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> ModelOutput:
        return ModelOutput(embeddings=self.vectors(ids))


class Comparison:
    """The data, and runs on it."""

    def __init__(self):
        self.train, self.validation = Sentences("train", TRAINED), Sentences("train", VALIDATION)
        self.test = Sentences("test", TEST)

    def run(self, loss: str, seed: int, rate: float, evaluation: Sentences, controller: Any = None) -> float:
        """Recall@1, in points, of one run; a controller learns in it."""
        task = Task(
            train=self.train,
            evaluation=evaluation,
            make_model=BagOfWords,
            recipe=RECIPE | {"learning_rate": rate},
            metric=load_metric("recall_at_k", k=1),
        )
        if controller is None:
            scores = train_and_score(task, seed, ReLossTrainer, surrogate=loss)
        else:
            options = {"surrogate": controller, "loss": loss, "metric": task.metric}
            scores = train_and_score(task, seed, AdaptiveLossTrainer, validation_dataset=self.validation, **options)
        return scores["recall_at_k"]

    def best_rate(self, loss: str) -> float:
        """The learning rate that is best on validation classes."""
        found = {rate: self.run(loss, TUNING_SEED, rate, self.validation) for rate in RATES}
        return max(found, key=found.__getitem__)

    def learned_controller(self, loss: str, rate: float) -> LossController:
        """A controller that has learned in some runs."""
        torch.manual_seed(LEARNING_SEEDS[0])
        controller = LossController(LossControllerConfig())
        for seed in LEARNING_SEEDS:
            self.run(loss, seed, rate, self.validation, controller)
        return controller

    def untrained(self, seed: int) -> float:
        """Recall@1, in points, of a model that has learned nothing."""
        torch.manual_seed(seed)
        with torch.no_grad():
            embeddings = BagOfWords()(self.test.ids).embeddings
        return 100 * load_metric("recall_at_k", k=1).compute(embeddings, self.test.labels)


PAIRS = (
    ("triplet", "untrained"),
    ("ala_triplet", "triplet"),
    ("margin_loss", "triplet"),
    ("ala_margin_loss", "margin_loss"),
)
"""Of which the gains are reported."""


def copied(controller: LossController) -> LossController:
    """One that is the same, so that no run is changed by another."""
    copy = LossController(controller.config)
    copy.load_state_dict(controller.state_dict())
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this less one")
    parser.add_argument("--output", type=Path, default=RESULTS / "metric_learning.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    comparison, seeds = Comparison(), range(options.seeds)
    stored = json.loads(options.output.read_text()) if options.output.exists() else {"scores": {}, "learning_rates": {}}
    rates, done = stored["learning_rates"], {}
    for loss, of_loss in stored["scores"].items():
        done |= {(loss, int(seed)): score for seed, score in of_loss.items()}
    controllers: dict[str, LossController] = {}

    def run(loss: str, seed: int) -> float:
        if loss == "untrained":
            return comparison.untrained(seed)
        adapted = loss.removeprefix("ala_")
        rates[adapted] = rates.get(adapted) or comparison.best_rate(adapted)
        if adapted == loss:
            return comparison.run(loss, seed, rates[loss], comparison.test)
        if loss not in controllers:
            controllers[loss] = comparison.learned_controller(adapted, rates[adapted])
        return comparison.run(adapted, seed, rates[adapted], comparison.test, copied(controllers[loss]))

    def store() -> None:
        scores: dict[str, dict[int, float]] = {}
        for (loss, seed), score in done.items():
            scores.setdefault(loss, {})[seed] = score
        stored.update(
            command=f"python benchmarks/metric_learning.py --seeds {options.seeds}",
            environment=environment(),
            measure="recall_at_k|k:1",
            scores=scores,
            over={
                f"{loss} over {baseline}": paired_difference(scores[loss], scores[baseline])._asdict()
                for loss, baseline in PAIRS
                if len(scores.get(loss, {}).keys() & scores.get(baseline, {}).keys()) > 1
            },
        )
        write_atomically(options.output, json.dumps(stored, indent=2) + "\n")

    jobs = {(loss, seed): (loss, seed) for loss in ("untrained", *LOSSES) for seed in seeds}
    collections.deque(tqdm(make_runs(jobs, run, done, store), total=len(jobs.keys() - done.keys())), maxlen=0)
    scores = {loss: {seed: done[loss, seed] for seed in seeds} for loss in ("untrained", *LOSSES)}
    title = "CLINC150, intents not seen in training"
    Console().print(comparison_table(scores, "triplet", title=title, metric="Recall@1"))


if __name__ == "__main__":
    main()
