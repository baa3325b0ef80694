"""The scale of logits: metrics of decisions cannot see it, so losses hold it."""

import math

from .base import Evidence
from .layers import logit_scale


def at_rest(evidence: Evidence, pull: float) -> Evidence:
    """Logits of mean 0 and of one norm, that of a right prediction where cross-entropy with the pull rests.

    There the label's logit is ahead of the others, which are alike, by that a at which the derivative vanishes:
    sigmoid(log(C - 1) - a) = κ √((C - 1) / C).
    """
    classes = evidence.outputs.shape[-1]
    spread = math.sqrt((classes - 1) / classes)  # the norm of centred logits (1, 0, ..., 0)
    lead = math.log(classes - 1) + math.log((1 - pull * spread) / (pull * spread))
    if lead <= 0:
        raise ValueError(
            f"scale_weight={pull} is a pull that takes the logits of {classes} classes to 0, where nothing can be "
            f"learned: it has to be below {spread:.3f}."
        )
    centred = evidence.outputs - evidence.outputs.mean(-1, keepdim=True)
    return evidence._replace(outputs=centred * (spread * lead / logit_scale(centred)))


def checked_pull(scale_weight: float) -> float:
    """The pull κ on the scale of logits, if it is a share between 0 and 1; else raises ValueError."""
    if not 0 < scale_weight < 1:
        raise ValueError(f"scale_weight is a share between 0 and 1, got {scale_weight}.")
    return scale_weight
