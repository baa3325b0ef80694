"""What a surrogate is made of, and what it was learned from."""

import inspect
import math
import re
import reprlib
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin

from packaging.version import InvalidVersion, Version
from transformers.configuration_utils import PreTrainedConfig

from .. import __version__

BOUNDS = {
    "num_knots": (3, 1024),
    "knot_range": (1e-6, 1e6),
    "scale_weight": (0, 1e6),
    "max_order": (1, 64),
    "reach": (0, 64),
    "hidden_size": (1, 2048),
    "sigma": (1e-6, 1e6),
    "anchor": (0, 1e6),
    "num_pixels": (1, 2**20),
}
"""Between which numbers those of a loaded configuration lie: more than surrogates need, less than memory holds."""

LARGEST_NUMBER = 1e12
"""The largest finite number in a loaded configuration: far larger ones cannot be drawn, nor written with digits."""

NAMES = ("task", "architecture", "level", "credit")
"""The fields that are names, as of a module or a network."""

RECORD = {"data": str, "models": list[str], "settings": dict[str, Any], "held_out": dict[str, list[float]]}
"""The types of those entries of a record that pages are made of, beside the alignments, which are numbers."""

DEEPEST = 16
"""How many lists and dictionaries may lie inside each other in a loaded configuration."""


class SurrogateConfig(PreTrainedConfig):
    """Configuration of a surrogate.

    Args:
        task: the kind of evidence: `"classification"`, `"multilabel"`, `"regression"`, `"embeddings"`, `"tokens"`,
            `"spans"`, `"keypoints"`, `"segmentation"`, or that of a `Surrogate` that is defined elsewhere.
        architecture: the network from evidence to loss, by default the first of its task, which is monotone by
            construction. Of classification: `"margin"`, `"counts"` and `"credit"` (monotone, too), `"paper"` (Huang
            et al. 2022), `"set"` (Grabocka et al. 2019) or a hand-made loss (`hf_reloss.losses`). Of several labels:
            `"margin"`, `"subset"`, `"counts"`, `"ranks"` or a hand-made loss. Of embeddings: `"neighbours"`, or
            `"triplet"` or `"margin_loss"`, hand-made. Of tokens: `"ngrams"` or `"paper"`. Of spans: `"overlap"`. Of
            keypoints: `"hits"` or `"paper"`. Of segmentation: `"counts"`, `"margin"` or a hand-made loss. Of
            regression: `"errors"`, `"agreement"` or a hand-made loss.
        scores: of `"counts"`: the metrics of counts per class whose soft forms are mixed, each name with its options,
            as `load_metric` takes them; of `"ranks"`: one of rankings, as `"ndcg"`, of `"hits"`: `"pck"` or `"oks"`,
            with its options.
        num_knots: of `"margin"`, `"subset"`, `"ranks"`, `"counts"`, `"credit"`, `"overlap"`, `"hits"`, `"neighbours"`
            and `"errors"`: intervals of the learned monotone spline.
        knot_range: of the same: the spline bends at margins between -knot_range and knot_range.
        trust_region: of the same: whether the spline is learned above 0 only. Below, where a prediction is wrong, the
            curve stays that of the soft metric, so that what is learned never lets go of wrong predictions.
        scale_weight: of `"margin"`, `"counts"`, `"credit"` and `"overlap"`: the pull on the scale of the logits.
            For the first three it lies between 0 and 1: as much of the probability as label smoothing of that size
            would take from the label.
        max_order: of `"ngrams"`: the longest n-grams.
        reach: of `"ngrams"`: how many places too early or too late an n-gram may be written and still count, times a
            learned share; 0 to 4.
        level: of `"ngrams"`: whether soft precisions are those of the `"group"`, as of BLEU, or of each `"sentence"`.
        credit: of `"overlap"`: of an answer that is partly right: `"f1"`, that of its tokens, or none, `"exact"`.
        loss_options: of a hand-made loss, of `"credit"`, `"errors"`, `"agreement"`, `"neighbours"`, or of a network
            that is defined outside of this package: its options, such as `{"gamma": 2.0}`.
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

    def options_of(self, network: type) -> dict[str, Any]:
        """What a network is made with: the fields that are named as its parameters, and `loss_options`."""
        fields = inspect.get_annotations(SurrogateConfig)
        named = {name: getattr(self, name) for name in inspect.signature(network).parameters if name in fields}
        return named | dict(self.loss_options or {})

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

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """A configuration from the content of a config.json, which a stranger may have written.

        Only the fields of this class are taken. On others transformers would act: it would load weights from other
        files, kernels from the Hub, quantised layers.

        Args:
            config_dict: the content.
            kwargs: as in `PreTrainedConfig.from_dict`.

        Raises:
            ValueError: for a field of another type, or a number that is out of bounds.
        """
        wanted = inspect.get_annotations(SurrogateConfig)
        known = {name: config_dict[name] for name in wanted if name in config_dict}
        try:
            for name, value in known.items():
                _check(name, value, wanted[name])
        except ValueError as error:
            version = known.get("hf_reloss_version")
            advice = cls(hf_reloss_version=version).advice if isinstance(version, str) else ""
            raise ValueError(f"{error}{advice}") from None
        return super().from_dict(known, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        own = {name: value for name, value in super().to_dict().items() if name != "use_cache"}  # which a Trainer sets
        return own | {"hf_reloss_version": __version__}


def _check(name: str, value: Any, wanted: Any) -> None:
    """Raises ValueError if a field is not of the type that is wanted, or is out of bounds."""
    fits, limits = _is_of(value, wanted) and _is_shallow(value), ""
    if name in BOUNDS:
        low, high = BOUNDS[name]
        limits = f" from {low} to {high}"
        fits = fits and (value is None or low <= value <= high)
    elif name in NAMES:
        limits = " of letters, digits and _"
        fits = fits and (value is None or re.fullmatch(r"\w{1,100}", value) is not None)
    if not fits:
        wanted = inspect.formatannotation(wanted).replace("typing.", "")
        raise ValueError(f"{name} in the configuration must be {wanted}{limits}, but is {reprlib.repr(value)}.")
    if name == "record":
        _check_record(value or {})


def _check_record(record: Mapping[str, Any]) -> None:
    """Raises ValueError for entries of which no page can be made."""
    for name, value in record.items():
        wanted = float if name.startswith("alignment") else RECORD.get(name, Any)
        _check(f"record[{name!r}]", value, wanted)
    if len({len(values) for values in record.get("held_out", {}).values()}) > 1:
        raise ValueError("record['held_out'] in the configuration must be lists of one length.")


def _is_of(value: Any, wanted: Any) -> bool:
    """Whether a value from JSON is of a type, inside too. Whole numbers are of `float`, but `bool` is no number."""
    inner = get_args(wanted)
    if isinstance(wanted, UnionType):
        return any(_is_of(value, choice) for choice in inner)
    if get_origin(wanted) is dict:
        return isinstance(value, dict) and all(_is_of(k, inner[0]) and _is_of(v, inner[1]) for k, v in value.items())
    if get_origin(wanted) is list:
        return isinstance(value, list) and all(_is_of(child, inner[0]) for child in value)
    if wanted in (int, float):
        is_number = isinstance(value, int | wanted) and not isinstance(value, bool)
        return is_number and not LARGEST_NUMBER < abs(value) < math.inf
    return wanted is Any or isinstance(value, wanted)


def _is_shallow(value: Any, levels: int = DEEPEST) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(child, levels - 1) for child in inner)
