"""Deciding for a model that is trained already, from files: its logits on held-out examples, and its folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedModel

from ..metrics import Metric
from ..predictions.tables import ENDINGS, ScoredLabels, logits_of, read_table, scored_labels
from .base import FILE
from .folding import fold
from .tuning import TunedDecision, tune_decision


def read_predictions(
    path: str | Path, scores: Sequence[str] | None = None, labels: Sequence[str] | None = None
) -> ScoredLabels:
    """Logits and labels from the arrays `logits` and `labels` of an .npz file, or from the columns of a table.

    Args:
        path: an .npz, .csv, .tsv or .parquet file.
        scores, labels: of a table, the names of columns, see `scored_labels`.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for another file, other arrays, or columns as `scored_labels` refuses them.
    """
    ending = Path(path).suffix.lower()
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if ending not in (".npz", *ENDINGS) or not Path(path).is_file():
        raise ValueError(
            f"{path} is no .npz, .csv, .tsv or .parquet file: write one with numpy.savez('predictions.npz', logits=...,"
            " labels=...), such as what Trainer.predict gives for examples that the model was not trained on, or a "
            "table with a column of scores for each class and one called label."
        )
    if ending in ENDINGS:
        return scored_labels(read_table(path), scores, labels)
    with np.load(path) as arrays:
        if not {"logits", "labels"} <= set(arrays):
            raise ValueError(f"{path} holds {sorted(arrays)}, but the arrays 'logits' and 'labels' are wanted.")
        logits, targets = arrays["logits"], arrays["labels"]
    if targets.dtype.kind not in "iu" or logits.dtype.kind != "f":
        raise ValueError(
            f"{path} wants logits of floats and labels of integers, but has {logits.dtype}, {targets.dtype}."
        )
    return logits_of(torch.from_numpy(logits.astype(np.float64)), torch.from_numpy(targets.astype(np.int64)))


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
    read = read_predictions(predictions)
    found = tune_decision(read.logits, read.labels, metric)
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
