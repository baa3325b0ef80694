"""Two ways to do the same, timed in turns."""

import statistics
import time
from collections.abc import Callable

import torch


def in_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    turns: int,
    device: str,
    calls: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of both, after a warm-up, and the median of theirs / ours.

    A turn is a number of calls in a row, as steps of a training follow each other. Of what runs in this process alone,
    `time.process_time` as a clock leaves out what else the machine does.
    """

    def milliseconds(function: Callable[[], object]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        for _ in range(calls):
            function()
        if device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (clock() - start) / calls

    milliseconds(ours), milliseconds(theirs)
    pairs = [(milliseconds(ours), milliseconds(theirs)) for _ in range(turns)]
    return {
        "ours_ms": statistics.median(a for a, _ in pairs),
        "theirs_ms": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
    }
