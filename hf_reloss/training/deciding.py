"""Tuning what a trainer's model decides for or writes, and putting the rule into the model."""

from itertools import chain
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, send_to_device
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Seq2SeqTrainer, Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from ..decisions.base import DecisionRule
from ..decisions.consensus import beams, check_writer
from ..decisions.folding import fold
from ..decisions.text_tuning import TunedTexts, tuned_texts
from ..decisions.tuning import TunedDecision, tune_decision
from ..metrics import Metric, load_metric
from ..metrics.adapters import EvaluationMetrics
from ..metrics.base import IGNORED_LABEL
from ..predictions.dataset import decoded
from ..predictions.models import metric_for, tokenizer_of, unwrapped

DECISION = "decision"
"""The prefix of what is measured where a decision is tuned, which is no evaluation of anybody's."""

FEW = 64
"""Examples by which it is checked that a model decides as its rule does."""


def judged_by(trainer: Any, dataset: Any, metric: Metric | Any) -> tuple[Any, Metric]:
    """Examples and a metric to tune a decision by, those of the run where None is given.

    Raises:
        ValueError: where there are none.
    """
    dataset = trainer.eval_dataset if dataset is None else dataset
    metric = trainer.metric if metric is None else metric_for(trainer.model, metric)
    if dataset is None or metric is None:
        lacking = "examples, dataset= or eval_dataset" if dataset is None else "metric=, such as 'f1'"
        raise ValueError(f"A decision is tuned on held-out examples by a metric: it wants {lacking}.")
    return dataset, metric


def tuned_decision(trainer: Trainer, dataset: Any, metric: Metric) -> tuple[TunedDecision, DecisionRule | None]:
    """Tunes the decision of a trainer's model on a data set, by a metric.

    Returns:
        What it has come to, and the rule if it is not in the model now.

    Raises:
        ValueError: for a model that puts out no logits [n, C], or labels that are not one for each example; for a key
            of a `compute_metrics` that gets more than these.
    """
    logits, labels, in_tuple = _logits_and_labels(trainer, dataset)
    if isinstance(metric, EvaluationMetrics):
        metric = metric.of_logits(trainer.preprocess_logits_for_metrics, in_tuple)
    # A slow metric is asked for as long as there is time: what the first process found holds for all.
    (found,) = broadcast_object_list([tune_decision(logits, labels, metric, seed=trainer.args.seed)])
    if found.rule is None:
        return found, None
    model: nn.Module = _bare(trainer)
    offsets = found.rule.offsets()
    if offsets is None or not hasattr(dataset, "__len__"):
        return found, found.rule
    few = [dataset[row] for row in range(min(FEW, len(dataset)))]
    if not fold(model, offsets):
        return found, found.rule
    folded, *_ = _logits_and_labels(trainer, few)
    if torch.allclose(folded, logits[: len(few)] + offsets.to(logits), atol=1e-3):
        return found, None
    fold(model, -offsets)  # that layer does not make the logits
    return found, found.rule


def _logits_and_labels(trainer: Trainer, dataset: Any) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """What a model puts out for a data set, its labels, and whether there is more than the logits."""
    kept = trainer.preprocess_logits_for_metrics, trainer.compute_metrics
    trainer.preprocess_logits_for_metrics = trainer.compute_metrics = None  # which may leave no logits
    try:
        output = trainer.predict(dataset, metric_key_prefix=DECISION)
    finally:
        trainer.preprocess_logits_for_metrics, trainer.compute_metrics = kept
    in_tuple = isinstance(output.predictions, tuple)
    logits = output.predictions[0] if in_tuple else output.predictions
    logits, labels = np.asarray(logits), np.asarray(output.label_ids)
    several = logits.ndim == 2 and labels.shape == logits.shape
    if not several and (logits.ndim not in (1, 2) or labels.shape != logits.shape[:1]):
        raise ValueError(
            "A decision is tuned for classifiers, logits [n, C] and labels [n] or, several for each example, [n, C], "
            f"but this model and data have {list(logits.shape)} and {list(labels.shape)}."
        )
    found = torch.from_numpy(labels)
    found = found.float() if found.is_floating_point() and not several else found.long()
    return torch.from_numpy(logits).float(), found, in_tuple


def tuned_text_decision(trainer: Seq2SeqTrainer, dataset: Any, metric: Metric, num_beams: int) -> TunedTexts:
    """Tunes which of a beam's texts a trainer's model writes, on a data set, by a metric.

    A key of `compute_metrics` scores token ids, padded to one length.

    Raises:
        ValueError: for a model that is no encoder-decoder, is Whisper or is divided over processes, without a
            tokenizer, for a key of a `compute_metrics` that gets more than ids, or as `tune_text_decision` does.
    """
    model, tokenizer = _bare(trainer), tokenizer_of(trainer.processing_class, trainer.data_collator)
    check_writer(model)
    if not model.config.is_encoder_decoder:
        raise ValueError(
            f"It is tuned which text an encoder-decoder writes, but this is {type(model).__name__}: let it generate "
            "with num_return_sequences and output_scores, and pass texts and scores to tune_text_decision."
        )
    if tokenizer is None:
        raise ValueError("What is written is decoded by a tokenizer: pass processing_class=.")
    if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
        raise ValueError("FSDP or DeepSpeed's ZeRO-3 divides the model: tune the decision in one process, afterwards.")
    texts, scores, ids, labels = _written(trainer, dataset, tokenizer, num_beams)
    if isinstance(metric, EvaluationMetrics):
        scored: tuple[Any, Any, Metric] = ids, labels, _of_ids(metric)
    else:
        scored = list(chain(*texts)), decoded(torch.from_numpy(labels), tokenizer), metric
    (tuned,) = broadcast_object_list([tuned_texts(texts, scores, *scored, trainer.args.seed)])
    return tuned


def _bare(trainer: Trainer) -> Any:
    assert trainer.model is not None
    return unwrapped(trainer.model)


def _of_ids(metric: EvaluationMetrics) -> Metric:
    """The key of a `compute_metrics` that gets token ids [n, T] and labels [n, L]."""
    if metric.beside or metric.batch_size is not None:
        raise ValueError(
            f"compute_metrics gets {', '.join(metric.beside) or 'a list of batches'} beside token ids and labels: no "
            f"decision is tuned by {metric.name}. Pass metric= one of texts, such as 'sacrebleu'."
        )

    def score(predictions: np.ndarray, references: np.ndarray) -> float:
        return metric.score_one([predictions], [references])

    return load_metric(score, name=metric.name, higher_is_better=metric.higher_is_better)


def _written(
    trainer: Seq2SeqTrainer, dataset: Any, tokenizer: Any, number: int
) -> tuple[list[list[str]], torch.Tensor, np.ndarray, np.ndarray]:
    """What a trainer's model writes for n examples: texts [n][K] and scores [n, K] float32 of beam search, ids
    [n · K, T] and labels [n, L] int64, of which -100 is padding."""
    args: Any = trainer.args
    model, longest = _bare(trainer), args.generation_max_length
    limit = {} if longest is None else {"max_length": longest}
    rows: list[tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]] = []
    model.eval()
    for batch in trainer.get_test_dataloader(dataset):
        given = send_to_device(batch, args.device)
        labels = given[trainer.label_names[0]].cpu()
        prompt = {name: x for name, x in given.items() if name not in (*trainer.label_names, "decoder_input_ids")}
        with torch.no_grad():
            ids, texts, scores = beams(model.generate, tokenizer, number, **prompt, **limit)
        rows += trainer.accelerator.gather_for_metrics(
            [*zip(texts, scores.cpu(), ids.cpu(), labels, strict=True)], use_gather_object=True
        )
    columns: Any = (list(column) for column in zip(*rows, strict=True))
    texts, scores, ids, labels = columns
    return texts, torch.stack(scores), _padded(list(chain(*ids))), _padded(labels)


def _padded(rows: list[torch.Tensor]) -> np.ndarray:
    return pad_sequence(rows, batch_first=True, padding_value=IGNORED_LABEL).numpy()
