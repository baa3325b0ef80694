"""What a surrogate is made of, and what it was learned from."""

from typing import Any

from packaging.version import InvalidVersion, Version
from transformers.configuration_utils import PreTrainedConfig

from .. import __version__


class SurrogateConfig(PreTrainedConfig):
    """Configuration of a surrogate.

    Args:
        task: the kind of evidence, which is the module of `hf_reloss.surrogates` that reads it: `"classification"`,
            `"embeddings"`, `"tokens"`, `"spans"` or `"keypoints"`.
        architecture: the network from evidence to loss, by default the first of its task, which is monotone by
            construction. Of classification: `"margin"`, `"counts"` (monotone, too), `"paper"` (Huang et al. 2022),
            `"set"` (Grabocka et al. 2019) or a hand-made loss (`hf_reloss.losses`). Of embeddings: `"triplet"` or
            `"margin"`, hand-made too. Of tokens: `"ngrams"` or `"paper"`. Of spans: `"overlap"`. Of keypoints:
            `"hits"` or `"paper"`.
        scores: of `"counts"`: the metrics of counts per class whose soft twins are mixed, each name with its options,
            as `load_metric` takes them; of `"hits"`: `"pck"` or `"oks"` with its options.
        num_knots: of `"margin"`, `"counts"`, `"overlap"` and `"hits"`: intervals of the learned monotone spline.
        knot_range: of the same: the spline bends at margins between -knot_range and knot_range.
        trust_region: of the same: whether the spline is learned above 0 only. Below, where a prediction is wrong, the
            curve stays that of the soft metric, so that what is learned never lets go of wrong predictions.
        scale_weight: of `"margin"`, `"counts"` and `"overlap"`: the pull on the scale of the logits. For the first
            two it lies between 0 and 1: as much of the probability as label smoothing of that size would take from the
            label.
        max_order: of `"ngrams"`: the longest n-grams.
        reach: of `"ngrams"`: how many places too early or too late an n-gram may be written and still count, times a
            learned share; 0 to 4.
        level: of `"ngrams"`: whether soft precisions are those of the `"group"`, as of BLEU, or of each `"sentence"`.
        credit: of `"overlap"`: of an answer that is partly right: `"f1"`, that of its tokens, or none, `"exact"`.
        loss_options: of a hand-made loss: its options, such as `{"gamma": 2.0}`.
        hidden_size: of `"paper"`: width of its layers; of keypoints it is 8.
        sigma: of keypoints: standard deviation of the Gaussians that heatmaps are usually trained on, in their pixels;
            by default a 32nd of their longer side, at least 1.
        anchor: of `"hits"`: weight of the squared error against such Gaussians.
        num_pixels: of `"paper"` of keypoints: height times width of the heatmaps.
        metric: signature of the metric that it was learned for.
        record: how it was learned: alignments on held-out groups, predictions, settings.
        origin: where it was loaded from, as `NAME@REVISION`, if that was no folder of one's own.
        hf_reloss_version: of the package that saved it.
    """

    model_type = "reloss"

    task: str = "classification"
    architecture: str | None = None
    scores: dict[str, dict[str, Any]] | None = None
    num_knots: int = 16
    knot_range: float = 4.0
    trust_region: bool = False
    scale_weight: float = 0.1
    max_order: int = 4
    reach: int = 0
    level: str = "group"
    credit: str = "f1"
    hidden_size: int = 128
    sigma: float | None = None
    anchor: float = 2.0
    num_pixels: int = 3072
    loss_options: dict[str, Any] | None = None
    metric: str | None = None
    record: dict[str, Any] | None = None
    origin: str | None = None
    hf_reloss_version: str | None = None

    @property
    def version(self) -> Version:
        """Of the package that saved it; this one's if it was not saved, or by none that is known."""
        try:
            return Version(self.hf_reloss_version or __version__)
        except InvalidVersion:
            return Version(__version__)

    @property
    def advice(self) -> str:
        """What may help where something in it is not known here: a newer version, if one saved it; else nothing."""
        if self.version <= Version(__version__):
            return ""
        return (
            f" It was saved by hf_reloss {self.hf_reloss_version}, and this is {__version__}: pip install --upgrade "
            "hf-reloss."
        )

    def to_dict(self) -> dict[str, Any]:
        own = {name: value for name, value in super().to_dict().items() if name != "use_cache"}  # which a Trainer sets
        return own | {"hf_reloss_version": __version__}
