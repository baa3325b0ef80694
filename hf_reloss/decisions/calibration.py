"""Probabilities of classes from logits, as they are on the examples that a decision is for.

Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599; with a bias for each class: Alexandari et
al. 2020, Maximum Likelihood with Bias-Corrected Calibration, arXiv:1901.06852.
"""

import torch
import torch.nn.functional as F

WIDTHS = (0.0, 0.25, 0.5, 1.0)
"""Standard deviations of the prior of biases, of which cross-validated likelihood chooses; 0 is for no biases."""

PARTS = 3
"""Parts of the examples in that cross-validation."""

LARGEST = 3.0
"""The largest logarithm of a temperature: examples without an error have none."""


def calibrate(logits: torch.Tensor, labels: torch.Tensor, width: float) -> tuple[float, torch.Tensor]:
    """A temperature T and biases b for which softmax(logits / T + b) are likely probabilities of the labels.

    Biases correct for classes that are more, or less, frequent than where the model was trained. They have a normal
    prior around 0. Of several labels for each example, it is the sigmoid that is likely.

    Args:
        logits: [n, C] float, of examples that the model has not been trained on.
        labels: [n] int64, or several for each example: [n, C], 0 or 1.
        width: the prior's standard deviation, see `best_width`; 0 for no biases.

    Returns:
        The temperature and the biases [C] float64; of softmax their mean is 0.
    """
    logits = logits.double()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    biases = torch.zeros(logits.shape[-1], dtype=torch.float64, requires_grad=width > 0)
    free = [log_temperature, biases] if width > 0 else [log_temperature]
    optimizer = torch.optim.LBFGS(free, max_iter=50, tolerance_change=1e-7, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = _loss(logits / log_temperature.clamp(-LARGEST, LARGEST).exp() + biases, labels)
        if width > 0:
            found = found + biases.square().sum() / (2 * width**2 * len(labels))
        found.backward()
        return found

    optimizer.step(loss)
    found = biases.detach()
    found = found - found.mean() if labels.dim() == 1 else found
    return float(log_temperature.detach().clamp(-LARGEST, LARGEST).exp()), found


def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over examples of the negative log-likelihood."""
    if labels.dim() == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.double(), reduction="sum") / len(labels)


def best_width(logits: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> float:
    """The width of the prior of biases that is best for examples that they were not fitted on; 0 if they do not help.

    Args:
        logits, labels: as for `calibrate`.
        seed: of the parts of the cross-validation.
    """
    part = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)) % PARTS

    def loss(width: float) -> float:
        total = 0.0
        for each in range(PARTS):
            temperature, biases = calibrate(logits[part != each], labels[part != each], width)
            held_out = logits[part == each] / temperature + biases
            total += len(held_out) * float(_loss(held_out, labels[part == each]))
        return total

    return min(WIDTHS, key=loss)
