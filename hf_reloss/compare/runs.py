"""Paired runs: those that are missing are made, one after the other or side by side, and stored as they end."""

import functools
import multiprocessing
import platform
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from typing import TypeVar

import torch

from .. import __version__

Key = TypeVar("Key")
Measured = TypeVar("Measured")

PACKAGES = ("torch", "transformers", "accelerate", "datasets")
"""Those on whose versions the outcome of a run depends."""


def make_runs(
    jobs: Mapping[Key, tuple[object, ...]],
    run: Callable[..., Measured],
    done: MutableMapping[Key, Measured],
    store: Callable[[], None],
    *,
    workers: int = 0,
    on_error: Callable[[Key, Exception], None] | None = None,
    is_wanted: Callable[[Key], bool] | None = None,
) -> Iterator[Key]:
    """Makes the runs that are not done yet, and yields the key of each when it has ended and is stored, or passed over.

    Args:
        jobs: key to the arguments of each run, in their order.
        run: makes one, and returns what was measured. With `workers` it can be pickled.
        done: what is measured comes in here; what is there already is not run again.
        store: writes `done`, after each run.
        workers: processes side by side, each fresh for all that it makes; 0 for this one, one run after the other.
        on_error: called with one that has failed, after which the others go on; by default, it ends them all.
        is_wanted: asked before a run begins, without `workers`; what is not wanted any more is passed over.

    Raises:
        Exception: that of a run, without `on_error`, or that `on_error` raises.
    """
    missing = {key: arguments for key, arguments in jobs.items() if key not in done}

    def ended(key: Key, result: Callable[[], Measured]) -> Key:
        try:
            measured = result()
        except Exception as error:
            if on_error is None:
                raise
            on_error(key, error)
        else:
            done[key] = measured
        store()
        return key

    if not workers:
        for key, arguments in missing.items():
            if is_wanted is None or is_wanted(key):
                ended(key, functools.partial(run, *arguments))
            yield key
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run, *arguments): key for key, arguments in missing.items()}
        try:
            for finished in as_completed(waiting):
                yield ended(waiting[finished], finished.result)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error all others would run to their end first


def environment() -> dict[str, str]:
    """On what runs are made: Python, the machine, its GPU, and the versions of packages."""
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine | {"hf-reloss": __version__} | {package: version(package) for package in PACKAGES}
