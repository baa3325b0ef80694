"""The margin loss (Wu et al. 2017, arXiv:1706.07567, equation 4), of pytorch-metric-learning."""

from typing import ClassVar

from .metric_learning import MetricLearningLoss


class Margin(MetricLearningLoss):
    """Two examples of one class are to be nearer than beta - margin, and of different ones farther than beta + margin.

    The mean of d - beta + margin of the former and beta - d + margin of the latter where it is above 0, over all
    triplets of the group; 0 if there is none. d is the distance of normalised embeddings. The boundary beta is one for
    all classes, and pairs are not sampled by their distance, as in the paper.
    """

    architecture = "margin_loss"
    options: ClassVar[dict[str, float]] = {"margin": 0.2, "beta": 1.2}
    library_class = "MarginLoss"
