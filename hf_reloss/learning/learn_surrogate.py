"""Learning a surrogate quietly, within something else: a run, a comparison, a benchmark."""

import contextlib
import copy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch.distributed as dist
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from ..distributed import number_of_processes, undisturbed
from ..metrics import Metric
from ..progress import without_bars
from ..surrogates.base import Surrogate
from .time_limit import TimeLimit
from .trainer import MisalignedSurrogateError, SurrogateTrainer, SurrogateTrainingArguments


def learn_surrogate(
    surrogate: Surrogate,
    predictions: datasets.Dataset,
    metric: Metric,
    *,
    folder: Path | None = None,
    limit: TimeLimit | None = None,
    wants_alignment_at_start: bool = False,
    progress: bool = False,
    **settings: Any,
) -> Surrogate:
    """Learns a surrogate, in place, and leaves nothing else behind: random states, logs and folders are as before.

    Args:
        surrogate: at its start.
        predictions: recorded ones, all of them in each process.
        metric: what it is to rank by.
        folder: where a temporary folder is made; by default that of the system. All processes need to see the same.
        limit: on the time that it takes.
        wants_alignment_at_start: whether one is refused that ranks below `min_alignment` before it is learned.
        progress: whether a bar shows how far it is.
        settings: of `SurrogateTrainingArguments`.

    Returns:
        A copy of the surrogate as it was before it was learned, in place. Both have in their `config.record` what was
        measured of them on the same held-out groups.

    Raises:
        ValueError, MisalignedSurrogateError: if nothing can be learned.
    """
    quiet: dict[str, Any] = {"disable_tqdm": not progress, "report_to": "none", "log_level": "error"}
    bars = contextlib.nullcontext() if progress else without_bars()
    with _temporary_folder(folder) as checkpoints, undisturbed(), bars:
        learner = SurrogateTrainer(
            surrogate,
            SurrogateTrainingArguments(output_dir=str(checkpoints), **quiet | settings),
            train_dataset=predictions,
            metric=metric,
            callbacks=[] if limit is None else [limit],
        )
        for chatty in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
            learner.pop_callback(chatty)
        if progress:
            learner.add_callback(_LearningBar)
        at_start = copy.deepcopy(surrogate)
        began = 0.0 if limit is None else limit.watch.seconds()
        start = learner.evaluate()
        if limit is not None:  # two evaluations come in the end, and what is read
            limit.reserve(2.5 * (limit.watch.seconds() - began))
        alignment, least = start["eval_alignment_canonical"], learner.args.min_alignment
        if wants_alignment_at_start and not alignment >= least:
            raise MisalignedSurrogateError(
                f"Before learning, the surrogate's alignment with {metric.name} on held-out groups is "
                f"{alignment:.3f}, below {least}."
            )
        learner.train()
    alignments = {name.removeprefix("eval_"): value for name, value in start.items() if "alignment" in name}
    kept = ("models", "eval_groups", "train_groups", "group_size", "predictions", "seed")
    at_start.config.metric = surrogate.config.metric
    at_start.config.record = alignments | {name: surrogate.config.record[name] for name in kept} | {"steps": 0}
    return at_start


@contextlib.contextmanager
def _temporary_folder(parent: Path | None) -> Iterator[Path]:
    """A new folder, the same for all processes, that is taken away at the end."""
    is_first = number_of_processes() == 1 or dist.get_rank() == 0
    made = [""]
    if is_first:
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        made = [tempfile.mkdtemp(prefix="_surrogate-", dir=parent)]  # push_to_hub leaves _* out
    if number_of_processes() > 1:
        dist.broadcast_object_list(made)
    try:
        yield Path(made[0])
    finally:
        if is_first:
            shutil.rmtree(made[0], ignore_errors=True)


class _LearningBar(ProgressCallback):
    """How far the learning of a surrogate is, in a bar that goes away."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("surrogate")
            self.training_bar.leave = False

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        pass

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass
