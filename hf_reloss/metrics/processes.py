"""Groups that have to be scored one by one: with a bar that says how long it takes, in processes where that is long."""

import functools
import multiprocessing
import os
import pickle
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

logger = logging.get_logger(__name__)

TIMED = 3
"""How many groups are scored first, to see how long one takes."""

WORTH = 60.0
"""How many seconds have to be left for processes to be started: each has to import what it needs."""

MOST_PROCESSES = 8
MOST_BYTES = 2**28
"""The most that is handed to a process."""

SHOWN = 64
"""With fewer groups there is no bar."""

Score = Callable[[np.ndarray], float]
"""The score of a group, by the rows that it is made of."""


def scores_of_groups(score: Score, groups: np.ndarray, name: str) -> list[float]:
    """Scores of m groups.

    The first ones are scored here, and timed. If the others take more than a minute, processes are started for them,
    one for each core: where `score` can be pickled, which a function that is defined within another cannot, and where
    the program that runs keeps what it does under `if __name__ == "__main__":`, for each process imports it. What a
    function remembers, it then remembers in its process. If anything fails there, it goes on here.

    Args:
        score: scores a group.
        groups: [m, N], the rows of each.
        name: of the metric, for the bar.
    """
    found: list[float] = []
    hidden = len(groups) < SHOWN or not logging.is_progress_bar_enabled()
    with tqdm(total=len(groups), desc=f"scoring {name}", leave=False, unit="group", disable=hidden) as bar:
        seconds = []
        for rows in groups[:TIMED]:
            start = time.perf_counter()
            found.append(score(rows))
            seconds.append(time.perf_counter() - start)
            bar.update()
        left = groups[len(found) :]
        if len(left) and statistics.median(seconds) * len(left) > WORTH:
            for scores in _in_processes(score, left, name):
                found += scores
                bar.update(len(scores))
        for rows in groups[len(found) :]:
            found.append(score(rows))
            bar.update()
    return found


def _in_processes(score: Score, groups: np.ndarray, name: str) -> Iterator[list[float]]:
    """Scores of parts of the groups, in order; none, or not all, where processes cannot do it."""
    number = _number_of_processes()
    handed = _pickled(score) if number > 1 and _can_import_program() else None
    if handed is None:
        return
    parts = np.array_split(groups, min(len(groups), 16 * number))
    try:
        with ProcessPoolExecutor(
            number, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(handed,)
        ) as pool:
            yield from pool.map(_score, parts)
    except Exception as error:  # of somebody's own function, or of a process that died
        logger.warning(
            f"{name} is scored in one process: in several it failed ({type(error).__name__}: {error}), which is so "
            "where a function needs what only the program that runs has made."
        )


def _number_of_processes() -> int:
    """How many are started: one for each core that this process may use, if it is no such process itself."""
    if multiprocessing.parent_process() is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_PROCESSES, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _can_import_program() -> bool:
    """Whether the program that runs does nothing when it is imported, as each process does; a notebook is not."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None:
        return True
    try:
        return re.search(r"""__name__\s*==\s*["']__main__["']""", Path(file).read_text()) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _pickled(score: Score) -> bytes | None:
    """What a process gets; None where that is too much, or cannot be had."""
    try:
        handed = pickle.dumps(score)
    except Exception:  # whatever an object raises that was not made for it
        return None
    return handed if len(handed) <= MOST_BYTES else None


_handed = b""


def _begin(handed: bytes) -> None:
    """In a process: keeps what it got. The device is the run's, and so are all other cores."""
    global _handed
    _handed = handed
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)


@functools.cache
def _loaded() -> Score:
    score: Score = pickle.loads(_handed)
    return score


def _score(groups: np.ndarray) -> list[float]:
    """In a process: scores of some groups."""
    return [_loaded()(rows) for rows in groups]
