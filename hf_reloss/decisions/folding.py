"""Putting a decision rule into a model, so that everything that runs the model has it."""

import torch
from torch import nn

from .offsets import ClassOffsets


def fold(model: nn.Module, offsets: ClassOffsets) -> bool:
    """Adds offsets of classes to the bias of the layer whose output the logits are, if there is one.

    `pipeline`, exports to ONNX and servers decide by them then, for a model is saved with its bias.

    Args:
        model: a classifier.
        offsets: of its classes.

    Returns:
        Whether it was done: False for a model without a last linear layer of as many classes that has a bias.
    """
    return _added(model, offsets.offsets)


def unfold(model: nn.Module, offsets: ClassOffsets) -> bool:
    """Takes offsets out again that `fold` has put in."""
    return _added(model, -offsets.offsets)


@torch.no_grad()
def _added(model: nn.Module, offsets: torch.Tensor) -> bool:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == len(offsets)]
    if not layers or layers[-1].bias is None:
        return False
    layers[-1].bias.add_(offsets.to(layers[-1].bias))
    return True
