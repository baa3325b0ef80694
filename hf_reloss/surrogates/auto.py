"""Surrogates of any task, by what their configuration says."""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
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
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs) -> "Surrogate":
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
    def from_config(cls, config: SurrogateConfig, **kwargs) -> "Surrogate":
        """A fresh surrogate."""
        return cls.of_task(config.task)._from_config(config, **kwargs)

    _from_config = from_config  # the name under which AutoModel asks for it

    @classmethod
    def reading(cls, outputs: Any, labels: torch.Tensor) -> "type[Surrogate]":
        """The surrogate class for a model with these outputs and labels.

        Raises:
            ValueError: if there is none.
        """
        for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
            kind = cls._defined_in(importlib.import_module(f"{__package__}.{module.name}"))
            if kind is not None and kind.reads(outputs, labels):
                return kind
        given = {name: list(value.shape) for name, value in _tensors(outputs).items()}
        raise ValueError(
            f"There is no surrogate for a model with the outputs {given} and labels {list(labels.shape)} "
            f"({labels.dtype}): there are some for one label per example, embeddings, tokens, spans and heatmaps of "
            "keypoints."
        )

    @classmethod
    def of_task(cls, task: str) -> "type[Surrogate]":
        """The surrogate class of a task: the one that the module of the task's name defines."""
        try:
            module = importlib.import_module(f"{__package__}.{task}")
        except ModuleNotFoundError as error:
            raise ValueError(f"This version of hf_reloss knows no surrogates for the task {task!r}.") from error
        kind = cls._defined_in(module)
        if kind is None:
            raise ValueError(f"This version of hf_reloss knows no surrogates for the task {task!r}.")
        return kind

    @staticmethod
    def _defined_in(module: ModuleType) -> "type[Surrogate] | None":
        from .base import Surrogate

        task = module.__name__.rpartition(".")[2]
        kinds = (kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Surrogate))
        return next((kind for kind in kinds if vars(kind).get("task") == task), None)


def _tensors(outputs: Any) -> dict[str, torch.Tensor]:
    """The tensors in a model's outputs, by name or place."""
    items = (
        outputs.items()
        if isinstance(outputs, Mapping)
        else enumerate(outputs if isinstance(outputs, tuple) else [outputs])
    )
    return {str(name): value for name, value in items if torch.is_tensor(value)}
