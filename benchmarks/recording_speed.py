"""What drawing groups from a recording of millions of predictions takes, which stays on disk; rows of speed.py."""

import re
import tempfile
import time
from pathlib import Path

import datasets
import torch
from tqdm.auto import tqdm

from hf_reloss import SurrogateForClassification, SurrogateTrainer, SurrogateTrainingArguments
from hf_reloss.predictions.dataset import predictions_dataset


def from_disk(rows: int, classes: int = 10, part: int = 250_000) -> dict[str, float]:
    """Time and memory that SurrogateTrainer takes to draw its groups from so many predictions."""
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for first in tqdm(range(0, rows, part), desc="recording"):
            predictions = predictions_dataset(
                torch.randn(part, classes), torch.randint(classes, (part,)), torch.full((part,), first / rows)
            )
            predictions.save_to_disk(f"{folder}/{first}")
            parts.append(datasets.load_from_disk(f"{folder}/{first}"))
        everything = datasets.concatenate_datasets(parts)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.arrow"))
        surrogate = SurrogateForClassification.for_metric("accuracy")
        args = SurrogateTrainingArguments(f"{folder}/run", use_cpu=True)
        before, start = _own_memory(), time.perf_counter()
        trainer = SurrogateTrainer(surrogate, args, train_dataset=everything, metric="accuracy")
        seconds, memory = time.perf_counter() - start, _own_memory() - before
        return {
            "seconds": seconds,
            "memory_mb": memory,
            "disk_mb": size / 1e6,
            "predictions": rows,
            "predictions_read": trainer.num_predictions + len(trainer.eval_dataset.columns["logits"]),
        }


def _own_memory() -> float:
    """What this process has for itself, in MB, without files that are mapped."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
