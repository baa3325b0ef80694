"""What a surrogate is made of, and what it was learned from."""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig


class SurrogateConfig(PreTrainedConfig):
    """Configuration of a surrogate.

    Args:
        task: the kind of evidence, which is the module of `hf_reloss.surrogates` that reads it: `"classification"`.
        architecture: the network from evidence to loss. Of classification: `"margin"` (the default, monotone by
            construction) or `"paper"` (Huang et al. 2022).
        normalize: of `"margin"`: whether each prediction's logits are brought to mean 0 and standard deviation 1 first,
            as accuracy does not see their scale either. Off for two classes, of which only the sign would be left.
        num_knots: of `"margin"`: intervals of the learned monotone spline.
        knot_range: of `"margin"`: the spline bends at margins between -knot_range and knot_range.
        hidden_size: of `"paper"`: width of its layers.
        metric: signature of the metric that it was learned for.
        record: how it was learned: alignments on held-out groups, predictions, settings.
    """

    model_type = "reloss"

    task: str = "classification"
    architecture: str = "margin"
    normalize: bool = True
    num_knots: int = 16
    knot_range: float = 8.0
    hidden_size: int = 128
    metric: str | None = None
    record: dict[str, Any] | None = None
