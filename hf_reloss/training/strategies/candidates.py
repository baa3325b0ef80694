"""What training on a model's own texts compares: candidates for each example, drawn from the model, and how likely they
are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ...metrics.base import IGNORED_LABEL
from ..batch import Batch


class RandomNumbers:
    """Random numbers for a micro-batch: each example has its own, those of a seed, of the step and of its place among
    the examples of the step. They are the same however the step is divided into micro-batches and processes, and no
    other random numbers are touched.

    Args:
        seed: of the run.
        step: of the run.
        first: the place in the step of the first example of the micro-batch.
    """

    def __init__(self, seed: int, step: int, first: int):
        self.seed, self.step, self.first = seed, step, first
        self._generators: list[np.random.Generator] = []

    def next(self, examples: int, *shape: int) -> torch.Tensor:
        """The next ones: [examples, *shape] float32, from 0 to below 1."""
        for row in range(len(self._generators), examples):
            self._generators.append(np.random.default_rng([self.seed, self.step, self.first + row]))
        found = [generator.random(shape, dtype=np.float32) for generator in self._generators[:examples]]
        return torch.from_numpy(np.stack(found)) if found else torch.zeros(0, *shape)


class Wanted(NamedTuple):
    """Which candidates are wanted of a micro-batch.

    Attributes:
        number: how many are drawn for each example.
        with_reference: whether the reference is one more, the first.
        temperature: that the model's logits are divided by in drawing.
        is_tempered: whether log p is of what was drawn from, and not of the model as it is.
        random: the random numbers.
    """

    number: int
    with_reference: bool
    temperature: float
    is_tempered: bool
    random: RandomNumbers


class Candidates(NamedTuple):
    """Candidates for the N examples of a batch: those M of N·K that differ from the others of their example.

    Attributes:
        ids: [M, T] int64 tokens, -100 after the end.
        examples: [M] int64, of which example each is.
        places: [N, K] int64, which of the M each of the K of an example is; equal ones are the same.
        distinct: [N, K] bool, which of the K differ from those before them; M are True.
        log_probabilities: [M] float32, log p(y|x), with gradients; -inf for what the model cannot put out.
        references: [N, L] int64 tokens, -100 after the end.
        outputs: of the model.
    """

    ids: torch.Tensor
    examples: torch.Tensor
    places: torch.Tensor
    distinct: torch.Tensor
    log_probabilities: torch.Tensor
    references: torch.Tensor
    outputs: Any


class CandidateSource(ABC):
    """Where the candidates come from.

    Args:
        trainer: that trains on them.
        word: what `surrogate=` is, for errors.

    Raises:
        ValueError: for a model from which none can be drawn.
    """

    calls_model: ClassVar[bool]
    """Whether `candidates` calls the model itself; if not, it is given the outputs of the batch."""
    decoding: ClassVar[Mapping[str, Any]] = {}
    """Options of the tokenizer to decode tokens with."""

    def __init__(self, trainer: Any, word: str):
        self.trainer, self.word = trainer, word

    @abstractmethod
    def candidates(self, batch: Batch, outputs: Any, wanted: Wanted) -> Candidates:
        """Candidates for a micro-batch.

        Args:
            batch: the micro-batch.
            outputs: of the model; None where it is to be called.
            wanted: which.
        """


class Different(NamedTuple):
    """Of candidates [N, K, T] those M that differ from the ones before them of their example, as `Candidates` has them:
    ids [M, T], examples [M], places [N, K] and distinct [N, K]."""

    ids: torch.Tensor
    examples: torch.Tensor
    places: torch.Tensor
    distinct: torch.Tensor


def different(candidates: torch.Tensor) -> Different:
    """Those of candidates [N, K, T] that differ."""
    equal = (candidates[:, :, None] == candidates[:, None]).all(-1)
    distinct = ~equal.tril(-1).any(-1)
    order = distinct.flatten().long().cumsum(0).view(distinct.shape) - 1
    places = order.gather(1, equal.long().argmax(-1))  # of the first that is equal
    return Different(candidates[distinct], distinct.nonzero()[:, 0], places, distinct)


def with_references(references: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """References [N, L], as the first candidates, before those drawn, [N, K, T]: [N, 1 + K, max(L, T)]."""
    length = max(drawn.shape[-1], references.shape[-1])
    return torch.cat([_longer(references[:, None], length), _longer(drawn, length)], dim=1)


def _longer(ids: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(ids, (0, length - ids.shape[-1]), value=IGNORED_LABEL)


def packed(ids: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Those of ids [..., T] that are kept, without gaps: [..., L] with -100 after the end, L the most of one or 1."""
    most = max(1, int(kept.sum(-1).max())) if kept.numel() else 1
    places = (kept.cumsum(-1) - 1).masked_fill(~kept, most)  # what is left out goes behind, and is cut off
    found = ids.new_full((*ids.shape[:-1], most + 1), IGNORED_LABEL)
    return found.scatter(-1, places, ids)[..., :most]


def drawn_classes(log_probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The classes that random numbers fall on.

    Args:
        log_probabilities: [..., V] float, of classes.
        numbers: [..., K] float32, from 0 to below 1.

    Returns:
        [..., K] int64, each drawn with its probability where the numbers are uniform.
    """
    below = log_probabilities.detach().float().exp().cumsum(-1)
    sought = numbers.to(below).clamp(max=1 - 1e-6) * below[..., -1:]
    return torch.searchsorted(below, sought, right=True).clamp(max=below.shape[-1] - 1)
