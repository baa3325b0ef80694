"""Checkpoints of the paper's authors."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .base import Surrogate
from .classification import SurrogateForClassification
from .config import SurrogateConfig
from .keypoints import SurrogateForKeypoints


def convert_checkpoint(path: str | Path) -> Surrogate:
    """A surrogate of the architecture `"paper"` from a checkpoint with the authors' names.

    Their loss for classification reads one number, p(label), and has weights `logits_fcs` and `loss`; that for pose
    estimation reads all pixels of a heatmap, and has `logits_fcs` only.

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
            f"{path} is no checkpoint of the authors' loss, which has logits_fcs.* and, for classification but not for "
            f"pose estimation, loss.*: it has {', '.join(sorted(map(str, weights))[:6]) or 'no weights'}."
        )
    surrogate = _empty(first)
    try:
        surrogate.network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"The weights in {path} do not fit the authors' network: {error}") from error
    return surrogate


def _empty(first: torch.Tensor) -> Surrogate:
    """A surrogate for the first of the authors' weights, [width, number of inputs]."""
    width, inputs = first.shape if first.dim() == 2 else (1, 1)
    if inputs == 1:
        return SurrogateForClassification(SurrogateConfig(architecture="paper", hidden_size=width))
    return SurrogateForKeypoints(SurrogateConfig(task="keypoints", architecture="paper", num_pixels=inputs))
