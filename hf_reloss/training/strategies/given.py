"""A loss that is given: a surrogate, a folder or Hub id of one, or the name of a hand-made loss."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ...losses.hand_made import hand_made_losses
from ...metrics import Metric, metric_of
from ...predictions.models import metric_for, unwrapped, writes_text
from ...surrogates.auto import AutoSurrogate
from ...surrogates.base import Surrogate
from ...surrogates.classification import SurrogateForClassification
from ...surrogates.embeddings import SurrogateForEmbeddings
from ...surrogates.hand_made import hand_made_loss
from ...surrogates.multilabel import SurrogateForMultilabel
from ...surrogates.segmentation import SurrogateForSegmentation
from ...surrogates.tokens import SurrogateForTokens
from .base import SURROGATE_FOLDER, LossStrategy, SurrogateStrategy

logger = logging.get_logger(__name__)

LABEL_NAMES = ("labels", "label", "label_ids")
"""Under which collators know labels."""


class Given(SurrogateStrategy):
    """A surrogate that stays what it is. A run that is resumed goes on with the very weights that it began with.

    Args:
        surrogate: a `Surrogate` (which is frozen), a folder or Hub id of one, or the name of a hand-made loss.
        metric: which it is watched for, by default its own.
    """

    changes_loss = False
    surrogate: Surrogate

    def __init__(self, surrogate: Surrogate | str | Path, metric: Metric | Any = None):
        super().__init__(metric)
        self.wanted = surrogate

    @classmethod
    def of(cls, surrogate: Any, metric: Metric | Any) -> "Given | None":
        return cls(surrogate, metric) if isinstance(surrogate, Surrogate | str | Path) else None

    def prepare(self, trainer: Any) -> None:
        super().prepare(trainer)
        model, dataset, names = trainer.model, trainer.train_dataset, trainer.args.label_names
        self.surrogate = self.placed(given_surrogate(self.wanted, model, dataset, names))
        self.metric = metric_of(self.surrogate.config.metric) if self.wanted_metric is None else self._watched()

    def start(self, checkpoint: Path | None) -> None:
        origin = self.surrogate.config.origin
        if checkpoint is None or origin is None or not (checkpoint / SURROGATE_FOLDER).is_dir():
            return
        former = self.saved_surrogate(checkpoint)
        if (former.config.origin or "").rpartition("@")[0] != origin.rpartition("@")[0]:
            had = former.config.origin or f"a surrogate for {former.config.metric}"
            logger.warning(f"{checkpoint} was trained on {had}: the run goes on with {origin}, which was asked for.")
            return
        if former.config.origin != origin:
            logger.info(f"Going on with {former.config.origin}, on which {checkpoint} was trained, not {origin}.")
        self.surrogate = former

    def begin(self) -> None:
        self.announce_warmup()
        super().begin()

    def end_step(self) -> None:
        self.announce_switch()

    def _watched(self) -> Metric:
        """The metric that it is watched for."""
        try:
            return metric_for(self.trainer.model, self.wanted_metric)
        except ValueError as error:
            raise ValueError(
                "With a given surrogate, metric= is what its alignment is watched for: a name, a function or a Metric, "
                f"and no key of compute_metrics. {error}"
            ) from None


def given_surrogate(
    surrogate: Surrogate | str | Path, model: nn.Module, dataset: Any, names: Sequence[str] | None
) -> Surrogate:
    """The surrogate that was asked for.

    Args:
        surrogate: a surrogate, a folder or Hub id of one, or the name of a hand-made loss.
        model: that is to be trained.
        dataset: the training data, of which some losses count the labels.
        names: of its labels; by default those that collators know.

    Raises:
        ValueError: if that is none, or a loss wants labels that it cannot have.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    if isinstance(surrogate, str) and surrogate in hand_made_losses(None):
        return _hand_made(surrogate, model, dataset, names)
    refuse_unknown(str(surrogate), [*LossStrategy.defined, *hand_made_losses(None)])
    return AutoSurrogate.from_pretrained(surrogate)


def refuse_unknown(word: str, known: Iterable[str]) -> None:
    """Refuses a mistyped word at once: the Hub, which is asked for what is neither known nor a folder, has no such ids.

    Raises:
        ValueError: for what is neither a word that is known, nor a folder, nor of the form OWNER/NAME.
    """
    known = sorted(set(known))
    if word in known or "/" in word or Path(word).is_dir():
        return
    near = [*(name for name in known if name.startswith(word)), *difflib.get_close_matches(word, known)]
    raise ValueError(
        f"There is no loss {word!r}{f' (is {near[0]!r} meant?)' if near else ''}: choose among {', '.join(known)}, or "
        "pass the folder or Hub id (owner/name) of a surrogate."
    )


def _hand_made(name: str, model: nn.Module, dataset: Any, names: Sequence[str] | None) -> Surrogate:
    """A hand-made loss for what the model is trained to do: classes of examples, tokens or pixels, or embeddings."""
    kind = hand_made_losses(None)[name]
    task, first = kind.tasks[0], training_labels(dataset, names, most=1)  # a row of a data set may be dear to read
    of_sequences = writes_text(model) or (first is not None and _are_sequences(first))
    if SurrogateForSegmentation.task in kind.tasks and _labels_pixels(model, first):
        task = SurrogateForSegmentation.task
    elif task == SurrogateForClassification.task and of_sequences:
        task = SurrogateForTokens.task
        if not writes_text(model) and first is not None and torch.as_tensor(first[0]).is_floating_point():
            task = SurrogateForMultilabel.task  # as binary cross-entropy wants its labels
    if task == SurrogateForEmbeddings.task and type(unwrapped(model)).__name__.endswith("Classification"):
        model_class = type(unwrapped(model)).__name__
        logger.warning(
            f"The loss {name!r} is one of metric learning, so the logits of {model_class} are taken for embeddings. "
            f"For classes there are {', '.join(hand_made_losses())}."
        )

    def all_labels() -> torch.Tensor:
        labels = training_labels(dataset, names)
        assert labels is not None  # for there is a first one
        if task == SurrogateForMultilabel.task:
            return torch.stack([torch.as_tensor(each) for each in labels])
        return _flat(name, labels)

    options = {}
    if "classes" in kind.options:
        classes = getattr(getattr(unwrapped(model), "config", None), "num_labels", None)
        if classes is None and first is not None:
            classes = int(all_labels().max()) + 1
        options = {} if classes is None else {"classes": classes}
    counts = kind.wants_frequencies and first is not None
    return hand_made_loss(name, all_labels() if counts else None, task=task, **options)


def training_labels(dataset: Any, names: Sequence[str] | None = None, most: int | None = None) -> Sequence[Any] | None:
    """The labels of a data set with a length, one entry for each example; None if there are none.

    Args:
        dataset: of dictionaries.
        names: of labels; besides, those are tried that collators know.
        most: how many examples are read, from the first on; by default all.
    """
    length = len(dataset) if has_length(dataset) else 0
    if length == 0:
        return None
    columns = getattr(dataset, "column_names", None) or dataset[0]
    name = next((name for name in (*(names or ()), *LABEL_NAMES) if name in columns), None)
    if name is None:
        return None
    if hasattr(dataset, "column_names"):
        return dataset.with_format(None)[name][:most]
    return [dataset[index][name] for index in range(length)[:most]]


def _labels_pixels(model: nn.Module, first: Sequence[Any] | None) -> bool:
    """Whether the labels of an example, of which the first is given, if there is one, are a map of classes."""
    if type(unwrapped(model)).__name__.endswith("ForSemanticSegmentation"):
        return True
    return first is not None and _are_sequences(first) and _are_sequences(first[0])


def _are_sequences(labels: Sequence[Any]) -> bool:
    first = labels[0]
    return first.ndim > 0 if hasattr(first, "ndim") else isinstance(first, Sequence) and not isinstance(first, str)


def _flat(name: str, labels: Sequence[Any]) -> torch.Tensor:
    """Labels of examples, or of all tokens of all examples, as one tensor [n] int64."""
    try:
        parts = [torch.as_tensor(each) for each in labels] if _are_sequences(labels) else [torch.as_tensor(labels)]
    except (TypeError, ValueError, RuntimeError):  # of what holds no numbers
        parts = []
    if not parts or any(part.is_floating_point() or part.is_complex() for part in parts):
        raise ValueError(
            f"The loss {name!r} counts the labels of train_dataset, class indices, but the first of them is "
            f"{labels[0]!r}. Turn classes into numbers first (datasets: class_encode_column), or pass "
            f"surrogate=hand_made_loss({name!r}, frequencies=[...]) with the share of each class."
        )
    return torch.cat([part.flatten().long() for part in parts])
