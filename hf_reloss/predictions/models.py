"""What is asked of any model: whether it writes text, which are its labels, what decodes its tokens."""

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers.utils import logging

from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from ..metrics.counts import SEVERAL_LABELS
from ..surrogates.tokens import next_token_labels

logger = logging.get_logger(__name__)

DESCRIPTION = "Predictions of "
"""How a description of recorded predictions begins."""


def description_of(model: nn.Module) -> str:
    """The description of a model's predictions."""
    model = unwrapped(model)
    checkpoint = getattr(getattr(model, "config", None), "_name_or_path", None)
    named = checkpoint and not os.path.isabs(checkpoint) and not os.path.isdir(checkpoint)  # a folder says nothing
    return f"{DESCRIPTION}{type(model).__name__}{f' {checkpoint}' if named else ''}"


def unwrapped(model: nn.Module) -> Any:
    """The model itself, without what compiles, distributes or adapts it."""
    bare: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    return bare.get_base_model() if hasattr(bare, "get_base_model") else bare


def writes_text(model: nn.Module) -> bool:
    """Whether a model writes text token by token: an encoder-decoder or a causal language model, and no other."""
    bare = unwrapped(model)
    return hasattr(bare, "can_generate") and bool(bare.can_generate()) and not is_ctc(bare)


def is_ctc(model: nn.Module) -> bool:
    """Whether a model is trained by connectionist temporal classification: of its class or one above it, the name ends
    in `ForCTC`, as in transformers."""
    return any(kind.__name__.endswith("ForCTC") for kind in type(unwrapped(model)).__mro__)


def looks_like_ctc(outputs: Any, labels: torch.Tensor) -> bool:
    """Whether what a model puts out are logits [N, T, V] of frames, with labels [N, L] that are fewer, L < T."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not torch.is_tensor(logits) or logits.dim() != 3 or labels.dim() != 2 or labels.is_floating_point():
        return False
    return len(logits) == len(labels) and logits.shape[1] > labels.shape[1]


def metric_for(model: nn.Module, metric: Metric | Any) -> Metric:
    """A metric that a run is for: what the model's configuration says of labels need not be said again.

    Args:
        model: the model, which may be wrapped.
        metric: what `load_metric` takes. Its options `label_names`, `ignore_index` and, of several labels for each
            example, `threshold`, where they are left at their defaults, become those of the model.

    Raises:
        ValueError: for a metric that is watched only, and for what is none.
    """
    config = getattr(unwrapped(model), "config", None)
    facts: dict[str, Any] = {}
    names = [name for _, name in sorted((getattr(config, "id2label", None) or {}).items())]
    if names and names != [f"LABEL_{place}" for place in range(len(names))]:  # as it is where nobody has said
        facts["label_names"] = names
    if getattr(config, "problem_type", None) == "multi_label_classification":
        facts |= SEVERAL_LABELS
    ignored = ignored_pixel(model)
    if ignored is not None:
        facts["ignore_index"] = ignored
    loaded = load_metric(metric)
    if loaded.watched_only:
        raise ValueError(f"{loaded.name} can be reported, not trained on: {loaded.watched_only}")
    informed = loaded.informed(facts)
    if informed != loaded:
        logger.info(f"The metric {loaded.name!r} knows labels as the model's configuration has them: {facts}.")
    return informed


def ignored_pixel(model: nn.Module) -> int | None:
    """The label of a pixel that does not count for a model of semantic segmentation, as its configuration has it."""
    ignored = getattr(getattr(unwrapped(model), "config", None), "semantic_loss_ignore_index", None)
    return ignored if isinstance(ignored, int) else None


def batch_labels(model: nn.Module, inputs: Mapping[str, Any], names: Sequence[str]) -> torch.Tensor | None:
    """The labels of a batch as surrogates read them, or None where they are missing.

    Several tensors of labels, as start and end positions are, become one: [N, number of names]. Labels of a causal
    language model, which compares each with the position before, are moved there. Pixels [N, H, W] that the model's
    configuration ignores become -100.

    Args:
        model: the model, which may be wrapped.
        inputs: what it is given.
        names: which of these are labels.
    """
    given: list[Any] = [inputs.get(name) for name in names]
    if not given or any(each is None for each in given):
        return None
    shapes = [str(list(label.shape)) if torch.is_tensor(label) else type(label).__name__ for label in given]
    if len(set(shapes)) > 1 or not torch.is_tensor(given[0]):
        raise ValueError(
            "A surrogate reads labels that are one tensor, or several of one shape, but the batch has "
            f"{', '.join(map(' '.join, zip(names, shapes, strict=True)))}. Set label_names in TrainingArguments "
            "to what it is to read. For object detection (a list of dictionaries) and instance segmentation (lists of "
            "masks and classes) there is no surrogate: train them on the model's own loss, with transformers' Trainer; "
            "load_metric('box_map') scores boxes in its compute_metrics. Semantic segmentation has a surrogate: logits "
            "[N, C, h, w] with one map of labels [N, H, W], as of SegFormer."
        )
    labels = given[0] if len(given) == 1 else torch.stack(given, dim=-1)
    labels = labels if labels.is_floating_point() else labels.float() if _is_regression(model) else labels.long()
    ignored = ignored_pixel(model) if labels.dim() == 3 and not labels.is_floating_point() else None
    if ignored is not None:
        labels = labels.masked_fill(labels == ignored, IGNORED_LABEL)
    prompt, bare = virtual_tokens(model), unwrapped(model)
    if labels.dim() == 2 and writes_text(bare) and not bare.config.is_encoder_decoder:
        return next_token_labels(F.pad(labels, (prompt, 0), value=IGNORED_LABEL))
    return labels


def _is_regression(model: nn.Module) -> bool:
    """Whether a model puts out one number, and transformers takes the squared error for its loss."""
    config = getattr(unwrapped(model), "config", None)
    return getattr(config, "num_labels", None) == 1 and getattr(config, "problem_type", None) in (None, "regression")


def takes_labels(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether a model's `forward` has parameters for labels, which it need not have.

    Args:
        model: the model, which may be wrapped.
        names: of the labels.
    """
    parameters = inspect.signature(unwrapped(model).forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return takes_any or all(name in parameters for name in names)


def without_labels(model: nn.Module, inputs: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Inputs that spare a model its own loss, which costs as much again where the vocabulary is large.

    Args:
        model: the model, which may be wrapped.
        inputs: what it would be given. They stay as they are where only the model knows what its decoder reads.
        names: which of these are labels.
    """
    given = {name: value for name, value in inputs.items() if name not in names}
    bare = unwrapped(model)
    if writes_text(bare) and bare.config.is_encoder_decoder and "decoder_input_ids" not in given:
        shift = getattr(bare, "prepare_decoder_input_ids_from_labels", None)
        if shift is None:
            return inputs
        given["decoder_input_ids"] = shift(labels=inputs[names[0]])
        if "use_cache" in inspect.signature(bare.forward).parameters:
            given.setdefault("use_cache", False)  # as with labels
    return given


def virtual_tokens(model: nn.Module) -> int:
    """How many learned tokens an adapter (PEFT's prompt tuning) puts before a text, for which there are logits, too."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    adapter = getattr(model, "active_peft_config", None)
    if adapter is None or not adapter.is_prompt_learning or adapter.peft_type == "PREFIX_TUNING":
        return 0
    return adapter.num_virtual_tokens


def writes_by_itself(model: nn.Module) -> bool:
    """Whether a model has a `generate` of its own, as Whisper, which takes away what texts start from and their end,
    and gives the same text again where several are wanted.

    Args:
        model: the model, which may be wrapped.
    """
    return any(kind.__name__ == "WhisperGenerationMixin" for kind in type(unwrapped(model)).__mro__)


def tokenizer_of(processing_class: Any, data_collator: Any = None) -> Any:
    """What decodes token ids: a tokenizer, that of a processor or, failing these, of the collator; None without one.

    Args:
        processing_class, data_collator: of a Trainer.
    """
    for holder in (processing_class, data_collator):
        for found in (holder, *(getattr(holder, name, None) for name in ("tokenizer", "processor"))):
            found = getattr(found, "tokenizer", found)  # of a processor, which decodes by that
            if hasattr(found, "batch_decode") and hasattr(found, "pad_token_id"):
                return found
    return None
