"""The triplet loss (Schroff et al. 2015, arXiv:1503.03832, equation 2), of pytorch-metric-learning."""

from typing import ClassVar

from .metric_learning import MetricLearningLoss


class Triplet(MetricLearningLoss):
    """The mean of d(a, p) - d(a, n) + margin over the triplets of the group where it is above 0; 0 if there is none.

    a and p are two examples of one class, n one of another: all triplets that there are, of which a group of N with C
    classes of one size has about N³ / C. d is the distance of normalised embeddings, and not its square as in the
    paper.
    """

    architecture = "triplet"
    options: ClassVar[dict[str, float]] = {"margin": 0.05}
    library_class = "TripletMarginLoss"
