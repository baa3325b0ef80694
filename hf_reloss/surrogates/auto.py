"""Surrogates of any task, by what their configuration says."""

import importlib
import pkgutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .config import SurrogateConfig

if TYPE_CHECKING:
    from .base import Surrogate


class AutoSurrogate:
    """Finds the class of a surrogate, as transformers' Auto classes do. It is also what `AutoModel` uses.

    Example:
        >>> loss = AutoSurrogate.from_pretrained("someone/reloss-accuracy")  # doctest: +SKIP
    """

    config_class = SurrogateConfig

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        config: SurrogateConfig | str | Path | None = None,
        **kwargs: Any,
    ) -> "Surrogate":
        """Loads a surrogate from a folder or the Hub; arguments and errors as in `Surrogate.from_pretrained`."""
        if not isinstance(config, SurrogateConfig):
            from .loading import load_config  # transformers, while it is imported, imports this module

            where = pretrained_model_name_or_path if config is None else config
            config, kwargs = load_config(str(where), **kwargs)
        try:
            kind = cls.of_task(config.task)
        except ValueError as error:
            raise ValueError(f"{pretrained_model_name_or_path}: {error}{config.advice}") from None
        return kind.from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)

    @classmethod
    def from_config(cls, config: SurrogateConfig, **kwargs: Any) -> "Surrogate":
        """A fresh surrogate."""
        return cls.of_task(config.task)._from_config(config, **kwargs)

    _from_config = from_config  # the name under which AutoModel asks for it

    @classmethod
    def reading(cls, outputs: Any, labels: torch.Tensor) -> "type[Surrogate]":
        """The surrogate class for a model with these outputs and labels.

        Raises:
            ValueError: if there is none.
        """
        kinds = cls._kinds()
        elsewhere = [kind for kind in reversed(kinds.values()) if not kind.__module__.startswith(f"{__package__}.")]
        ours = sorted(set(kinds.values()) - set(elsewhere), key=lambda kind: kind.task)
        for kind in [*elsewhere, *ours]:
            if kind.reads(outputs, labels):
                return kind
        given = {name: list(value.shape) for name, value in _tensors(outputs).items()}
        raise ValueError(
            f"There is no surrogate for a model with the outputs {given} and labels {list(labels.shape)} "
            f"({labels.dtype}): there are some for one label per example or several (0 or 1 each), one number (logits "
            "[N] or [N, 1], labels [N] of floats), embeddings, tokens, spans, heatmaps of keypoints and maps "
            "of classes (logits [N, C, h, w] with labels [N, H, W])."
        )

    @classmethod
    def of_task(cls, task: str) -> "type[Surrogate]":
        """The surrogate class of a task, wherever it is defined.

        Raises:
            ValueError: if there is none by now.
        """
        found = cls._kinds().get(task)
        if found is None:
            raise ValueError(
                f"There are no surrogates for the task {task!r} here: there are some for {', '.join(cls._kinds())}. If "
                "one is defined outside of hf_reloss, import the module that defines it first."
            )
        return found

    @classmethod
    def reading_columns(cls, names: Collection[str]) -> "type[Surrogate] | None":
        """The surrogate class that reads recorded predictions with these columns; None if there is none by now."""
        kinds = [kind for kind in cls._kinds().values() if {*kind.read_columns, "labels"} <= set(names)]
        return max(kinds, key=lambda kind: len(kind.read_columns), default=None)

    @staticmethod
    def _kinds() -> "dict[str, type[Surrogate]]":
        """All surrogate classes that are defined by now, by task."""
        from .base import Surrogate  # transformers, while it is imported, imports this module

        for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
            importlib.import_module(f"{__package__}.{module.name}")
        return Surrogate.defined


def _tensors(outputs: Any) -> dict[str, torch.Tensor]:
    """The tensors in a model's outputs, by name or place."""
    items = (
        outputs.items()
        if isinstance(outputs, Mapping)
        else enumerate(outputs if isinstance(outputs, tuple) else [outputs])
    )
    return {str(name): value for name, value in items if torch.is_tensor(value)}
