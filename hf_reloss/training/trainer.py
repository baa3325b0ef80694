"""ReLossTrainer and ReLossSeq2SeqTrainer: Trainers whose loss is a surrogate of the metric."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import (
    EvalPrediction,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput

from ..decisions.consensus import BEAMS, Consensus
from ..decisions.text_tuning import TunedTexts
from ..decisions.tuning import TunedDecision
from ..metrics import Metric
from ..predictions.models import tokenizer_of
from .arguments import ReLossSeq2SeqTrainingArguments, ReLossTrainingArguments
from .deciding import judged_by, tuned_text_decision
from .mixin import ReLossMixin


class ReLossTrainer(ReLossMixin, Trainer):
    """A Trainer that trains on a surrogate of the metric.

    Everything that a Trainer does it does: accumulation, several processes, mixed precision, evaluation, checkpoints.
    The loss of a batch is the surrogate's of its predictions; a step's is that of all its examples, in all processes.
    `loss/surrogate` and `loss/model` are logged apart, and `eval_alignment` says in every evaluation how well the loss
    ranks as its metric does. What a model puts out as `auxiliary_loss`, a scalar, is added to it: the part of its loss
    that no surrogate is for, such as that of a length that it predicts.

    `eval_loss` is what early stopping, plateau schedulers and scripts that report perplexity take it for: where the
    loss changes during the run, and for models that write text, it is the model's own loss, and the surrogate's is
    `eval_loss/surrogate`. With a given surrogate it is that surrogate's.

    Args:
        model: a `PreTrainedModel` or any `nn.Module`; for `"auto"` and other losses that come later in a run, one that
            puts out a loss of its own where it is given labels.
        args: `ReLossTrainingArguments`, or any `TrainingArguments`.
        surrogate: the loss. A `Surrogate` (which is frozen), a folder or Hub id of one, or one of these words:
            `"auto"`: the first stretch of a run is on the model's own loss, its predictions are recorded, a surrogate
            is learned from them, and the rest is trained on that; see `Learned` for what happens where that
            fails. It is saved in the folder `surrogate` of every checkpoint and of the final model. Each call of
            `train` learns its own. A model that writes text keeps half of its own loss (`model_loss_share`).
            `"approximation"`: likewise, but what is learned is a network of sets that regresses the metric, in turn
            with the model (Grabocka et al. 2019): again after every `refresh_steps`, by default as many as the first
            stretch has.
            `"ala"`: a controller adapts it, see `AdaptiveLossTrainer`.
            `"policy"` or `"minimum_risk"`: the model writes several texts for each example in training, and those that
            score better by the metric become likelier, by policy gradients or by their expected risk; in evaluation
            the loss is the model's own. See `hf_reloss.training.strategies.own_texts`.
            The name of a hand-made loss, see `hf_reloss.losses`; those that weigh classes count the labels of
            `train_dataset`. Or any function or module of (outputs, labels) or (outputs, labels, num_items_in_batch)
            that returns a mean, see `OfFunction`; or a `LossStrategy` of your own.
        metric: what `"auto"` learns: a key of what `compute_metrics` returns (with or without `eval_`), a name or
            whatever else `load_metric` takes. Of a name that `compute_metrics` gives too, the user's own function
            counts. Of `"policy"` and `"minimum_risk"`: what texts are scored by. Of a given surrogate: the metric that
            it is watched for, by default its own.
        guard: whether the loss that `"auto"` turns to is judged by the metric on development data: after 7 % of the
            run on it the model is compared with what it was before, and where it has become worse, the run goes on
            from there on its own loss. `"strict"`: the first stretch is at least 0.4 of the run; from there the model
            is trained to the end on both losses (1.6 times the steps at most), and the better one is kept. False: no
            guard. A model that writes text, and one that FSDP or DeepSpeed divides, is not guarded.
        guard_dataset: the development data, by default `eval_dataset`. Neither is what results should be reported on.
        data_collator, train_dataset, eval_dataset, processing_class, model_init, compute_loss_func, compute_metrics,
            callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: as for `Trainer`. Texts are
            decoded with the tokenizer, `processing_class`.

    Attributes:
        strategy: the way to train.
        surrogate: the loss, where it is a surrogate and there is one by now.
        metric: which it is to be aligned with, once that is known.
        model_loss_share: of the model's own loss in the sum, 0 to 1.
        loss_report: what came of the last run with `"auto"`, see `LossReport`.
        decision: the rule that the model decides by, if it is not in its last layer.

    Raises:
        ValueError: for label smoothing of a loss that has no share, `"auto"` without a metric, or something that is no
            surrogate.

    Example:
        >>> ReLossTrainer(model, args, train_dataset=data, surrogate="someone/reloss-accuracy")  # doctest: +SKIP
    """

    _default_arguments = ReLossTrainingArguments

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable[..., torch.Tensor] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback | type[TrainerCallback]] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Any, torch.Tensor], Any] | None = None,
        *,
        surrogate: Any = "auto",
        metric: Metric | Any = None,
        guard: bool | str = True,
        guard_dataset: Any = None,
    ):
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            surrogate=surrogate,
            metric=metric,
            guard=guard,
            guard_dataset=guard_dataset,
        )


class ReLossSeq2SeqTrainer(ReLossMixin, Seq2SeqTrainer):
    """A Seq2SeqTrainer that trains on a surrogate of the metric: `ReLossTrainer` for models that write text.

    With `predict_with_generate` it evaluates what the model generates. Under several processes each example is scored
    once, also where the last batch was filled up.

    Args:
        model: an encoder-decoder or a causal language model.
        args: `ReLossSeq2SeqTrainingArguments`, or any `Seq2SeqTrainingArguments`.
        surrogate, metric, guard, guard_dataset: as for `ReLossTrainer`.
        data_collator, train_dataset, eval_dataset, processing_class, model_init, compute_loss_func, compute_metrics,
            callbacks, optimizers, preprocess_logits_for_metrics: as for `Seq2SeqTrainer`. Texts are decoded with the
            tokenizer, `processing_class`.

    Attributes:
        strategy, surrogate, metric, model_loss_share: as of `ReLossTrainer`.

    Raises:
        ValueError: as `ReLossTrainer`.

    Example:
        >>> ReLossSeq2SeqTrainer(model, args, train_dataset=data, surrogate="someone/reloss-bleu")  # doctest: +SKIP
    """

    args: Seq2SeqTrainingArguments
    _default_arguments = ReLossSeq2SeqTrainingArguments

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable[..., torch.Tensor] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback | type[TrainerCallback]] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        preprocess_logits_for_metrics: Callable[[Any, torch.Tensor], Any] | None = None,
        *,
        surrogate: Any = "auto",
        metric: Metric | Any = None,
        guard: bool | str = True,
        guard_dataset: Any = None,
    ):
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            surrogate=surrogate,
            metric=metric,
            guard=guard,
            guard_dataset=guard_dataset,
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        # Seq2SeqTrainer gathers what fills up the last batch, too, which then is scored twice.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, torch.Tensor | None, torch.Tensor | None]:
        if not self.args.predict_with_generate or prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        # Seq2SeqTrainer would take the model's own loss: here it generates, and the loss is the one that is trained on.
        prompt = {name: x for name, x in inputs.items() if name not in (*self.label_names, "decoder_input_ids")}
        with self._deciding():
            _, generated, _ = super().prediction_step(model, prompt, False, ignore_keys, **gen_kwargs)
        labels = send_to_device(inputs.get(self.label_names[0]), self.args.device)
        if labels is None:
            return None, generated, None
        loss, _, _ = super().prediction_step(model, inputs, True, ignore_keys)
        return loss, generated, labels

    def _deciding(self) -> AbstractContextManager[Any]:
        """The model writes what the decision is."""
        if not isinstance(self.decision, Consensus):
            return nullcontext()
        assert self.model is not None
        return self.decision.attach(self.model, tokenizer_of(self.processing_class, self.data_collator))

    def tune_decision(  # type: ignore[override]  # of a model that writes text, another one is tuned
        self, dataset: Any = None, metric: Metric | Any = None, *, num_beams: int = BEAMS
    ) -> TunedTexts | TunedDecision:
        """Tunes which text the model writes, by the metric; nothing is trained.

        Beam search finds some texts; written is the one that agrees best with all of them, by the metric (`Consensus`).
        It is kept only if it gains on examples that it was not fitted on. Then `evaluate` and `predict` write so, with
        as many beams, and the rule is saved with the model as `decision.json`. Without `predict_with_generate` it is
        what `ReLossTrainer.tune_decision` does.

        Args:
            dataset: examples that the model has not been trained on, nor is judged by; by default `eval_dataset`.
            metric: what `load_metric` takes, of texts; by default that of the run.
            num_beams: how many texts are found for each example, 2 or more.

        Raises:
            ValueError: without data or a metric, for a model that is no encoder-decoder, or fewer than 50 examples.
        """
        if not self.args.predict_with_generate:
            return super().tune_decision(dataset, metric)
        dataset, metric = judged_by(self, dataset, metric)
        found = tuned_text_decision(self, dataset, metric, num_beams)
        self.decision = found.rule
        self.strategy.tell(str(found))
        return found
