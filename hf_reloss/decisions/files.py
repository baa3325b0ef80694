"""Deciding for a model that is trained already, from files: its logits on held-out examples, and its folder."""

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedModel

from ..metrics import Metric
from .base import FILE
from .folding import fold
from .tuning import TunedDecision, tune_decision


def read_predictions(path: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [n, C] and labels, [n] or [n, C], from the arrays `logits` and `labels` of an .npz file.

    Raises:
        ValueError: for another file, or other arrays.
    """
    if Path(path).suffix != ".npz" or not Path(path).is_file():
        raise ValueError(
            f"{path} is no .npz file: write one with numpy.savez('predictions.npz', logits=..., labels=...), such as "
            "what Trainer.predict gives for examples that the model was not trained on."
        )
    with np.load(path) as arrays:
        if not {"logits", "labels"} <= set(arrays):
            raise ValueError(f"{path} holds {sorted(arrays)}, but the arrays 'logits' and 'labels' are wanted.")
        logits, labels = arrays["logits"], arrays["labels"]
    if labels.dtype.kind not in "iu" or logits.dtype.kind != "f":
        raise ValueError(
            f"{path} wants logits of floats and labels of integers, but has {logits.dtype}, {labels.dtype}."
        )
    return torch.from_numpy(logits.astype(np.float64)), torch.from_numpy(labels.astype(np.int64))


def decide_for(
    predictions: str | Path, metric: Metric, output: str | Path, model: str | None = None
) -> tuple[TunedDecision, str]:
    """Tunes the decision of a model by a metric, and writes what came of it.

    Args:
        predictions: as `read_predictions` takes it.
        metric: by which it is tuned.
        output: a folder, written only if the decision gains: for the model with the rule in the bias of its last linear
            layer of as many outputs, with its tokenizer and whatever else belongs to it, or for `decision.json`.
        model: a folder or Hub id of the classifier; None for the rule alone.

    Returns:
        What it has come to, and where the rule is, in words.

    Raises:
        ValueError: as `read_predictions` and `tune_decision` do; for a model with another number of classes.
    """
    found = tune_decision(*read_predictions(predictions), metric)
    if found.rule is None:
        return found, "Nothing was written."
    if model is not None:
        loaded = _classifier(model)
        classes, wanted = loaded.config.num_labels, found.rule.classes
        if classes != wanted:
            raise ValueError(f"{model} has {classes} classes, but {predictions} has logits of {wanted}.")
        offsets = found.rule.offsets()
        in_bias = offsets is not None and fold(loaded, offsets)
        _copy_all_but_weights(model, output)
        loaded.save_pretrained(output)
        if in_bias:
            return found, f"The model in {output} has the rule in the bias of its last layer."
    found.rule.save(output)
    load = f"DecisionRule.load({str(output)!r})"
    return found, f"The rule is {Path(output) / FILE}: {load} has .decide(logits) and .attach(model)."


def _copy_all_but_weights(where: str, output: str | Path) -> None:
    """The tokenizer, the processor and so on, so that a pipeline finds them; no rule that was there before."""
    weights = ("*.safetensors", "*.bin", "*.index.json", "*.h5", "*.msgpack", "*.onnx")
    folder = where if Path(where).is_dir() else snapshot_download(where, ignore_patterns=list(weights))
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns(*weights, FILE, ".*"), dirs_exist_ok=True)


def _classifier(where: str) -> PreTrainedModel:
    """The model, of the class that its configuration names."""
    config = AutoConfig.from_pretrained(where)
    kind = getattr(transformers, (config.architectures or [""])[0], None)
    if kind is None:
        raise ValueError(f"{where} names no class of transformers, so it cannot be loaded here: leave --model out.")
    loaded: PreTrainedModel = kind.from_pretrained(where)
    return loaded
