"""Pairs of data and a metric of classes for benchmarks/promise.py: what is trained, chosen on, and judged by.

Every pair has development data, which training may look at, and test data, on which nothing is chosen.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from images import CNN_RECIPE, RESNET_RECIPE, Images, SmallCNN, read_cifar10, read_fashion_mnist, small_resnet, thinned
from intents import Head, Rows, embedded, read_lines
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_reloss import Surrogate, SurrogateForClassification, hand_made_loss
from hf_reloss.compare.task import DigitClassifier, digits
from hf_reloss.metrics import Metric, load_metric

DEVELOPMENT = 2_000
"""Images of development data."""


@dataclass
class Pair:
    """Data and a metric.

    Attributes:
        train, development, test: data sets as Trainer takes them.
        make_model: the model that training starts from; fresh weights come from torch's random state.
        recipe: arguments of `TrainingArguments`.
        metric: what the model is judged by.
        field_loss: makes the loss that people use for this, beside the usual one, as Trainer's `compute_loss_func`;
            None if there is none.
        kind: of its surrogates.
        options: further arguments of Trainer.
        warmup: share of the steps on the usual loss before the soft metric takes over; None for what suits its form.
        share: of the usual loss beside the soft metric, as "auto" has it.
        score: of a trainer that has trained, in points on test data; None for the metric of the most likely classes.
    """

    train: Any
    development: Any
    test: Any
    make_model: Callable[[], nn.Module]
    recipe: dict[str, Any]
    metric: Metric = field(default_factory=lambda: load_metric("accuracy"))
    field_loss: "Callable[[Pair], Callable[..., torch.Tensor]] | None" = field(default=lambda pair: label_smoothing)
    kind: type[Surrogate] = SurrogateForClassification
    options: dict[str, Any] = field(default_factory=dict)
    warmup: float | None = None
    share: float = 0.0
    score: Callable[[Trainer], float] | None = None

    def arguments(
        self, folder: str, seed: int, kind: type[TrainingArguments] = TrainingArguments, **changed: Any
    ) -> TrainingArguments:
        """The arguments of a run that writes nothing, with some changed."""
        quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "report_to": "none"}
        device = {"use_cpu": not torch.cuda.is_available(), "dataloader_pin_memory": False}
        recipe = {"per_device_eval_batch_size": 500} | self.recipe
        return kind(folder, seed=seed, **quiet | device | recipe | changed)


def digits_slowly() -> Pair:
    """scikit-learn's digits, 400 images, at a tenth of the learning rate that is best for cross-entropy."""
    train, others = digits()
    recipe = {"num_train_epochs": 10, "per_device_train_batch_size": 32, "learning_rate": 1e-3}
    return Pair(train, others[:400], others[400:], DigitClassifier, recipe)


def _image_splits(read: Callable[[str], tuple[Images, Images]]) -> tuple[Images, Images, Images]:
    """All training images but the last 10,000, the first of these, and the test images."""
    (everything, held_out), (_, test) = read("validation"), read("test")
    rest = Images(everything.images[:-10_000], everything.labels[:-10_000])
    return rest, Images(held_out.images[:DEVELOPMENT], held_out.labels[:DEVELOPMENT]), test


def fashion_accuracy() -> Pair:
    """Fashion-MNIST, 6,000 images."""
    train, development, test = _image_splits(read_fashion_mnist)
    return Pair(Images(train.images[:6_000], train.labels[:6_000]), development, test, SmallCNN, CNN_RECIPE)


def fashion_macro_f1() -> Pair:
    """Fashion-MNIST with classes of 1,700 down to 85 training images; balanced data judges."""
    train, development, test = _image_splits(read_fashion_mnist)
    chosen = thinned(train.labels, 1_700)
    return Pair(
        Images(train.images[chosen], train.labels[chosen]), development, test, SmallCNN, CNN_RECIPE,
        metric=load_metric("f1", average="macro"), field_loss=logit_adjustment,
    )  # fmt: skip


def fashion_rare() -> Pair:
    """Fashion-MNIST, shirts against all else, 3 % of them shirts in all three parts; binary F1."""
    train, _, test = _image_splits(read_fashion_mnist)
    metric = load_metric("f1", average="binary")
    parts = [_few_shirts(train, range(12_000), 6_000), _few_shirts(train, range(12_000, 18_000), 3_000)]
    parts.append(_few_shirts(test, range(10_000), 9_200))
    model = functools.partial(SmallCNN, 2)
    return Pair(*parts, model, CNN_RECIPE, metric=metric, field_loss=logit_adjustment)


def _few_shirts(images: Images, rows: range, number: int) -> Images:
    """Of some rows, the first images that are 3 % shirts."""
    shirts, row = images.labels == 6, torch.tensor(rows)
    positive = round(0.03 * number)
    chosen = torch.cat([row[shirts[row]][:positive], row[~shirts[row]][: number - positive]]).sort().values
    return Images(images.images[chosen], shirts[chosen].long())


def cifar10_accuracy() -> Pair:
    """CIFAR-10, 10,000 images, which a small ResNet does not fit."""
    train, development, test = _image_splits(read_cifar10)
    return Pair(Images(train.images[:10_000], train.labels[:10_000], True), development, test, *_RESNET)


def cifar10_macro_f1() -> Pair:
    """CIFAR-10 with classes of 3,000 down to 150 training images; balanced data judges."""
    train, development, test = _image_splits(read_cifar10)
    chosen = thinned(train.labels, 3_000)
    return Pair(
        Images(train.images[chosen], train.labels[chosen], True), development, test, *_RESNET,
        metric=load_metric("f1", average="macro"), field_loss=logit_adjustment,
    )  # fmt: skip


_RESNET = (small_resnet, RESNET_RECIPE)

FROZEN_RECIPE = {
    "num_train_epochs": 10,
    "per_device_train_batch_size": 64,
    "learning_rate": 8e-3,  # chosen for cross-entropy on validation sentences of HWU64
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
}


def intent_rows(data: str) -> tuple[list[Rows], list[str]]:
    """Sentences to train on, of development and of test, which MiniLM has embedded as it comes, and their intents."""
    train, test = read_lines(data, "train"), read_lines(data, "test")
    if data == "hwu64":
        train, development = [row for i, row in enumerate(train) if i % 8], train[::8]
    else:
        development = read_lines(data, "dev")
    names = sorted({row["label"] for row in train})
    parts = [
        Rows(
            embedded(f"{data}_{name}", [row["text"] for row in rows]),
            torch.tensor([names.index(row["label"]) for row in rows]),
        )
        for name, rows in (("train_part", train), ("development", development), ("test_part", test))
    ]
    return parts, names


def _intents(data: str, metric: Metric, more_classes: int = 0, **options: Any) -> Pair:
    """Intents of sentences with a small head."""
    parts, names = intent_rows(data)
    return Pair(*parts, functools.partial(Head, len(names) + more_classes), FROZEN_RECIPE, metric=metric, **options)


def hwu64_accuracy() -> Pair:
    """HWU64, 64 intents of home assistants."""
    return _intents("hwu64", load_metric("accuracy"))


def hwu64_macro_f1() -> Pair:
    """HWU64 by macro-F1."""
    return _intents("hwu64", load_metric("f1", average="macro"), field_loss=logit_adjustment)


def clinc150_macro_f1() -> Pair:
    """CLINC150 with imbalanced classes: 151 intents, 25 to 100 sentences of each."""
    return _intents("clinc150_imbalanced", load_metric("f1", average="macro"), field_loss=logit_adjustment)


def _of_matrix(credit: torch.Tensor, name: str) -> Metric:
    """The mean credit of decisions, as a function that nothing else is known of."""

    def function(predictions: torch.Tensor, references: torch.Tensor) -> float:
        return float(credit[torch.as_tensor(references).long(), torch.as_tensor(predictions).long()].mean())

    function.__name__ = name
    return load_metric(function, higher_is_better=True)


def _costs(*shape: int) -> torch.Tensor:
    """Costs between 0.01 and 1, their logarithms uniform at random."""
    return 10.0 ** (-2 * torch.rand(shape, generator=torch.Generator().manual_seed(64)))


def hwu64_class_costs() -> Pair:
    """HWU64 where missing an intent costs 1 to 100, and a plain function says the mean of 1 - cost / 100."""
    credit = 1 - _costs(64, 1).expand(64, 64) * (1 - torch.eye(64))
    return _intents("hwu64", _of_matrix(credit, "class_credit"))


def hwu64_pair_costs() -> Pair:
    """HWU64 where each confusion of two intents has a cost of its own."""
    return _intents("hwu64", _of_matrix(1 - _costs(64, 64) * (1 - torch.eye(64)), "pair_credit"))


def hwu64_hand_over() -> Pair:
    """HWU64 with a 65th decision, to hand over to a person, which costs a tenth of a wrong answer."""
    credit = torch.cat([torch.eye(64), torch.full((64, 1), 0.9)], dim=1)
    return _intents("hwu64", _of_matrix(credit, "credit_with_hand_over"), more_classes=1)


def sick_kappa() -> Pair:
    """SICK: how related two sentences are, 1 to 5, by kappa with quadratic weights; what MiniLM makes of them."""
    metric = load_metric("cohen_kappa", weights="quadratic")
    return sick_features(metric, lambda scores: torch.tensor([round(score) - 1 for score in scores]))


def sick_features(metric: Metric, labels: Callable[[list[float]], torch.Tensor]) -> Pair:
    """SICK, of which a function makes labels [n] of scores from 1 to 5."""
    parts = []
    for name in ("train", "dev", "test"):
        rows = read_lines("sick", name)
        first, second = (embedded(f"sick_{name}_{i}", [row[f"sentence{i}"] for row in rows]) for i in (1, 2))
        features = 20 * torch.cat([(first - second).abs(), first * second], dim=-1)  # about 1 each
        parts.append(Rows(features, labels([row["score"] for row in rows])))
    return Pair(*parts, functools.partial(Head, 5, width=768), FROZEN_RECIPE | {"learning_rate": 1e-3}, metric=metric)


def label_smoothing(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Cross-entropy with 0.1 of the probability spread over all classes."""
    return F.cross_entropy(outputs["logits"].flatten(0, -2), labels.flatten(), label_smoothing=0.1)


def by_hand(name: str, pair: Pair) -> Callable[..., torch.Tensor]:
    """A hand-made loss with its usual options."""
    found = hand_made_loss(name)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return 1.0 * found(outputs, labels)  # which Trainer may multiply in place

    return loss


def logit_adjustment(pair: Pair) -> Callable[..., torch.Tensor]:
    """Cross-entropy of logits plus the log frequencies of the training labels (Menon et al. 2021)."""
    labels = torch.stack([pair.train[i]["labels"] for i in range(len(pair.train))])

    def loss(outputs: Any, labels_of_batch: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        logits = outputs["logits"]
        counts = torch.bincount(labels, minlength=logits.shape[-1]).clamp(min=1)
        return F.cross_entropy(logits + (counts / counts.sum()).log().to(logits), labels_of_batch)

    return loss


CLASS_PAIRS: dict[str, Callable[[], Pair]] = {
    made.__name__: made
    for made in (
        *(digits_slowly, fashion_accuracy, fashion_macro_f1, fashion_rare, cifar10_accuracy, cifar10_macro_f1),
        *(hwu64_accuracy, hwu64_macro_f1, clinc150_macro_f1, hwu64_class_costs, hwu64_pair_costs, hwu64_hand_over),
        sick_kappa,
    )
}
"""All pairs, by name."""
