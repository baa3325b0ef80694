"""Putting a decision rule into a model, so that everything that runs the model has it."""

import torch
from torch import nn


def fold(model: nn.Module, offsets: torch.Tensor) -> bool:
    """Adds offsets of classes to the bias of the layer whose output the logits are, if there is one.

    `pipeline`, exports to ONNX and servers decide by them then, for a model is saved with its bias.

    Args:
        model: a classifier.
        offsets: [C].

    Returns:
        Whether it was done: False for a model without a last linear layer of as many classes that has a bias.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == len(offsets)]
    if not layers or layers[-1].bias is None:
        return False
    with torch.no_grad():
        layers[-1].bias.add_(offsets.to(layers[-1].bias))
    return True
