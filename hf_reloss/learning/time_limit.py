"""How long a surrogate may be learned within a run, and how many groups that is worth."""

import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SHARE, LEAST_SECONDS = 0.05, 10.0
"""Learning and judging take this share of the run or this many seconds together, whichever is more."""

JUDGING = 0.25
"""The part of that for judging what was learned, which are two evaluations on some of the development data."""

MOST_ELEMENTS = 2**27
"""Numbers in the evidence of all held-out groups together, at most: those of heatmaps are large."""

FEWEST_GROUPS = 64
"""Held-out groups that alignment is measured on, at least."""

HELD_OUT = 4
"""One group is held out for this many to learn from, as `SurrogateTrainingArguments` has it."""


class Stopwatch:
    """Seconds since it was made, without those in which other programs had the processor.

    So a busy machine learns what a quiet one does.
    """

    def __init__(self) -> None:
        self.wall, self.process = time.monotonic(), time.process_time()

    def seconds(self) -> float:
        return min(time.monotonic() - self.wall, time.process_time() - self.process)


class RunClock:
    """How long a run takes, from what it has taken so far.

    Args:
        step: of the run, at which the clock starts.

    Attributes:
        spent: seconds that were spent on learning the next surrogate already.
        per_step: seconds that a step has taken, when it was asked last how long may be learned.
    """

    def __init__(self, step: int):
        self.began, self.step, self.spent, self.per_step = time.monotonic(), step, 0.0, 0.0

    def seconds_to_learn(self, step: int, max_steps: int) -> float:
        """How long a surrogate may be learned at a step of a run."""
        self.per_step = (time.monotonic() - self.began) / max(1, step - self.step)
        return (1 - JUDGING) * self._seconds(max_steps) - self.spent

    def affordable_examples(self, examples_per_step: int, max_steps: int) -> int:
        """How many examples the model may be judged on twice, for which it does a third of what training on them takes.

        Args:
            examples_per_step: that a step of training has.
            max_steps: of the run.
        """
        per_example = self.per_step / examples_per_step / 3
        return int(JUDGING * self._seconds(max_steps) / 2 / max(per_example, 1e-9))

    def _seconds(self, max_steps: int) -> float:
        return max(LEAST_SECONDS, SHARE * self.per_step * max_steps)


class TimeLimit(TrainerCallback):
    """Ends a training when its time is up, in all processes at the same step.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float):
        self.seconds, self.watch = seconds, Stopwatch()
        self.training = seconds

    def reserve(self, seconds: float) -> None:
        """Keeps some of the time for what comes after the training."""
        self.training = self.seconds - seconds

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_over = torch.tensor([self.watch.seconds() > self.training], dtype=torch.uint8, device=args.device)
        if broadcast(is_over).item():  # the first process decides
            control.should_training_stop = True


def affordable_groups(
    most: int, group_size: int, predictions: int, elements: int, score: Callable[[], object] | None, seconds: float
) -> int:
    """How many held-out groups learning can afford: `most`, or a half, a quarter and so on of it.

    Args:
        most: the usual number.
        group_size: predictions in a group.
        predictions: that there are to learn from; as many groups hold each of them often enough.
        elements: numbers in the evidence of one prediction.
        score: scores one group, if groups are scored one by one.
        seconds: that scoring may take.
    """
    groups = most
    while groups > FEWEST_GROUPS and (groups > predictions or groups * group_size * elements > MOST_ELEMENTS):
        groups //= 2
    if score is not None:
        score()  # a first call may load what others find
        watch = Stopwatch()
        score()
        each = watch.seconds()
        while groups > FEWEST_GROUPS // 2 and groups * (1 + HELD_OUT) * each > seconds:
            groups //= 2
    return groups
