"""Runs on paired seeds that are stored as they are made, and not repeated where they are found: what programs share."""

import argparse
import collections
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from quality import RESULTS
from tqdm.auto import tqdm

from hf_reloss.compare.runs import environment, make_runs
from hf_reloss.compare.statistics import paired_difference
from hf_reloss.compare.stored_results import write_atomically

Scores = dict[str, dict[str, dict[int, float]]]
"""Pair of data and metric, way to train or decide, and seed, to what was measured."""


def arguments(description: str, pairs: Collection[str], output: str) -> argparse.ArgumentParser:
    """Which pairs and seeds, with how many workers, and where results are stored."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=pairs, default=list(pairs))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this less one")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time, of one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS / output)
    return parser


def stored_runs(
    program: str,
    jobs: dict[str, tuple[Any, ...]],
    run: Callable[..., dict[str, Any]],
    options: argparse.Namespace,
    summary: Callable[[dict[str, dict[str, Any]]], dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Makes the runs that are not stored yet.

    Args:
        program: the file of benchmarks/ that makes them.
        jobs: the arguments of each run, by its name.
        run: makes one.
        options: of the command line.
        summary: of all runs, what else is stored.

    Returns:
        What all runs have measured, by name.
    """
    stored = json.loads(options.output.read_text()) if options.output.exists() else {"runs": {}}
    done: dict[str, dict[str, Any]] = stored["runs"]

    def store() -> None:
        stored.update(summary(done), command=f"python benchmarks/{program}", environment=environment())
        write_atomically(options.output, json.dumps(stored, indent=2) + "\n")

    left = make_runs(jobs, run, done, store, workers=options.workers)
    collections.deque(tqdm(left, total=len(jobs.keys() - done.keys())), maxlen=0)
    return done


def compared(measures: dict[str, dict[str, dict[int, float]]], usual: Collection[str]) -> dict[str, Any]:
    """Of each measure the means, by way, and the paired differences to usual ways.

    Args:
        measures: measure, way and seed to what was measured.
        usual: the ways that others are compared with.
    """
    return {
        measure: {
            "means": {way: sum(of.values()) / len(of) for way, of in ways.items()},
            **{
                f"over {each}": {
                    way: paired_difference(of, ways[each])._asdict()
                    for way, of in ways.items()
                    if way != each and of.keys() & ways.get(each, {}).keys()
                }
                for each in usual
            },
        }
        for measure, ways in measures.items()
    }
