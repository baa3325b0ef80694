"""Decision rules, learned by the metric on predictions that are held out: from a model's logits to a class, and which
of a beam's texts is written."""

from . import consensus, credit, cut_points, thresholds  # so that a saved rule is known as soon as anything is imported

__all__ = ["consensus", "credit", "cut_points", "thresholds"]
