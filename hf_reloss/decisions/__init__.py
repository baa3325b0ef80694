"""Decision rules: from a model's logits to a class, learned by the metric on predictions that are held out."""

from . import credit, cut_points, thresholds  # so that a saved rule is known as soon as anything here is imported

__all__ = ["credit", "cut_points", "thresholds"]
