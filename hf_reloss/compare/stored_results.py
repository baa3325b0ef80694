"""What a comparison keeps in its folder: what its results depend on, the scores so far, and the surrogate it learned.

Everything there is replaced as a whole, so that what is found after a comparison was killed is complete.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets.fingerprint import Hasher
from filelock import FileLock, Timeout
from torch.utils.data import IterableDataset

from .. import __version__
from ..metrics import Metric
from .task import ComparedTask

SAMPLED_ROWS = 256
"""Of how many rows of a data set the content is part of the fingerprint, at most."""

WAY_OUT = "choose another --output, or delete the folder"

Fingerprint = dict[str, str | None]


class StoredResults:
    """The results of one comparison: those that its folder has already, and those that are added.

    Args:
        folder: of the comparison.
        fingerprint: of the comparison.

    Attributes:
        scores: loss to seed to score.
        failed: loss to the reason why its latest run failed.
        path: the file of all this.
        surrogate: the folder for the surrogate that is learned.

    Raises:
        ValueError: if the folder has results of another comparison, or such that do not say of which one they are.
    """

    def __init__(self, folder: Path, fingerprint: Fingerprint):
        self.path, self.surrogate = folder / "results.json", folder / "surrogate"
        stored = self._read()
        self.fingerprint = stored.get("fingerprint", fingerprint)
        if differing := differences(self.fingerprint, fingerprint):
            raise ValueError(f"{folder} has results of another comparison ({'; '.join(differing)}): {WAY_OUT}.")
        self.scores = {
            loss: {int(seed): score for seed, score in of_loss.items()}
            for loss, of_loss in stored.get("scores", {}).items()
        }
        self.failed: dict[str, str] = stored.get("failed", {})
        if not stored:
            self.save()  # before a surrogate is learned, so that it is known what a surrogate in the folder is for

    def save(self, **summary: Any) -> None:
        """Writes everything, with entries that sum it up."""
        stored = {"fingerprint": self.fingerprint, "scores": self.scores, "failed": self.failed, **summary}
        write_atomically(self.path, json.dumps(stored, indent=2) + "\n")

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            if self.surrogate.exists():
                raise ValueError(f"{self.surrogate} is there without {self.path.name}, which says what for: {WAY_OUT}.")
            return {}
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.path} is no JSON ({error}): {WAY_OUT}.") from error
        if "fingerprint" not in stored:
            raise ValueError(
                f"{self.path} is from an earlier version of hf_reloss, which did not record the task, data and "
                f"arguments that its results are of: {WAY_OUT}."
            )
        return stored


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A comparison's folder, made if need be, is this call's alone; the lock ends with the process, however it ends.

    Raises:
        ValueError: if another comparison is running in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"Another comparison is running in {folder}: wait until it has ended, or choose another --output."
        ) from None
    with held:
        yield


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file by one that is on the disk as a whole: at any time there is the former or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of another one when all is written."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def fingerprint(task: ComparedTask, metric: Metric) -> Fingerprint:
    """What the results of a comparison depend on, part by part: the same in every process.

    Returns:
        The name of each part to its content or a hash of that; None for what differs from one reading to the next.
    """
    return {
        "task": task.source or _described(task.model),
        **_of_data("train_dataset", task.train_dataset),
        **_of_data("eval_dataset", task.eval_dataset),
        **{f"arguments, {name}": _described(value) for name, value in task.arguments.items()},
        **{f"trainer_options, {name}": _described(value) for name, value in task.trainer_options.items()},
        "metric": metric.signature,
        "version of hf_reloss": __version__,
        "version of torch": str(torch.__version__),
        "version of transformers": transformers.__version__,
    }


def differences(stored: Fingerprint, present: Fingerprint) -> list[str]:
    """The parts of two fingerprints that differ, with both contents; what one of them does not know is none."""
    pairs = {part: (stored.get(part, "absent"), present.get(part, "absent")) for part in {**present, **stored}}
    return [
        f"{part}: {there} there, {here} here"
        for part, (there, here) in pairs.items()
        if there != here and None not in (there, here)
    ]


def _of_data(name: str, data: Any) -> Fingerprint:
    """A data set's length, and of evenly spaced rows a hash of each column."""
    length = len(data) if hasattr(data, "__len__") else 0
    parts: Fingerprint = {f"{name}, length": str(length or "unknown")}
    if length == 0 or isinstance(data, IterableDataset):
        return parts
    sample = min(length, SAMPLED_ROWS)
    rows = [place * length // sample for place in range(sample)]
    # Columns that are augmented at random differ between readings. A few rows may be alike by chance, so they are read
    # more often.
    readings = [_column_hashes(data, rows) for _ in range(1 + SAMPLED_ROWS // sample)]
    for column in dict.fromkeys(column for reading in readings for column in reading):
        found = {reading.get(column) for reading in readings}
        parts[f"{name}, column {column}"] = found.pop() if len(found) == 1 else None
    return parts


def _column_hashes(data: Any, rows: list[int]) -> dict[Any, str]:
    columns: dict[Any, list[bytes]] = {}
    for row in rows:
        content = data[row]
        if not isinstance(content, Mapping):
            content = dict(enumerate(content if isinstance(content, (tuple, list)) else [content]))
        for column, value in content.items():
            columns.setdefault(column, []).append(_content(value))
    return {column: Hasher.hash_bytes(contents) for column, contents in columns.items()}


def _content(value: Any) -> bytes:
    """What a cell of a data set holds. Hasher knows everything, but takes milliseconds for a tensor."""
    if torch.is_tensor(value):
        numbers = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()  # of any dtype, bfloat16 too
        return f"{value.dtype} {list(value.shape)} ".encode() + numbers.tobytes()
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return f"{value.dtype} {list(value.shape)} ".encode() + value.tobytes()
    with contextlib.suppress(TypeError, ValueError):
        return json.dumps(value).encode()
    try:
        return Hasher.hash(value).encode()
    except Exception:  # what cannot be pickled, either: that is no reason not to train
        return _described(value).encode()


def _described(value: Any) -> str:
    """A value in words that are the same in every process: plain ones in full, of any other one what kind it is."""
    if isinstance(value, (str, int, float, type(None), Enum, Path, torch.dtype)):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_described(value[key])}' for key in sorted(value, key=str))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_described, value))}]"
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return f"{type(value).__qualname__} {_described(fields)}"
    return type(value).__qualname__
