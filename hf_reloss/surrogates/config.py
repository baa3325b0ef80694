"""What a surrogate is made of, and what it was learned from."""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig


class SurrogateConfig(PreTrainedConfig):
    """Configuration of a surrogate.

    Args:
        task: the kind of evidence, which is the module of `hf_reloss.surrogates` that reads it: `"classification"`.
        architecture: the network from evidence to loss. Of classification: `"margin"` (the default), `"counts"` (both
            monotone by construction) or `"paper"` (Huang et al. 2022).
        scores: of `"counts"`: the metrics of counts per class whose soft twins are mixed, each name with its options,
            as `load_metric` takes them.
        num_knots: of `"margin"` and `"counts"`: intervals of the learned monotone spline.
        knot_range: of the same: the spline bends at margins between -knot_range and knot_range.
        scale_weight: of the same: the pull on the scale of the logits, between 0 and 1; as much of the probability as
            label smoothing of that size would take from the label.
        hidden_size: of `"paper"`: width of its layers.
        metric: signature of the metric that it was learned for.
        record: how it was learned: alignments on held-out groups, predictions, settings.
    """

    model_type = "reloss"

    task: str = "classification"
    architecture: str = "margin"
    scores: dict[str, dict[str, Any]] | None = None
    num_knots: int = 16
    knot_range: float = 4.0
    scale_weight: float = 0.1
    hidden_size: int = 128
    metric: str | None = None
    record: dict[str, Any] | None = None
