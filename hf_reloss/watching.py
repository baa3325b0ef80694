"""What is watched while a run goes on: the parts of the loss, that they are finite, and the surrogate's alignment."""

import sys
from logging import INFO
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging

from .groups import draw_groups
from .losses.base import HandMadeLoss
from .metrics import Metric
from .ranking import spearman
from .recording import PredictionRecorder, joined, recorded_dataset
from .surrogates.base import Surrogate
from .surrogates.network import Evidence

logger = logging.get_logger(__name__)

MOST_PREDICTIONS, MOST_BYTES = 4_096, 2**26
"""How many predictions of an evaluation, in all processes together, the alignment is measured on at most."""

FEWEST_PREDICTIONS = 80
NUM_GROUPS, LARGEST_GROUP = 128, 128

DRIFTED = 0.5
"""The alignment below which a surrogate is no good as a loss, as `SurrogateTrainingArguments.min_alignment` has it."""


class WatchesRun:
    """The part of a Trainer that logs `loss/surrogate` and `loss/model`, stops a run that has diverged, and measures
    `eval_alignment`: Spearman's rank correlation, over groups of the predictions of an evaluation, of the negated
    surrogate with its metric.

    Attributes:
        surrogate: the loss.
        watched_metric: what it is to be aligned with; None if that is not known.
    """

    surrogate: Surrogate | None
    watched_metric: Metric | None = None

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
        watches = self.surrogate is not None and self.watched_metric is not None
        most = MOST_PREDICTIONS // self.args.world_size
        self._heard = heard = PredictionRecorder(most) if watches and most > 1 else None
        if heard is not None:
            heard.kind = type(self.surrogate)  # logits may be meant as embeddings
        try:
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            self._heard = None
        if heard is not None:
            alignment = self._alignment(heard)
            if alignment is not None:
                output.metrics[f"{metric_key_prefix}_alignment"] = alignment
        return output

    def _hear(self, outputs: Any, labels: torch.Tensor, inputs: dict[str, Any]) -> None:
        """Takes in a batch of an evaluation."""
        heard = getattr(self, "_heard", None)
        if heard is None:
            return
        first = not len(heard)
        try:
            heard.add(outputs, labels, self.state.global_step / max(self.state.max_steps, 1), inputs)
        except ValueError as error:  # such as of answers without the text that they are of
            self._heard = None
            logger.warning(f"The alignment with {self.watched_metric.name} is not measured: {error}")
            return
        if first and len(heard):
            size = sum(column[0].nbytes for column in heard.rows().values())
            heard.max_predictions = max(2, min(heard.max_predictions, MOST_BYTES // self.args.world_size // size))

    def _alignment(self, heard: PredictionRecorder) -> float | None:
        """The alignment over groups of what was heard in all processes; None if it cannot be measured."""
        parts = [part for part in gather_object([heard.rows() if len(heard) else None]) if part is not None]
        number = sum(len(part["labels"]) for part in parts)
        if number < FEWEST_PREDICTIONS:
            return None
        columns = {name: joined([part[name] for part in parts]) for name in parts[0] if name != "index"}
        kind, metric, surrogate = type(self.surrogate), self.watched_metric, self.surrogate
        try:
            predictions = recorded_dataset(kind, columns, tokenizer=self._decoding(kind), metric=metric)
            size = min(LARGEST_GROUP, max(2, number // 10))
            groups = draw_groups(predictions, metric, num_groups=NUM_GROUPS, group_size=size)
        except Exception as error:  # also of a metric that is somebody's own: an evaluation is not lost to this
            logger.warning(f"The alignment with {metric.name} could not be measured: {error!r}")
            return None
        losses = []
        with torch.no_grad():
            for first in range(0, NUM_GROUPS, 32):
                batch = groups.__getitems__(list(range(first, min(first + 32, NUM_GROUPS))))
                batch = {name: column.to(self.args.device) for name, column in batch.items()}
                losses.append(surrogate(surrogate.evidence(batch, batch["labels"])).cpu())
        alignment = spearman(-torch.cat(losses).double(), groups.scores.double()).item()
        # Elsewhere no labels are replaced, so the groups of one evaluation differ by chance alone.
        learned = not isinstance(surrogate.network, HandMadeLoss)
        if kind.task == "classification" and learned and alignment < DRIFTED:
            logger.warning(
                f"The surrogate's rank correlation with {metric.name} is {alignment:.3f} on these predictions: it has "
                "drifted from the metric. Learn it again from predictions like these, with surrogate='auto' and "
                "refresh_steps."
            )
        return alignment
