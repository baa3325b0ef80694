"""Checkpoints of the paper's authors."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .surrogates.classification import SurrogateForClassification
from .surrogates.config import SurrogateConfig


def convert_checkpoint(path: str | Path) -> SurrogateForClassification:
    """A surrogate of the architecture `"paper"` from a checkpoint with the authors' names.

    Args:
        path: a file of `torch.save` (read with `weights_only=True`: tensors alone, no code) or safetensors, holding
            `logits_fcs.0.weight` and so on, possibly under `state_dict`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds more than tensors, or other weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: {error}") from error
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else {}
    weights = weights if isinstance(weights, dict) else {}
    first = weights.get("logits_fcs.0.weight")
    if not torch.is_tensor(first):
        raise ValueError(
            f"{path} is no checkpoint of the authors' classification loss: it wants logits_fcs.* and loss.* but has "
            f"{', '.join(sorted(map(str, weights))[:6]) or 'no weights'}."
        )
    surrogate = SurrogateForClassification(SurrogateConfig(architecture="paper", hidden_size=first.shape[0]))
    try:
        surrogate.network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"The weights in {path} do not fit the authors' network: {error}") from error
    return surrogate
