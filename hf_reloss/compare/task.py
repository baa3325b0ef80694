"""What is trained where losses are compared: a user's own file, or scikit-learn's digits, which come with it."""

import functools
import hashlib
import runpy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput

from ..distributed import undisturbed

TRAIN_IMAGES = 400

RARER = 0.7
"""Where some digits are rare, the share that is left of each, relative to the one before: of the digit 9 a 25th."""


@dataclass
class ComparedTask:
    """What is trained.

    Attributes:
        model: makes a fresh model.
        train_dataset, eval_dataset: as for a Trainer, of one label per example.
        arguments: of `TrainingArguments`.
        trainer_options: further ones of Trainer, such as `data_collator` and `processing_class`.
        source: what the model is fixed by: `"digits"`, or a hash of the file that defines it.
    """

    model: Callable[[], nn.Module]
    train_dataset: Any
    eval_dataset: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    trainer_options: dict[str, Any] = field(default_factory=dict)
    source: str = ""


def load_task(where: str) -> ComparedTask:
    """A task: `"digits"`, or a Python file that defines what `ComparedTask` has, under these names.

    Raises:
        ValueError: if something that it needs is not defined there.
    """
    if where == "digits":
        train, test = digits()
        arguments = {
            "num_train_epochs": 20, "per_device_train_batch_size": 32, "per_device_eval_batch_size": 500,
            "learning_rate": 1e-2,  # the best for cross-entropy of 1e-3, 3e-3, 1e-2, on these same test images
        }  # fmt: skip
        return ComparedTask(DigitClassifier, train, test, arguments, source=where)
    if not Path(where).is_file():
        raise ValueError(f"{where} is no task that comes along (digits) and no file: pass a Python file.")
    folder = str(Path(where).resolve().parent)
    if folder not in sys.path:  # as of a script, so that it finds modules beside it
        sys.path.insert(0, folder)
    defined = runpy.run_path(where)
    names = ("model", "train_dataset", "eval_dataset")
    missing = [name for name in names if name not in defined]
    if missing or not callable(defined["model"]):
        raise ValueError(
            f"{where} has to define {', '.join(names)}, where model() makes a fresh model"
            + (f", but lacks {', '.join(missing)}." if missing else ".")
        )
    return ComparedTask(
        **{name: defined[name] for name in names},
        arguments=defined.get("arguments", {}),
        trainer_options=defined.get("trainer_options", {}),
        source=hashlib.sha256(Path(where).read_bytes()).hexdigest()[:16],
    )


class DigitClassifier(nn.Module):
    """A small convolutional network for images of 8×8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        logits = self.layers(pixel_values)
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def digits() -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
    """Train and test images: 400 and 1,397, split at random once."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order, None] / 8 - 1
    labels = torch.tensor(data.target)[order]
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    return rows[:TRAIN_IMAGES], rows[TRAIN_IMAGES:]


@functools.cache
def digit_predictions(some_are_rare: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """What the classifier of the task `"digits"`, trained on cross-entropy, puts out for the test images.

    Args:
        some_are_rare: whether it was trained on images of which the higher digits are the rarer.

    Returns:
        Logits [1397, 10] float32 and labels [1397] int64.
    """
    task, random = load_task("digits"), torch.Generator().manual_seed(0)
    kept = [
        row
        for row in task.train_dataset
        if not some_are_rare or torch.rand((), generator=random) < RARER ** int(row["labels"])
    ]
    quiet: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder, undisturbed():
        torch.manual_seed(0)
        args = TrainingArguments(folder, use_cpu=True, log_level="error", **quiet, **task.arguments)
        trainer = Trainer(task.model(), args, train_dataset=kept)
        trainer.pop_callback(PrinterCallback)
        trainer.train()
        found = trainer.predict(task.eval_dataset)
    return torch.from_numpy(found.predictions), torch.from_numpy(found.label_ids)
