"""The files of surrogates, from a folder or the Hub: a stranger may have written them.

Of transformers' loading only the part is used that fills a model with tensors. What finds files is not: what a
repository says there decides which files are loaded, and how, pickles among them.
"""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from .. import __version__
from ..hub.publishing import included, nearest_included
from .config import SurrogateConfig

PLACE = ("cache_dir", "force_download", "proxies", "token", "revision", "subfolder", "local_files_only")
"""The keywords that say where files are."""

LARGEST_CONFIG = 2**24
"""In bytes, a thousand times what surrogates have."""


def load_config(where: str, **kwargs: Any) -> tuple[SurrogateConfig, dict[str, Any]]:
    """The configuration of the surrogate at a folder or repository, and the keywords for loading its weights.

    Raises:
        ValueError: if there is another kind of model, or a configuration that is not valid.
    """
    here = included(where, **kwargs)
    place = {name: kwargs.pop(name) for name in PLACE if name in kwargs}
    try:
        path = cached_file(str(here or where), CONFIG_NAME, **place)
    except OSError as error:
        near = nearest_included(where)
        if near is None:
            raise
        raise OSError(f"{error}\nIs {near!r} meant, which comes with hf_reloss?") from error
    if path is None:
        raise OSError(f"{where} has no {CONFIG_NAME}, so there is no surrogate in it.")
    content = _read_config(Path(path), where)
    try:
        config, unused = SurrogateConfig.from_dict(content, return_unused_kwargs=True, **kwargs)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    commit = None if here or Path(where).is_dir() else extract_commit_hash(path, None)
    if commit is not None:  # the weights are to be of the same one
        place["revision"] = commit
    if here or commit:
        name = "/".join(filter(None, (where, place.get("subfolder"))))
        config.origin = f"{name}@{commit or f'hf_reloss-{__version__}'}"
    return config, unused | place


def _read_config(path: Path, where: str) -> dict[str, Any]:
    """The content of a config.json, if it is a surrogate's."""
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"{where} is no surrogate: its {CONFIG_NAME} has more than {LARGEST_CONFIG:,} bytes.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{where} is no surrogate: its {CONFIG_NAME} is no JSON ({error}).") from error
    except RecursionError as error:
        raise ValueError(f"{where} is no surrogate: its {CONFIG_NAME} is nested too deeply.") from error
    found = content.get("model_type") if isinstance(content, dict) else None
    if found != SurrogateConfig.model_type:
        raise ValueError(
            f"{where} is no surrogate: its {CONFIG_NAME} says model_type {reprlib.repr(found)}, not "
            f"{SurrogateConfig.model_type!r}. Pass a folder written by a surrogate, or its Hub id."
        )
    return content


def checked(config: SurrogateConfig) -> SurrogateConfig:
    """A copy of a configuration that holds its own fields and nothing else; transformers may have read it from a file.

    Raises:
        ValueError: as `SurrogateConfig.from_dict` does.
    """
    return SurrogateConfig.from_dict(vars(config))


def load_weights(where: str, **place: Any) -> dict[str, torch.Tensor]:
    """The weights at a folder or repository, from its model.safetensors: never from a pickle, nor from another file.

    Raises:
        OSError: if they are missing or damaged.
    """
    path = cached_file(where, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **place)
    if path is None:
        raise OSError(
            f"{where} has no {SAFE_WEIGHTS_NAME}, and weights are loaded from that one file only, never from a pickle "
            "or from parts that an index names: write it with save_pretrained."
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise OSError(
            f"The weights in {where} are damaged ({error}): the file is truncated or was not written to its end. "
            "Download or save the surrogate again."
        ) from error


def require_all(loaded: Mapping[str, Any], where: str) -> None:
    """Raises OSError if weights did not fill a surrogate, by what transformers says of loading them."""
    if loaded["mismatched_keys"]:
        name, found, wanted = min(loaded["mismatched_keys"])
        raise OSError(
            f"The weights in {where} are not of the shapes that its configuration asks for: {name} is "
            f"{list(found)} instead of {list(wanted)}. Its files do not belong together."
        )
    if loaded["missing_keys"]:
        raise OSError(
            f"The weights in {where} lack {', '.join(sorted(loaded['missing_keys']))}, which its configuration asks "
            "for: it was saved by another version, or its files do not belong together."
        )
