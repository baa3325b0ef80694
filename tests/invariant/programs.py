"""Trainings that are started as real processes: python -m tests.invariant.programs FOLDER MICRO_BATCH ACCUMULATION.

All write the weights after each epoch. A step has 16 examples or 64 groups; the last one of an epoch has fewer.
"""

import math
import os
import sys
from pathlib import Path

import datasets
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import TrainerCallback
from transformers.modeling_outputs import SemanticSegmenterOutput, SequenceClassifierOutput

from hf_reloss import (
    ReLossTrainer,
    ReLossTrainingArguments,
    SurrogateForClassification,
    SurrogateForMultilabel,
    SurrogateForRegression,
    SurrogateForSegmentation,
    SurrogateForTokens,
    SurrogateTrainer,
    SurrogateTrainingArguments,
)

from ..conftest import TinyClassifier, synthetic_predictions, tiny_rows
from ..training.test_text_trainers import make_tokenizer, translating

EXAMPLES, GROUPS = 42, 152


class Trajectory(TrainerCallback):
    """Keeps the weights after each epoch."""

    def __init__(self):
        self.seen = {}

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        for name, weight in model.state_dict().items():
            self.seen[f"{round(state.epoch)}.{name.removeprefix('module.')}"] = weight.clone()


def settings(micro_batch: int, accumulation: int) -> dict:
    return {
        "per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulation, "num_train_epochs": 2,
        "learning_rate": 0.01, "max_grad_norm": 0, "disable_tqdm": True, "use_cpu": True, "seed": 3,
        "ddp_find_unused_parameters": False, "optim": "sgd",
    }  # fmt: skip


def trained_on(surrogate, folder: Path, spy: Trajectory, stream: bool = False, **options) -> None:
    """ReLossTrainer on labels of which some do not count."""
    torch.manual_seed(0)
    rows = tiny_rows(EXAMPLES)
    for row in rows[::5]:
        row["labels"] = torch.tensor(-100)
    if stream:
        rows = datasets.Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in rows])
        rows = rows.to_iterable_dataset()
    args = ReLossTrainingArguments(str(folder / "run"), save_strategy="no", **options)
    ReLossTrainer(TinyClassifier(), args, train_dataset=rows, surrogate=surrogate, callbacks=[spy]).train()


def mean(folder: Path, spy: Trajectory, **options) -> None:
    """A loss that is a mean over examples, with a share of the model's own."""
    trained_on(SurrogateForClassification.for_metric("accuracy"), folder, spy, model_loss_share=0.5, **options)


def dropped(folder: Path, spy: Trajectory, **options) -> None:
    """The same, without the last examples, which do not fill a batch."""
    trained_on(SurrogateForClassification.for_metric("accuracy"), folder, spy, dataloader_drop_last=True, **options)


def split(folder: Path, spy: Trajectory, **options) -> None:
    """The same as `mean`, with batches that Accelerate splits over the processes."""
    options["per_device_train_batch_size"] *= int(os.environ.get("WORLD_SIZE", "1"))
    mean(folder, spy, accelerator_config={"split_batches": True}, **options)


def stream(folder: Path, spy: Trajectory, **options) -> None:
    """The same as `mean`, from a stream of examples."""
    steps = 2 * math.ceil(EXAMPLES / 16)
    mean(folder, spy, stream=True, max_steps=steps, **options)


def group(folder: Path, spy: Trajectory, **options) -> None:
    """A loss that is a group's."""
    trained_on(SurrogateForClassification.for_metric("matthews_correlation"), folder, spy, **options)


def texts(folder: Path, spy: Trajectory, **options) -> None:
    """A loss of a group of sentences, whose lengths differ."""
    torch.manual_seed(0)
    surrogate = SurrogateForTokens.for_metric("sacrebleu", reach=2)
    translating(folder / "run", make_tokenizer(), surrogate=surrogate, callbacks=[spy], **options).train()


class TinyRegressor(TinyClassifier):
    """One number for each example."""

    def __init__(self):
        super().__init__(classes=1)

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        return super().forward(features)


class TinySegmenter(TinyClassifier):
    """Maps of 2×2 pixels."""

    def __init__(self):
        super().__init__(classes=16)

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> SemanticSegmenterOutput:
        return SemanticSegmenterOutput(logits=super().forward(features).logits.unflatten(-1, (4, 2, 2)))


def of_other_labels(surrogate, make_labels, model, folder: Path, spy: Trajectory, **options) -> None:
    """ReLossTrainer on labels that are made of class indices [N]; every fifth example does not count."""
    torch.manual_seed(0)
    rows = tiny_rows(EXAMPLES)
    made = make_labels(torch.stack([row["labels"] for row in rows]))
    made[::5] = -100
    rows = [row | {"labels": label} for row, label in zip(rows, made, strict=True)]
    args = ReLossTrainingArguments(str(folder / "run"), save_strategy="no", **options)
    ReLossTrainer(model, args, train_dataset=rows, surrogate=surrogate, callbacks=[spy]).train()


def several(folder: Path, spy: Trajectory, **options) -> None:
    """Several labels for each example, and a mean over examples."""
    surrogate = SurrogateForMultilabel.for_metric("subset_accuracy")
    of_other_labels(surrogate, lambda labels: F.one_hot(labels, 4).float(), TinyClassifier(), folder, spy, **options)


def ranked(folder: Path, spy: Trajectory, **options) -> None:
    """Four documents for each query, and a mean over queries."""
    surrogate = SurrogateForMultilabel.for_metric("ndcg")
    of_other_labels(surrogate, lambda labels: F.one_hot(labels, 4).float(), TinyClassifier(), folder, spy, **options)


def numbers(folder: Path, spy: Trajectory, **options) -> None:
    """One number for each example, and the mean of its errors."""
    surrogate = SurrogateForRegression.for_metric("mse")
    of_other_labels(surrogate, lambda labels: labels.float(), TinyRegressor(), folder, spy, **options)


def agreement(folder: Path, spy: Trajectory, **options) -> None:
    """One number for each example, and the correlation of a group."""
    surrogate = SurrogateForRegression.for_metric("pearsonr")
    of_other_labels(surrogate, lambda labels: labels.float(), TinyRegressor(), folder, spy, **options)


def maps(folder: Path, spy: Trajectory, **options) -> None:
    """Maps of classes, and the mean IoU of a group."""
    surrogate = SurrogateForSegmentation.for_metric("mean_iou")

    def made(labels: torch.Tensor) -> torch.Tensor:
        return (labels[:, None, None] + torch.tensor([[0, 0], [0, 1]])) % 4

    of_other_labels(surrogate, made, TinySegmenter(), folder, spy, **options)


def learned(folder: Path, spy: Trajectory, **options) -> None:
    """SurrogateTrainer."""
    torch.manual_seed(0)
    options |= {"per_device_train_batch_size": 4 * options["per_device_train_batch_size"]}
    args = SurrogateTrainingArguments(
        str(folder / "run"), num_groups=GROUPS, num_eval_groups=16, group_size=16, min_alignment=-1.0, **options
    )
    surrogate = SurrogateForClassification.for_metric("accuracy")
    SurrogateTrainer(
        surrogate, args, train_dataset=synthetic_predictions(400), metric="accuracy", callbacks=[spy]
    ).train()


ON_CLASSES = (mean, dropped, split, stream, group)
ON_OTHER_LABELS = (several, ranked, numbers, agreement, maps)
PROGRAMS = {program.__name__: program for program in (*ON_CLASSES, *ON_OTHER_LABELS, texts, learned)}

if __name__ == "__main__":
    folder, micro_batch, accumulation = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for name, program in PROGRAMS.items():
        spy = Trajectory()
        program(folder, spy, **settings(micro_batch, accumulation))
        if int(os.environ.get("RANK", "0")) == 0:
            save_file({key: weight.contiguous() for key, weight in spy.seen.items()}, folder / f"{name}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # all is written, and taking down gloo's threads with the interpreter may hang
