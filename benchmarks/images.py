"""Classes of images: Fashion-MNIST with a small CNN, CIFAR-10 with a small ResNet.

Their validation examples are taken from the training files.
"""

import dataclasses
import functools
import gzip
import io
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from task import Task, data_folder
from torch import nn
from transformers import PreTrainedConfig, ResNetConfig, ResNetForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from hf_reloss.metrics import load_metric


class Images(torch.utils.data.Dataset):
    """Images [n, C, H, W] and labels [n] in memory.

    Args:
        varied: whether images are seen in a mirror, and moved by up to 4 pixels, at random each time.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, varied: bool = False):
        self.images, self.labels, self.varied = images, labels, varied

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = self.images[index]
        if self.varied:
            height, width = image.shape[-2:]
            top, left, mirrored = torch.randint(9, (3,)).tolist()
            image = F.pad(image, (4, 4, 4, 4))[:, top : top + height, left : left + width]
            image = image.flip(-1) if mirrored % 2 else image
        return {"pixel_values": image, "labels": self.labels[index]}


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
        losses=(
            *("cross_entropy", "label_smoothing", "class_weights", "logit_adjustment", "soft_f1"),
            *("reloss", "unlearned", "auto"),
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


def fashion_mnist_resnet(split: str) -> Task:
    """The same images with a small ResNet."""
    return dataclasses.replace(
        fashion_mnist(split), make_model=functools.partial(small_resnet, channels=1), recipe=RESNET_RECIPE,
        card="accuracy", losses=("cross_entropy", "transferred"),
    )  # fmt: skip


def cifar10(split: str) -> Task:
    """CIFAR-10: the first 10,000 training images; 10,000 test images, or the last 10,000 of training to tune on."""
    everything, evaluation = read_cifar10(split)
    return Task(
        train=Images(everything.images[:10_000], everything.labels[:10_000], varied=True),
        evaluation=evaluation,
        make_model=small_resnet,
        recipe=RESNET_RECIPE,
        card="accuracy",
        losses=("cross_entropy", "transferred", "unlearned"),
    )


def cifar10_full(split: str) -> Task:
    """CIFAR-10: all 50,000 training images, for a GPU; 10,000 test images, or the last 10,000 of training to tune on.

    What is tuned trains on the other 40,000.
    """
    everything, evaluation = read_cifar10(split)
    images = len(everything) - (0 if split == "test" else len(evaluation))
    return Task(
        train=Images(everything.images[:images], everything.labels[:images], varied=True),
        evaluation=evaluation,
        make_model=small_resnet,
        # The learning rate was the best of three for cross-entropy on validation images, one seed.
        recipe=RESNET_RECIPE | {"num_train_epochs": 8, "per_device_train_batch_size": 512, "learning_rate": 8e-3},
    )


def cifar10_imbalanced(split: str) -> Task:
    """CIFAR-10 with classes of 3,000 down to 150 training images, a ratio of 20, for macro-F1."""
    everything, evaluation = read_cifar10(split)
    chosen = thinned(everything.labels[:40_000], 3_000)
    return Task(
        train=Images(everything.images[chosen], everything.labels[chosen], varied=True),
        evaluation=evaluation,
        make_model=small_resnet,
        recipe=RESNET_RECIPE,
        metric=load_metric("f1", average="macro"),
        warmup=0.5,
        card="macro-f1",
        losses=("cross_entropy", "transferred", "unlearned"),
    )


RESNET_RECIPE = {
    "num_train_epochs": 12,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 500,
    "learning_rate": 4e-3,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
}


def small_resnet(channels: int = 3) -> ResNetForImageClassification:
    """A ResNet of three stages and 0.3 million weights."""
    sizes = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1], "layer_type": "basic"}
    config = ResNetConfig(num_channels=channels, num_labels=10, **sizes)
    return ResNetForImageClassification(config).to(memory_format=torch.channels_last)  # a quarter less time on CPUs


@functools.cache
def read_cifar10(split: str) -> tuple[Images, Images]:
    """All training images, and those to evaluate on."""

    def read(part: str) -> Images:
        with np.load(data_folder() / "cifar10" / f"{part}_jpeg.npz") as arrays:
            jpeg, offsets, labels = (arrays[name] for name in ("jpeg", "offsets", "label"))
        images = np.stack(
            [np.asarray(Image.open(io.BytesIO(jpeg[a:b].tobytes()))) for a, b in itertools.pairwise(offsets)]
        )
        scaled = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.473) / 0.251
        return Images(scaled.contiguous(), torch.from_numpy(labels).long())

    everything = read("train")
    return everything, (
        read("test") if split == "test" else Images(everything.images[-10_000:], everything.labels[-10_000:])
    )


TASKS = (fashion_mnist, fashion_mnist_imbalanced, fashion_mnist_resnet, cifar10, cifar10_full, cifar10_imbalanced)
