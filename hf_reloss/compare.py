"""Ways to train for a metric, raced on one's own model and data: what `reloss compare` does."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from .adaptation import part_of
from .adaptive import AdaptiveLossTrainer
from .arguments import ReLossTrainingArguments
from .compared_task import ComparedTask
from .comparison import comparison_table, paired_difference, verdict
from .losses import hand_made_losses
from .metrics import Metric, load_metric
from .plots import plot_gains
from .recording import PredictionRecorder
from .reloss_trainer import ReLossTrainer
from .surrogate_trainer import SurrogateTrainer, SurrogateTrainingArguments
from .surrogates.auto import AutoSurrogate
from .surrogates.base import Surrogate
from .surrogates.classification import SurrogateForClassification

BASELINE = "cross_entropy"
RECORDING_SEED = 1_000
LEARNED = ("reloss", "auto", "approximation", "ala")


def compare(
    task: ComparedTask,
    losses: Sequence[str],
    metric: Metric | Any,
    *,
    seeds: int,
    output: Path,
    console: Console | None = None,
) -> dict[str, dict[int, float]]:
    """Trains on each loss with the same seeds, and writes results.json, a picture and what the evidence supports.

    Runs of a seed share the initial weights and the order of the data. What is found in the output's results.json is
    not run again, so a comparison that was stopped goes on, and more losses or seeds can be added.

    Args:
        task: model and data.
        losses: `cross_entropy` (or `ce`, always run), `reloss` (a surrogate that is learned from a run with a seed of
            its own), `auto`, `approximation`, `ala` (which takes a tenth of the training data for validation), names of
            hand-made losses, folders or Hub ids of surrogates.
        metric: what `load_metric` takes, of logits and labels.
        seeds: so many, from 0 on.
        output: a folder; made if need be.
        console: where table and progress are shown.

    Returns:
        Loss to seed to score on `eval_dataset`.

    Raises:
        ValueError: for an unknown loss, or results of another metric in the folder.
    """
    metric, console = load_metric(metric), console or Console()
    losses = list(dict.fromkeys([BASELINE, *(BASELINE if loss == "ce" else loss for loss in losses)]))
    for loss in losses:
        if loss not in LEARNED and loss not in hand_made_losses():
            AutoSurrogate.from_pretrained(loss)  # what is not there should fail now
    output.mkdir(parents=True, exist_ok=True)
    path = output / "results.json"
    stored = json.loads(path.read_text()) if path.exists() else {"metric": metric.signature, "scores": {}}
    if stored.get("metric") != metric.signature:
        raise ValueError(
            f"{path} holds results of {stored.get('metric')}, not of {metric.signature}: choose another folder."
        )
    scores = {loss: {int(seed): value for seed, value in of_loss.items()} for loss, of_loss in stored["scores"].items()}
    jobs = [(loss, seed) for seed in range(seeds) for loss in losses if seed not in scores.get(loss, {})]
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )

    def shown() -> Group:
        ran = {loss: scores[loss] for loss in losses if scores.get(loss)}
        if BASELINE not in ran:
            return Group(bar)
        return Group(_table(ran, metric), bar)

    with Live(console=console, get_renderable=shown, refresh_per_second=4):
        progress = bar.add_task("training", total=len(jobs))
        learned: Surrogate | None = None
        for loss, seed in jobs:
            if loss == "reloss" and learned is None:
                bar.update(progress, description="learning a surrogate")
                learned = _learned(task, metric, output)
            bar.update(progress, description=f"{loss}, seed {seed}")
            scores.setdefault(loss, {})[seed] = _score(task, loss, metric, seed, learned)
            stored["scores"] = scores
            path.write_text(json.dumps(stored, indent=2) + "\n")
            bar.update(progress, advance=1, description="training")
    ran = {loss: scores[loss] for loss in losses}
    stored["over_cross_entropy"] = {
        loss: paired_difference(ran[loss], ran[BASELINE])._asdict() for loss in losses if loss != BASELINE
    }
    stored["verdict"] = verdict(ran, BASELINE, higher_is_better=metric.higher_is_better)
    path.write_text(json.dumps(stored, indent=2) + "\n")
    console.print(f"\n{stored['verdict']}", soft_wrap=True)
    if len(losses) > 1 and seeds > 1:
        plot_gains(output / "comparison.png", ran, BASELINE, metric=metric.name)
        console.print(f"Picture: {output / 'comparison.png'}   Numbers: {path}")
    return ran


def _table(scores: dict[str, dict[int, float]], metric: Metric):
    return comparison_table(scores, BASELINE, title="paired seeds", metric=metric.name, digits=4)


def _score(task: ComparedTask, loss: str, metric: Metric, seed: int, learned: Surrogate | None) -> float:
    """The metric on the evaluation data after a run."""
    if loss == BASELINE:
        return _measured(_train(task, seed), task, metric)
    if loss in ("auto", "approximation"):
        return _measured(_train(task, seed, ReLossTrainer, surrogate=loss, metric=metric), task, metric)
    if loss == "ala":
        order = torch.randperm(len(task.train_dataset), generator=torch.Generator().manual_seed(0)).tolist()
        tenth = max(1, len(order) // 10)
        parts = [part_of(task.train_dataset, rows) for rows in (sorted(order[tenth:]), sorted(order[:tenth]))]
        rest = ComparedTask(task.model, parts[0], task.eval_dataset, task.arguments, task.trainer_options)
        trainer = _train(rest, seed, AdaptiveLossTrainer, metric=metric, validation_dataset=parts[1])
        return _measured(trainer, task, metric)
    if loss in hand_made_losses():
        surrogate, of_groups = loss, hand_made_losses()[loss].is_of_groups()
    else:
        surrogate = learned if loss == "reloss" else AutoSurrogate.from_pretrained(loss)
        of_groups = surrogate.network.is_of_groups()
    warmup = 0.1 if of_groups else 0.0  # as "auto" has it: a group's loss is flat where everything is wrong
    return _measured(_train(task, seed, ReLossTrainer, surrogate=surrogate, warmup=warmup), task, metric)


def _train(
    task: ComparedTask, seed: int, kind: type[Trainer] = Trainer, warmup: float | None = None, **options: Any
) -> Trainer:
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "report_to": "none"}
        arguments = TrainingArguments
        if issubclass(kind, ReLossTrainer):
            arguments, quiet["surrogate_warmup"] = ReLossTrainingArguments, warmup
        usual = {"dataloader_pin_memory": torch.cuda.is_available()}
        args = arguments(folder, **usual | task.arguments | quiet | {"seed": seed})
        set_seed(seed)
        trainer = kind(
            model=task.model(), args=args, train_dataset=task.train_dataset, eval_dataset=task.eval_dataset,
            **task.trainer_options, **options,
        )  # fmt: skip
        trainer.pop_callback(PrinterCallback)
        trainer.train()
    return trainer


def _measured(trainer: Trainer, task: ComparedTask, metric: Metric) -> float:
    found = trainer.predict(task.eval_dataset)
    logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
    return metric.compute(logits, found.label_ids)


def _learned(task: ComparedTask, metric: Metric, output: Path) -> Surrogate:
    """A surrogate, from the predictions of a run on what it is at its start; saved, and found again."""
    folder = output / "surrogate"
    if (folder / "config.json").exists():
        return AutoSurrogate.from_pretrained(folder)
    surrogate, recorder = SurrogateForClassification.for_metric(metric), PredictionRecorder()
    _train(task, RECORDING_SEED, ReLossTrainer, surrogate=surrogate, callbacks=[recorder])
    with tempfile.TemporaryDirectory() as checkpoints:
        args = SurrogateTrainingArguments(checkpoints, disable_tqdm=True, logging_strategy="no", report_to="none")
        trainer = SurrogateTrainer(surrogate, args, train_dataset=recorder.dataset(), metric=metric)
        trainer.pop_callback(PrinterCallback)
        trainer.train()
    surrogate.save_pretrained(folder)
    return surrogate
