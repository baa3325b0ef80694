"""Ways to train for a metric, compared on one's own model and data: what `reloss compare` does."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from ..learning.learn_surrogate import learn_surrogate
from ..losses.hand_made import hand_made_losses
from ..metrics import Metric, load_metric
from ..predictions.dataset import part_of
from ..predictions.recorder import PredictionRecorder
from ..surrogates.auto import AutoSurrogate
from ..surrogates.base import Surrogate
from ..surrogates.classification import SurrogateForClassification
from ..training.adaptive_trainer import AdaptiveLossTrainer
from ..training.arguments import ReLossTrainingArguments
from ..training.strategies.given import refuse_unknown
from ..training.trainer import ReLossTrainer
from .pictures import plot_gains
from .runs import make_runs
from .statistics import comparison_table, paired_difference, verdict
from .stored_results import StoredResults, fingerprint, locked, replaced
from .task import ComparedTask

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
    not run again, so a comparison that was stopped goes on, and more losses or seeds can be added. A loss that fails is
    shown and stored with the reason, while the others go on, and is tried again by the next call.

    Args:
        task: model and data.
        losses: `cross_entropy` (or `ce`, always run), `reloss` (a surrogate that is learned from a run with a seed of
            its own), `auto` (without its guard and a tuned decision), `approximation`, `ala` (which takes a tenth of
            the training data for validation), names of hand-made losses, folders or Hub ids of surrogates.
        metric: what `load_metric` takes, of logits and labels.
        seeds: how many runs of each loss, with the seeds 0, 1, ...
        output: a folder; made if need be.
        console: where table and progress are shown.

    Returns:
        Loss to seed to score on `eval_dataset`, of the losses that did not fail.

    Raises:
        ValueError: for an unknown loss; if the folder has results of another task, data, arguments, metric or versions,
            or another comparison is running in it.
        Exception: whatever cross-entropy fails with, since there is nothing to compare with then.
    """
    metric, console = load_metric(metric), console or Console()
    losses = list(dict.fromkeys([BASELINE, *(BASELINE if loss == "ce" else loss for loss in losses)]))
    for loss in losses:
        _refuse_unknown(loss)
    with locked(output):
        results = StoredResults(output, fingerprint(task, metric))
        _run_missing(task, losses, metric, seeds, results, console)
        scores = {loss: results.scores[loss] for loss in losses if loss not in results.failed}
        gains = {loss: paired_difference(scores[loss], scores[BASELINE]) for loss in scores if loss != BASELINE}
        sentence = verdict(scores, BASELINE, higher_is_better=metric.higher_is_better)
        results.save(
            over_cross_entropy={loss: difference._asdict() for loss, difference in gains.items()}, verdict=sentence
        )
        console.print(f"\n{sentence}", soft_wrap=True)
        if gains and seeds > 1:
            plot_gains(output / "comparison.png", scores, BASELINE, metric=metric.name)
            console.print(f"Picture: {output / 'comparison.png'}   Numbers: {results.path}")
    return scores


def _refuse_unknown(loss: str) -> None:
    """Raises a ValueError for a mistyped name or path, so that nothing is trained, and the Hub not asked, before."""
    refuse_unknown(loss, [BASELINE, *LEARNED, *hand_made_losses()])
    if "/" not in loss or Path(loss).is_dir():
        return
    try:
        validate_repo_id(loss)
    except HFValidationError:
        raise ValueError(f"There is no folder {loss}, from which a surrogate could be loaded.") from None


def _run_missing(
    task: ComparedTask, losses: list[str], metric: Metric, seeds: int, results: StoredResults, console: Console
) -> None:
    """Runs what has no score yet, seed by seed, and shows the table meanwhile; after a failure the loss is left out."""
    results.failed = {loss: reason for loss, reason in results.failed.items() if loss not in losses}
    jobs = {(loss, seed): (loss, seed) for seed in range(seeds) for loss in losses}
    done = {(loss, seed): score for loss, scores in results.scores.items() for seed, score in scores.items()}
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )

    def shown() -> Group:
        table = _table(results, losses, metric)
        return Group(bar) if table is None else Group(table, bar)

    def run(loss: str, seed: int) -> float:
        if loss == "reloss" and not _is_whole(results.surrogate):
            bar.update(progress, description="learning a surrogate")
            _learn(task, metric, results.surrogate)
        bar.update(progress, description=f"{loss}, seed {seed}")
        return _score(task, str(results.surrogate) if loss == "reloss" else loss, metric, seed)

    def failed(key: tuple[str, int], error: Exception) -> None:
        if key[0] == BASELINE:
            raise error
        results.failed[key[0]] = f"{type(error).__name__}: {error}"

    def store() -> None:
        for (loss, seed), score in done.items():
            results.scores.setdefault(loss, {})[seed] = score
        results.save()

    with Live(console=console, get_renderable=shown, refresh_per_second=4):
        progress = bar.add_task("training", total=len(jobs.keys() - done.keys()))
        for _ in make_runs(jobs, run, done, store, on_error=failed, is_wanted=lambda key: key[0] not in results.failed):
            bar.update(progress, advance=1, description="training")


def _table(results: StoredResults, losses: list[str], metric: Metric) -> Table | None:
    """What is known so far; None before there is anything to compare with."""
    failed = {loss: results.failed[loss] for loss in losses if loss in results.failed}
    ran = {loss: results.scores[loss] for loss in losses if results.scores.get(loss) and loss not in failed}
    if BASELINE not in ran:
        return None
    return comparison_table(ran, BASELINE, title="paired seeds", metric=metric.name, failed=failed, digits=4)


def _score(task: ComparedTask, loss: str, metric: Metric, seed: int) -> float:
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
    surrogate: str | Surrogate
    if loss in hand_made_losses():
        surrogate, of_groups = loss, hand_made_losses()[loss].is_of_groups()
    else:
        surrogate = AutoSurrogate.from_pretrained(loss)
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
            # Losses are compared here, and nothing is chosen on what is reported.
            options, quiet["tune_decision"] = {"guard": False} | options, False
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


def _is_whole(folder: Path) -> bool:
    """Whether a surrogate can be loaded from there: one of which files are missing or damaged is learned again."""
    if not folder.is_dir():
        return False
    try:
        AutoSurrogate.from_pretrained(folder)
    except (OSError, ValueError):
        return False
    return True


def _learn(task: ComparedTask, metric: Metric, folder: Path) -> None:
    """Learns a surrogate from the predictions of a run on what it is at its start, and saves it."""
    set_seed(RECORDING_SEED)  # whatever ran before: a comparison that goes on should learn the same one
    surrogate, recorder = SurrogateForClassification.for_metric(metric), PredictionRecorder()
    _train(task, RECORDING_SEED, ReLossTrainer, surrogate=surrogate, callbacks=[recorder])
    learn_surrogate(surrogate, recorder.dataset(), metric)
    with replaced(folder) as partial:
        surrogate.save_pretrained(partial, repo_id=str(folder))  # its page is to name the place where it ends up
