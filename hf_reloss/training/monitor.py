"""What is watched while a run goes on: the parts of the loss, that they are finite, and the surrogate's alignment."""

import sys
from logging import INFO
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging

from ..learning.alignment import alignment, gathered_columns
from ..losses.base import Evidence
from ..losses.hand_made.base import HandMadeLoss
from ..metrics import Metric
from ..predictions.dataset import recorded_dataset
from ..predictions.recorder import PredictionRecorder
from ..surrogates.base import Surrogate
from .arguments import SURROGATE_LOSS

logger = logging.get_logger(__name__)

MOST_WATCHED, MOST_BYTES = 4_096, 2**26
"""How many predictions of an evaluation, in all processes together, the alignment is measured on at most."""

DRIFTED = 0.5
"""The alignment below which a surrogate is no good as a loss, as `SurrogateTrainingArguments.min_alignment` has it."""


class WatchesRun:
    """The part of a Trainer that logs `loss/surrogate` and `loss/model`, stops a run that has diverged, and measures
    `eval_alignment`: Spearman's rank correlation, over groups of the predictions of an evaluation, of the negated loss
    with the metric. The loss is the surrogate or, as long as one is still to be learned, the task's usual loss.

    Attributes:
        surrogate: the loss; None for the model's own.
        recorder: of the predictions to learn from; None with a given surrogate.
        watched_metric: what the loss is to be aligned with; None if that is not known.
    """

    surrogate: Surrogate | None
    recorder: PredictionRecorder | None
    watched_metric: Metric | None = None
    _evaluated_losses: list[torch.Tensor] | None = None

    def _tell(self, event: str) -> None:
        """Says in a line what has happened: into the log or, if that is quiet, above the progress bar."""
        if logger.isEnabledFor(INFO):
            logger.info(event)
        elif self.is_world_process_zero() and not self.args.disable_tqdm:
            tqdm.write(event, file=sys.stderr)

    def _watch(self, loss: torch.Tensor, parts: dict[str, torch.Tensor], evidence: Evidence | None) -> None:
        """Takes note of a training loss.

        Args:
            loss: the sum.
            parts: by name, `model` or `surrogate`, weighed as in the sum over micro-batches and processes.
            evidence: that of the surrogate.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        noted = self.__dict__.setdefault("_noted", {})
        for name, part in parts.items():
            total, number = noted.get(name, (0.0, 0))
            noted[name] = (total + part.detach(), number + 1)
        has_range = evidence is not None and evidence.outputs.numel()
        self._evidence_range = evidence.outputs.detach().aminmax() if has_range else None
        if not loss.isfinite():
            values = ", ".join(f"{part.item():.4g} by the {name}" for name, part in parts.items())
            raise FloatingPointError(f"The loss is {loss.item()} ({values}) {self._circumstances()}")

    def _circumstances(self) -> str:
        surrogate, span = self.surrogate, getattr(self, "_evidence_range", None)
        told = f"at step {self.state.global_step + 1}"
        if surrogate is not None and span is not None:
            config = surrogate.config
            told += (
                f", of the surrogate {config.origin or type(surrogate).__name__} ({config.architecture!r}, for "
                f"{config.metric or 'a metric that is not recorded'}), on evidence between {span.min.item():.4g} and "
                f"{span.max.item():.4g}"
            )
        return (
            f"{told}: the model has diverged. Go on from the last checkpoint with a lower learning rate, a smaller "
            "max_grad_norm, a longer warm-up, or in bf16 or float32 instead of fp16."
        )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = getattr(self.accelerator, "scaler", None) is not None  # which skips such steps
        if norm is not None and not scaled and not torch.as_tensor(norm).isfinite():
            raise FloatingPointError(f"The gradient's norm is {float(norm)} {self._circumstances()}")
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            for name, (total, number) in self.__dict__.pop("_noted", {}).items():
                logs[f"loss/{name}"] = float(self.accelerator.reduce(total / number, "mean"))
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any):
        watches = self.recorder is not None or (self.surrogate is not None and self.watched_metric is not None)
        most = MOST_WATCHED // self.args.world_size
        self._evaluated_predictions = seen = PredictionRecorder(most) if watches and most > 1 else None
        if seen is not None:
            # Logits may be meant as embeddings.
            seen.kind = type(self.surrogate) if self.surrogate is not None else self.recorder.kind
        self._evaluated_losses = []
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            losses, self._evaluated_losses = self._evaluated_losses, None
            self._evaluated_predictions = None
        if losses:
            output.metrics[f"{metric_key_prefix}_{SURROGATE_LOSS}"] = torch.cat(losses).mean().item()
        found = None
        try:
            found = None if seen is None else self._alignment(seen, self.surrogate)
        except Exception as error:  # also of a metric that is somebody's own: an evaluation is not lost to this
            logger.warning(f"The alignment with {self.watched_metric.name} could not be measured: {error!r}")
        if found is None and (self.args.metric_for_best_model or "").removeprefix("eval_") == "alignment":
            found = 0.0  # a checkpoint is chosen by it, so it must not be missing
        if found is not None:
            output.metrics[f"{metric_key_prefix}_alignment"] = found
        return output

    def _note_evaluated(self, loss: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes note of the surrogate's loss of a batch of an evaluation, as Trainer does of the loss."""
        if self._evaluated_losses is not None:
            self._evaluated_losses.append(self.accelerator.gather_for_metrics(loss.detach().repeat(len(labels))).cpu())

    def _keep_evaluated(self, outputs: Any, labels: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Keeps the predictions of a batch of an evaluation, to measure the alignment on."""
        seen = getattr(self, "_evaluated_predictions", None)
        if seen is None:
            return
        if self.recorder is not None:
            self._find_metric(outputs, labels, inputs)
        first = not len(seen)
        try:
            seen.add(outputs, labels, *self._beside(outputs, inputs))
        except ValueError as error:  # such as of answers without the text that they are of
            self._evaluated_predictions = None
            logger.warning(f"The alignment with {self.watched_metric.name} is not measured: {error}")
            return
        if first and len(seen):
            size = sum(column[0].nbytes for column in seen.rows().values())
            seen.max_predictions = max(2, min(seen.max_predictions, MOST_BYTES // self.args.world_size // size))

    def _alignment(self, seen: PredictionRecorder, surrogate: Surrogate | None) -> float | None:
        """Spearman's correlation of a negated loss with the metric, over groups of what all processes have seen.

        Args:
            seen: predictions.
            surrogate: the loss; None for the one that the task is usually trained on.

        Returns:
            None for too few predictions.

        Raises:
            ValueError: if they cannot be ranked; and what a metric of somebody's own raises.
        """
        columns = gathered_columns(seen)
        if columns is None:
            return None
        kind, metric = seen.kind, self.watched_metric
        predictions = recorded_dataset(kind, columns, tokenizer=self._decoding(kind, metric), metric=metric)
        found = alignment(predictions, metric, kind, surrogate, device=self.args.device)
        # Elsewhere no labels are replaced, so the groups of one evaluation differ by chance alone.
        learned = surrogate is not None and not isinstance(surrogate.network, HandMadeLoss)
        if kind.task == "classification" and learned and found < DRIFTED:
            logger.warning(
                f"The surrogate's rank correlation with {metric.name} is {found:.3f} on these predictions: it has "
                "drifted from the metric. Learn it again from predictions like these, with surrogate='auto' and "
                "refresh_steps."
            )
        return found
