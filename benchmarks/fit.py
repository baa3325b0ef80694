"""What losses gain by how well the model fits what it is trained on: few images, seen often, or many, seen seldom.

    HF_RELOSS_DATA=... python benchmarks/fit.py cifar10

All runs take about as many steps, on more or fewer training images, at the learning rates that baselines.py found
for the task. Beside the accuracy on test images is that on the training images, as they are: how well the model fits
them. Results are stored after each run in benchmarks/results/fit_TASK.json, and runs found there are not repeated; both
tasks' are drawn in docs/fit.png.
"""

import argparse
import collections
import dataclasses
import json
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from images import Images, read_cifar10, read_fashion_mnist
from matplotlib.figure import Figure
from quality import RESULTS, learn_surrogates, train_and_score
from task import Task
from tasks import TASKS
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.utils import logging

from hf_reloss import AutoSurrogate, ReLossTrainer
from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.statistics import paired_difference
from hf_reloss.compare.stored_results import write_atomically
from hf_reloss.hub.pictures import OURS, USUAL
from hf_reloss.metrics import load_metric

SIZES = {"fashion_mnist": (1_500, 6_000, 24_000, 48_000), "cifar10": (2_500, 10_000, 40_000)}
"""Training images, the task's own number among them."""

READ = {"fashion_mnist": read_fashion_mnist, "cifar10": read_cifar10}
TITLES = {"fashion_mnist": "Fashion-MNIST, a small CNN", "cifar10": "CIFAR-10, a small ResNet"}
LOSSES = {
    "cross_entropy": "cross-entropy",
    "unlearned": "the soft metric",
    "reloss": "ReLoss",
    "reloss_half": "half ReLoss",
}
PICTURE = Path(__file__).parents[1] / "docs" / "fit.png"


def sized(name: str, images: int) -> Task:
    """A task with more or fewer training images, seen as often as the task has steps; scored on these, too."""
    task, (whole, _) = TASKS[name]("test"), READ[name]("test")
    train = Images(whole.images[:images], whole.labels[:images], varied=task.train.varied)
    epochs = task.recipe["num_train_epochs"] * len(task.train) / images
    accuracy = load_metric("accuracy")

    def score(model: nn.Module) -> dict[str, float]:
        model.eval()
        return {"test": of(model, task.evaluation), "training": of(model, Images(train.images, train.labels))}

    @torch.no_grad()
    def of(model: nn.Module, data: Images) -> float:
        logits = torch.cat([model(batch).logits for batch in data.images.split(500)])
        return 100 * accuracy.compute(logits, data.labels)

    return dataclasses.replace(task, train=train, recipe=task.recipe | {"num_train_epochs": epochs}, score=score)


def run(name: str, images: int, loss: str, seed: int, recipe: dict[str, Any], surrogates: str) -> dict[str, float]:
    """Test and training accuracy, in points, of one run in a process of its own."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task = sized(name, images)
    if loss == "cross_entropy":
        return train_and_score(task, seed, Trainer, recipe=recipe)
    surrogate = AutoSurrogate.from_pretrained(Path(surrogates) / loss.removesuffix("_half"))
    recipe = recipe | {"surrogate_warmup": 0.0, "model_loss_share": 0.5 if loss.endswith("_half") else 0.0}
    return train_and_score(task, seed, ReLossTrainer, recipe=recipe, surrogate=surrogate)


def summary(runs: dict[str, dict[str, float]], name: str, seeds: int) -> dict[str, Any]:
    """By training images: accuracies of each loss, and what it gains over cross-entropy on test images."""
    found = {}
    for images in SIZES[name]:
        of = {loss: {seed: runs[f"{loss} {images} {seed}"] for seed in range(seeds)} for loss in LOSSES}
        means = {
            part: {loss: fmean(each[part] for each in of_loss.values()) for loss, of_loss in of.items()}
            for part in ("training", "test")
        }
        tests = {loss: {seed: each["test"] for seed, each in of_loss.items()} for loss, of_loss in of.items()}
        over = {
            loss: paired_difference(tests[loss], tests["cross_entropy"])._asdict()
            for loss in LOSSES
            if loss != "cross_entropy"
        }
        found[str(images)] = means | {"over_cross_entropy": over}
    return found


def draw(results: dict[str, dict[str, Any]]) -> None:
    """Gains over cross-entropy by the training accuracy that cross-entropy reaches, a panel for each task, with
    bands of 95 %.
    """
    figure = Figure(figsize=(4.6 * len(results), 3.6), layout="constrained")
    colors = {"unlearned": "#8a6d9e", "reloss": OURS, "reloss_half": "#d9a441"}
    for axes, (name, by_images) in zip(
        figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True
    ):
        axes.axhline(0, color=USUAL, lw=1)
        fits = {images: found["training"]["cross_entropy"] for images, found in by_images.items()}
        for loss, color in colors.items():
            gains = [by_images[images]["over_cross_entropy"][loss] for images in fits]
            places, means, lows, highs = (
                list(fits.values()), *([gain[part] for gain in gains] for part in ("mean", "low", "high"))
            )  # fmt: skip
            axes.fill_between(places, lows, highs, color=color, alpha=0.18, lw=0)
            axes.plot(places, means, "o-", color=color, ms=4, lw=1.2, label=LOSSES[loss])
        above = axes.secondary_xaxis("top")
        above.set_xticks(
            list(fits.values()), [f"{int(images):,}" for images in fits], fontsize=7, rotation=35, ha="left"
        )
        above.set_xlabel("training images", fontsize=8)
        axes.set_title(TITLES[name], fontsize=9)
        axes.set_xlabel("training accuracy on cross-entropy, %")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("test accuracy over cross-entropy, points")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=SIZES)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this less one")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time, of one thread each")
    parser.add_argument("--bf16", action="store_true", help="models compute in bfloat16: half the time, on most CPUs")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = RESULTS / f"fit_{options.task}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    stored |= {"task": options.task, "command": f"python benchmarks/fit.py {options.task}" + " --bf16" * options.bf16}
    runs, rates = stored["runs"], json.loads((RESULTS / f"baselines_{options.task}.json").read_text())["learning_rates"]

    def store() -> None:
        write_atomically(path, json.dumps(stored, indent=2) + "\n")

    precision = {"bf16": True, "use_cpu": not torch.cuda.is_available()} if options.bf16 else {}
    jobs = {
        f"{loss} {images} {seed}": (images, loss, seed, {"learning_rate": rates[loss]} | precision)
        for seed in range(options.seeds)
        for images in SIZES[options.task]
        for loss in LOSSES
    }
    with tempfile.TemporaryDirectory() as folder:
        if jobs.keys() - runs.keys():
            stored["environment"] = environment()
            stored["surrogates"] = learn_surrogates(options.task, "test", ["reloss", "unlearned"], folder)
        calls = {key: (options.task, *job, folder) for key, job in jobs.items()}
        left = make_runs(calls, run, runs, store, workers=options.workers)
        collections.deque(tqdm(left, total=len(calls.keys() - runs.keys()), desc=options.task), maxlen=0)
    stored["by_training_images"] = summary(runs, options.task, options.seeds)
    store()
    files = {name: RESULTS / f"fit_{name}.json" for name in SIZES}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    draw({name: each["by_training_images"] for name, each in results.items() if "by_training_images" in each})


if __name__ == "__main__":
    main()
