"""Surrogates of any task, by what their configuration says."""

import importlib
from typing import TYPE_CHECKING

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
            from .base import Surrogate

            where = pretrained_model_name_or_path if config is None else config
            config, kwargs = Surrogate.load_config(str(where), **kwargs)
        return cls._class_of(config).from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)

    @classmethod
    def from_config(cls, config: SurrogateConfig, **kwargs) -> "Surrogate":
        """A fresh surrogate."""
        return cls._class_of(config)._from_config(config, **kwargs)

    _from_config = from_config  # the name under which AutoModel asks for it

    @staticmethod
    def _class_of(config: SurrogateConfig) -> "type[Surrogate]":
        """The surrogate class of a task: the one that the module of the task's name defines."""
        from .base import Surrogate

        try:
            module = importlib.import_module(f"{__package__}.{config.task}")
        except ModuleNotFoundError as error:
            raise ValueError(f"This version of hf_reloss knows no surrogates for the task {config.task!r}.") from error
        return next(
            kind
            for kind in vars(module).values()
            if isinstance(kind, type) and issubclass(kind, Surrogate) and vars(kind).get("task") == config.task
        )
