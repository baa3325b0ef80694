"""What is watched while a run goes on: the parts of the loss, that they are finite, and the surrogate's alignment."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm
from transformers.utils import logging

from ..learning.alignment import alignment, gathered_columns
from ..losses.base import Evidence
from ..losses.hand_made.base import HandMadeLoss
from ..metrics.base import IGNORED_LABEL
from ..predictions.dataset import recorded_dataset
from ..predictions.models import is_ctc
from ..predictions.recorder import PredictionRecorder
from ..progress import without_bars
from ..surrogates.base import Surrogate
from .arguments import SURROGATE_LOSS
from .batch import Batch

logger = logging.get_logger(__name__)

MOST_WATCHED, MOST_BYTES = 4_096, 2**26
"""How many predictions of an evaluation, in all processes together, the alignment is measured on at most."""

DRIFTED = 0.5
"""The alignment below which a surrogate is no good as a loss, as `SurrogateTrainingArguments.min_alignment` has it."""


class RunMonitor:
    """Watches a run: logs `loss/surrogate` and `loss/model` apart, finds out when it has diverged, and measures
    `eval_alignment`: Spearman's rank correlation, over groups of the predictions of an evaluation, of the negated loss
    with the metric. The loss is the surrogate or, as long as one is still to be learned, the task's usual loss.

    Args:
        trainer: whose run it is.

    Attributes:
        failure: why the run has to end, once it has diverged.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.failure: str | None = None
        self._noted: dict[str, tuple[torch.Tensor, int]] = {}
        self._evidence_range: tuple[torch.Tensor, torch.Tensor] | None = None
        self._evaluated_losses: list[torch.Tensor] | None = None
        self._seen: PredictionRecorder | None = None
        self._warned: set[str] = set()

    def start(self) -> None:
        """A run starts."""
        self.failure, self._noted, self._evidence_range = None, {}, None
        self._warned = set()

    def _warn(self, message: str) -> None:
        """Warns, of the same once in a run."""
        if message not in self._warned:
            logger.warning(message)
        self._warned.add(message)

    def note(
        self, loss: torch.Tensor, parts: dict[str, torch.Tensor], evidence: Evidence | None, labels: torch.Tensor
    ) -> None:
        """Takes note of a training loss; one that is not finite ends the run before the next step of the optimizer.

        Args:
            loss: the sum.
            parts: by name, `model` or `surrogate`, weighed as in the sum over micro-batches and processes.
            evidence: that of the surrogate.
            labels: of the batch.
        """
        for name, part in parts.items():
            total, number = self._noted.get(name, (0.0, 0))
            self._noted[name] = (total + part.detach(), number + 1)
        self._evidence_range = None
        if evidence is not None and evidence.outputs.numel():
            self._evidence_range = evidence.outputs.detach().aminmax()
        if self.failure is None and not loss.isfinite():
            values = ", ".join(f"{part.item():.4g} by the {name}" for name, part in parts.items())
            self.failure = f"The loss is {loss.item()} ({values}) {self._circumstances()}"
            if labels.is_floating_point() and labels.dim() < 3 and not labels.isfinite().all():
                self.failure = (
                    f"The loss is {loss.item()} at step {self.trainer.state.global_step + 1}, for "
                    f"{int((~labels.isfinite()).sum())} of {labels.numel()} labels of the batch are not finite: leave "
                    f"such examples out of the data, or set their label to {IGNORED_LABEL} where the loss ignores that."
                )

    def check_gradients(self, model: nn.Module) -> bool:
        """Whether the run has diverged, in any process: by its loss, or by the gradients of the step at hand."""
        if getattr(self.trainer.accelerator, "scaler", None) is None:  # which skips such steps itself
            gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
            norm = get_total_norm(gradients) if gradients else torch.zeros(())
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of weights that FSDP divides
            if self.failure is None and not norm.isfinite():
                self.failure = f"The gradient's norm is {float(norm)} {self._circumstances()}"
        failed = torch.tensor(float(self.failure is not None), device=self.trainer.args.device)
        if self.trainer.args.world_size > 1:
            failed = self.trainer.accelerator.reduce(failed, "sum")
        if failed > 0 and self.failure is None:
            self.failure = f"Loss or gradient of another process are not finite {self._circumstances()}"
        return self.failure is not None

    def _circumstances(self) -> str:
        surrogate, span = self.trainer.surrogate, self._evidence_range
        where = f"at step {self.trainer.state.global_step + 1}"
        if surrogate is not None and span is not None:
            config = surrogate.config
            where += (
                f", of the surrogate {config.origin or type(surrogate).__name__} ({config.architecture!r}, for "
                f"{config.metric or 'a metric that is not recorded'}), on evidence between {span[0].item():.4g} and "
                f"{span[1].item():.4g}"
            )
        if is_ctc(self.trainer.model):
            where += " (of CTC it is infinite where labels are more than frames: leave such examples out, or set the "
            where += "model's config.ctc_zero_infinity=True)"
        return (
            f"{where}: the model has diverged. Go on from the last checkpoint with a lower learning rate, a smaller "
            "max_grad_norm, a longer warm-up, or in bf16 or float32 instead of fp16."
        )

    def parts(self) -> dict[str, float]:
        """The parts of the loss since they were asked for last, by the names that a log has for them."""
        noted, self._noted = self._noted, {}
        reduce = self.trainer.accelerator.reduce
        return {f"loss/{name}": float(reduce(total / number, "mean")) for name, (total, number) in noted.items()}

    @contextlib.contextmanager
    def evaluation(self, found: dict[str, float]) -> Iterator[None]:
        """An evaluation is made here.

        Args:
            found: into which comes what has been measured, by names without a prefix.
        """
        strategy, most = self.trainer.strategy, MOST_WATCHED // self.trainer.args.world_size
        self._seen = seen = PredictionRecorder(most) if strategy.watches() and most > 1 else None
        if seen is not None:
            seen.kind = strategy.kind  # logits may be meant as embeddings
        self._evaluated_losses = []
        try:
            yield
        finally:
            losses, self._evaluated_losses, self._seen = self._evaluated_losses, None, None
        if losses:
            found[SURROGATE_LOSS] = torch.cat(losses).mean().item()
        measured = None
        try:
            with without_bars(self.trainer.args.disable_tqdm):
                measured = None if seen is None else self.alignment(seen, strategy.surrogate)
        except Exception as error:  # also of a metric that is somebody's own: an evaluation is not lost to this
            self._warn(f"The alignment with {strategy.metric.name} could not be measured: {error!r}")
        if measured is None and (self.trainer.args.metric_for_best_model or "").removeprefix("eval_") == "alignment":
            measured = 0.0  # a checkpoint is chosen by it, so it must not be missing
        if measured is not None:
            found["alignment"] = measured

    @contextlib.contextmanager
    def recording(self, recorder: PredictionRecorder) -> Iterator[None]:
        """What is predicted here, in evaluation, is recorded, and nothing else measured."""
        recorder.kind, self._seen = self.trainer.strategy.kind, recorder
        try:
            yield
        finally:
            self._seen = None

    def note_evaluated(self, loss: torch.Tensor, batch: Batch) -> None:
        """Takes note of the surrogate's loss of a batch of an evaluation, as Trainer does of the loss."""
        if self._evaluated_losses is not None:
            repeated = loss.detach().repeat(len(batch.labels))
            self._evaluated_losses.append(self.trainer.accelerator.gather_for_metrics(repeated).cpu())

    def keep(self, batch: Batch, outputs: Any) -> None:
        """Keeps the predictions of a batch of an evaluation, to measure the alignment on."""
        seen, strategy = self._seen, self.trainer.strategy
        if seen is None or not strategy.watches():  # which the first batch may have shown
            return
        first = not len(seen)
        try:
            seen.add(outputs, batch.labels, *strategy.beside(batch, outputs))
        except ValueError as error:  # such as of answers without the text that they are of
            self._seen = None
            logger.warning(f"The alignment with {strategy.metric.name} is not measured: {error}")
            return
        if first and len(seen):
            size = sum(column[0].nbytes for column in seen.rows().values())
            most = MOST_BYTES // self.trainer.args.world_size // size
            seen.max_predictions = max(2, min(seen.max_predictions, most))

    def alignment(self, seen: PredictionRecorder, surrogate: Surrogate | None) -> float | None:
        """Spearman's correlation of a negated loss with the metric, over groups of what all processes have seen.

        Args:
            seen: predictions.
            surrogate: the loss; None for the one that the task is usually trained on.

        Returns:
            None for too few predictions.

        Raises:
            ValueError: if they cannot be ranked; and what a metric of somebody's own raises.
        """
        columns, kind = gathered_columns(seen), seen.kind
        if columns is None or kind is None:
            return None
        strategy = self.trainer.strategy
        metric = strategy.metric
        predictions = recorded_dataset(kind, columns, tokenizer=strategy.decoder(kind, metric), metric=metric)
        found = alignment(predictions, metric, kind, surrogate, device=self.trainer.args.device)
        # Elsewhere no labels are replaced, so the groups of one evaluation differ by chance alone.
        learned = surrogate is not None and not isinstance(surrogate.network, HandMadeLoss)
        if kind.scores_logits and learned and found < DRIFTED:
            logger.warning(
                f"The surrogate's rank correlation with {metric.name} is {found:.3f} on these predictions: it has "
                "drifted from the metric. Learn it again from predictions like these, with surrogate='auto' and "
                "refresh_steps."
            )
        return found
