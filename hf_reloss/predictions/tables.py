"""Predictions in a file: arrays of NumPy, or a table with columns of scores and a label."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import torch

from ..metrics.base import IGNORED_LABEL
from ..metrics.probabilities import are_probabilities

ENDINGS = (".csv", ".tsv", ".parquet")
"""Of the names of files that `read_table` reads."""

LABELS = ("label", "target", "truth", "reference")
"""How the names of columns begin that are taken for labels."""

SCORES = ("logit", "score", "prob")
"""What the names of columns hold that are taken for scores."""

WORD = re.compile(r"[^_\-:. ]*[_\-:. ]+(?=.)")
"""At the beginning of a column's name, with more behind it."""

LEAST = 1e-12
"""The smallest probability of which a logarithm is taken."""

SHOWN = 5
"""How many names an error shows."""


class ScoredLabels(NamedTuple):
    """Predictions of a classifier, or of a model of one number.

    Attributes:
        logits: [n, C] float64.
        labels: [n] int64, or several for each example, [n, C], 0 or 1; where C is 1, [n] float64. -100 does not count.
        names: of the C classes.
        of_probabilities: whether probabilities were given, of which the logits are made.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]
    of_probabilities: bool


def read_table(path: str | Path) -> dict[str, np.ndarray]:
    """The columns [n] of a .csv, .tsv or .parquet file, by name.

    Raises:
        ValueError: for another file, or one that cannot be read.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS or not Path(path).is_file():
        raise ValueError(f"{path} is no .csv, .tsv or .parquet file with a row for each example.")
    try:
        if ending == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            parsing = pyarrow.csv.ParseOptions(delimiter="," if ending == ".csv" else "\t")
            nulls = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
            table = pyarrow.csv.read_csv(path, parse_options=parsing, convert_options=nulls)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    columns: dict[str, np.ndarray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        columns |= _arrays(name, column.combine_chunks())
    return columns


def _arrays(name: str, column: pyarrow.Array) -> dict[str, np.ndarray]:
    """A column as arrays; one of lists, such as logits that were recorded, is as many columns."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type)):
        return {name: column.to_numpy(zero_copy_only=False)}
    rows = column.to_pylist()
    if not rows or len({len(row or ()) for row in rows}) > 1:
        raise ValueError(f"The column {name!r} has lists of different lengths, but wants a score for each class.")
    return {f"{name}_{place}": values for place, values in enumerate(np.array(rows).T)}


def columns_of(table: Mapping[str, np.ndarray]) -> tuple[list[str], list[str]]:
    """Which columns of a table are probably scores, and which labels.

    Scores are those with `logit`, `score` or `prob` in their names; without any, all other columns of floats or, else,
    of integers. Labels are those with names that begin with `label`, `target`, `truth` or `reference`; or else the last
    column.
    """
    named = [name for name in table if any(word in name.lower() for word in SCORES)]
    others = [name for name in table if name not in named]
    labels = [name for name in others if name.lower().startswith(LABELS)] or others[-1:]
    rest = {name: table[name].dtype.kind for name in others if name not in labels}
    floats = [name for name, kind in rest.items() if kind == "f"]
    return named or floats or [name for name, kind in rest.items() if kind in "iu"], labels


def scored_labels(
    table: Mapping[str, np.ndarray], scores: Sequence[str] | None = None, labels: Sequence[str] | None = None
) -> ScoredLabels:
    """Predictions from columns of a table.

    Args:
        table: columns [n] by name.
        scores: the columns of scores: logits or probabilities of the classes in the order of their numbers; one of a
            model that puts out a number. By default as `columns_of` finds them.
        labels: the column of labels: numbers of classes from 0 on, or names of classes, which are those of the columns
            of scores (without what these begin with alike, as in `score_cat`, `score_dog`). Of several labels for each
            example as many columns as there are scores, 0 or 1. A missing label does not count.

    Raises:
        ValueError: for columns that there are not, scores that are no numbers or missing, or labels that do not fit.
    """
    usual = columns_of(table)
    scores, labels = list(usual[0] if scores is None else scores), list(usual[1] if labels is None else labels)
    absent = [name for name in (*scores, *labels) if name not in table]
    if absent or not scores or not labels:
        what = f"has no column {absent[0]!r}" if absent else f"has no column of {'labels' if scores else 'scores'}"
        raise ValueError(
            f"The table {what}: it wants columns of scores (logits or probabilities, one for each class) and one "
            f"called label, but there are {_some(table)}."
        )
    wrong = [name for name in scores if table[name].dtype.kind not in "fiu"]
    if wrong:
        raise ValueError(f"Scores are numbers, but not in the column {wrong[0]!r}: choose other columns of scores.")
    values = torch.from_numpy(np.stack([table[name].astype(np.float64) for name in scores], axis=1))
    missing = int(values.isnan().any(1).sum())
    if missing:
        raise ValueError(f"{missing} of {len(values)} rows lack a score: leave these rows out.")
    names = _without_common_start(scores)
    return logits_of(values, _labels(table, labels, scores, names), names)


def logits_of(scores: torch.Tensor, labels: torch.Tensor, names: Sequence[str] | None = None) -> ScoredLabels:
    """Predictions, from scores that are logits or probabilities; of these, logits are made.

    They are probabilities where all are 0 or more and those of an example add up to 1; of several labels, where all
    are between 0 and 1.

    Args:
        scores: [n, C] float; of one number for each example, [n, 1] or [n].
        labels: as of `ScoredLabels`.
        names: of the classes, by default their numbers.
    """
    scores = scores[:, None] if scores.dim() == 1 else scores
    several = labels.dim() == 2
    if scores.shape[-1] == 1 and not several:
        return ScoredLabels(scores, labels.double(), tuple(names or ("0",)), False)
    likely = bool(((scores >= 0) & (scores <= 1)).all()) if several else are_probabilities(scores)
    if likely:
        scores = scores.double().clamp(LEAST, 1 - LEAST if several else None)
        scores = scores.logit() if several else scores.log()
    return ScoredLabels(scores, labels, tuple(names or map(str, range(scores.shape[-1]))), likely)


def _labels(
    table: Mapping[str, np.ndarray], columns: Sequence[str], scores: Sequence[str], names: Sequence[str]
) -> torch.Tensor:
    if len(columns) > 1:
        if len(columns) != len(scores):
            raise ValueError(
                f"Of several labels for each example there is a column of labels, 0 or 1, for each column of scores, "
                f"but there are {len(columns)} of labels and {len(scores)} of scores."
            )
        rows = [_numbers(table[name], name) for name in _in_order(columns, names)]
        return torch.from_numpy(np.stack(rows, axis=1)).long()
    (column,) = columns
    values = table[column]
    if len(scores) == 1:
        return torch.from_numpy(_numbers(values, column))
    of_classes = {name: place for place, name in enumerate(names)} | {name: place for place, name in enumerate(scores)}
    given = [None if value is None or value != value else _spelled(value) for value in values.tolist()]
    if {*given} - {None} <= of_classes.keys():
        places = [IGNORED_LABEL if value is None else of_classes[value] for value in given]
        return torch.tensor(places)
    if values.dtype.kind not in "fiub":
        unknown = sorted(value for value in {*given} - of_classes.keys() if value is not None)
        raise ValueError(
            f"The labels {_some(unknown)} are no names of columns of scores ({_some(names)}): name these columns as "
            "the labels are, or number labels from 0 on in the order of the columns."
        )
    return torch.from_numpy(_numbers(values, column)).long()


def _numbers(values: np.ndarray, name: str) -> np.ndarray:
    """Labels as float64, -100 where one is missing."""
    if values.dtype.kind not in "fiub":
        raise ValueError(f"Labels are numbers here, but not in the column {name!r}: choose another column of labels.")
    return np.nan_to_num(values.astype(np.float64), nan=float(IGNORED_LABEL))


def _spelled(value: object) -> str:
    """A label as a column would be called; a column of whole numbers some of which are missing is one of floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _in_order(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Columns of labels in the order of those of scores, where they are called alike."""
    by_name = dict(zip(_without_common_start(columns), columns, strict=True))
    return [by_name[name] for name in names] if by_name.keys() == {*names} else list(columns)


def _without_common_start(names: Sequence[str]) -> tuple[str, ...]:
    """Names without the words that all begin with, as `score_cat` and `score_dog` do."""
    found = [WORD.match(name) for name in names]
    while len(names) > 1 and all(found) and len({match[0] for match in found if match}) == 1:
        names = [name[match.end() :] for name, match in zip(names, found, strict=True) if match]
        found = [WORD.match(name) for name in names]
    return tuple(names)


def _some(names: Iterable[object]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:SHOWN]) + (" ..." if len(shown) > SHOWN else "")
