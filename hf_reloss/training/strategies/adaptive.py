"""What adaptive loss alignment does in a run: validation data is read, and a controller changes the loss by it.

Huang et al. 2019, Addressing the Loss-Metric Mismatch with Adaptive Loss Alignment, arXiv:1905.05895.
"""

import copy
from collections import deque
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import TrainingArguments
from transformers.utils import logging

from ...adaptive_loss.children import Children, launched
from ...adaptive_loss.controller import (
    Episode,
    LossController,
    LossControllerConfig,
    PolicyLearning,
    discounted,
    parameter_states,
    remembered,
)
from ...losses.hand_made import hand_made_losses
from ...losses.hand_made.base import AdjustableLoss
from ...metrics import Metric
from ...metrics.base import IGNORED_LABEL
from ...predictions.dataset import part_of
from ...predictions.models import batch_labels, metric_for, takes_labels, without_labels
from ...surrogates.base import Surrogate
from ...surrogates.classification import SurrogateForClassification
from ...surrogates.hand_made import hand_made_loss
from ..arguments import option
from .base import SurrogateStrategy

logger = logging.get_logger(__name__)

READINGS = 5
"""How often the validation data is read for each action: from step to step would cost more than the training."""

MOST_STEPS, FEWEST_ACTIONS = 200, 40
"""From action to action, and in a run, by default: the paper's 200 steps would leave none of a short run."""

MOST_EXAMPLES = 2_000
"""Of how many validation examples a reading is, at most."""

STATE = "controller.pt"


class Adaptive(SurrogateStrategy):
    """`"ala"`: a controller reads validation data, is rewarded by what its metric has gained, and acts on the loss.

    Args:
        metric: of which the reward is: what `load_metric` takes.
        controller: which acts; by default a fresh one, of the trainer's seed.
        loss: what is adapted from the start of the run on: the name of a hand-made loss that can be, or what
            `hand_made_loss` makes of it, which is changed then; by default class correlations, from the middle on.
        validation_dataset: what is read, an evenly spaced sample if it is large; by default the trainer's
            `eval_dataset`.

    Attributes:
        history: the loss's parameters [P] float32 after each action, with the step; of class correlations the pairs
            i ≤ j, Φ_ij times C - 1 where i ≠ j.
        rewards: of the actions, in order: 1, 0 or -1.
        best_child: which of the children that share the controller has the lowest error in the end.
    """

    word = "ala"
    citation = "Huang et al. 2019, arXiv:1905.05895"
    options = ("adapt_children",)
    metric: Metric

    def __init__(
        self,
        metric: Metric | Any = None,
        *,
        controller: LossController | None = None,
        loss: Surrogate | str | None = None,
        validation_dataset: Any = None,
    ):
        super().__init__(metric)
        self.given_controller, self.given_loss = controller, _adjustable(loss)
        self.validation_dataset = validation_dataset

    @classmethod
    def of(cls, surrogate: Any, metric: Metric | Any) -> "Adaptive | None":
        if isinstance(surrogate, LossController):
            return cls(metric, controller=surrogate)
        return super().of(surrogate, metric)

    def check(self, args: TrainingArguments) -> None:
        super().check(args)
        if self.wanted_metric is None:
            raise ValueError(
                "surrogate='ala' rewards its controller by a metric, so it wants one: metric= a name, a function or a "
                "Metric."
            )
        every = option(args, "adapt_steps")
        if every is not None and every < READINGS:
            raise ValueError(f"adapt_steps={every} is the steps from action to action: at least {READINGS}.")
        best = (args.metric_for_best_model or "").removeprefix("eval_")
        keeps_best = args.load_best_model_at_end or args.save_strategy == "best"
        if self.given_loss is not None and keeps_best and best in ("", "loss"):
            raise ValueError(
                "The loss changes during the run, so it cannot tell which checkpoint is the best: set "
                "metric_for_best_model to a metric that compute_metrics returns."
            )

    def prepare(self, trainer: Any) -> None:
        """As of any strategy.

        Raises:
            ValueError: without validation data, or for a metric that is not known.
        """
        super().prepare(trainer)
        dataset = trainer.eval_dataset if self.validation_dataset is None else self.validation_dataset
        if dataset is None or isinstance(dataset, dict):
            raise ValueError(
                "surrogate='ala' adapts the loss by what the metric gains on validation data: pass eval_dataset=, or "
                "validation_dataset= to AdaptiveLossTrainer where eval_dataset is what is reported."
            )
        self.dataset, self.metric = _sample(dataset), metric_for(trainer.model, self.wanted_metric)
        self.children = launched(trainer.args.ddp_timeout) if option(trainer.args, "adapt_children") else Children()
        self.controller = self.given_controller or self._fresh_controller()
        loss = {} if self.given_loss is None else self.given_loss.state_dict()
        self._at_first = copy.deepcopy((self.controller.state_dict(), loss))
        self.start(None)

    def _fresh_controller(self) -> LossController:
        with torch.random.fork_rng():
            torch.manual_seed(self.trainer.args.seed)
            return LossController(LossControllerConfig())

    def start(self, checkpoint: Path | None) -> None:
        controller, loss = self._at_first
        self.controller.load_state_dict(controller)
        self.surrogate = None if self.given_loss is None else self.placed(self.given_loss)
        if self.surrogate is not None:
            self.surrogate.load_state_dict(loss)
        self.every, self.best_child = option(self.trainer.args, "adapt_steps"), self.children.rank
        self.learning = PolicyLearning(self.controller)
        self.generator = torch.Generator().manual_seed(self.trainer.args.seed)
        self.readings: deque[torch.Tensor] = deque(maxlen=self.controller.config.history)
        self.errors: list[float] = []
        self.former_error: float | None = None
        self.pending: tuple[torch.Tensor, ...] | None = None
        self.history: list[tuple[int, torch.Tensor]] = []
        self.rewards: list[float] = []
        self._has_warned = False
        if checkpoint is not None:
            self._load(checkpoint)

    @property
    def default_warmup(self) -> float:
        return 0.5 if self.given_loss is None else 0.0

    def evaluates_own_loss(self) -> bool:
        """As of any strategy; one that is adapted from the start on may be that of a model that puts out no loss."""
        return self.given_loss is None

    def begin(self) -> None:
        if self.every is None:
            self.every = max(READINGS, min(MOST_STEPS, self.trainer.state.max_steps // FEWEST_ACTIONS))
        self.controller.load_state_dict(self.children.exchange(self.controller.state_dict())[0])
        if not self.history:
            outputs, labels = self._predictions()
            if self.surrogate is None:
                self.surrogate = self.placed(hand_made_loss("class_correlation", classes=outputs.shape[-1]))
            self._take(outputs, labels)
            self.history = [(0, self.network.values().cpu())]
        self.announce_warmup()
        super().begin()

    def end_step(self) -> None:
        state = self.trainer.state
        interval, first = max(1, self.every // READINGS), self.warmup_steps
        seen = state.global_step > first - self.readings.maxlen * interval  # what a state can hold
        if seen and state.global_step % interval == 0:
            self._take(*self._predictions())
        if state.global_step % self.every == 0:
            if state.global_step >= first:
                self._act(state.global_step, state.global_step / state.max_steps)
            self.errors.clear()
        self.announce_switch()

    def end(self, best_checkpoint: Path | None) -> None:
        errors = self.children.exchange(self.former_error)
        if len(errors) > 1 and None not in errors:
            self.best_child = min(range(len(errors)), key=errors.__getitem__)
            logger.info(f"Of the {len(errors)} children, {self.best_child} is the best, by an error of {min(errors)}.")
        if best_checkpoint is not None:
            self.surrogate = self.saved_surrogate(best_checkpoint) if self.has_trained_model() else None
        super().end(best_checkpoint)

    @property
    def network(self) -> AdjustableLoss:
        """The loss."""
        network = self._in_place().network
        assert isinstance(network, AdjustableLoss)
        return network

    def _act(self, step: int, progress: float) -> None:
        """Ends the episode of the last action with its reward, and begins the next one."""
        error = float(discounted(torch.tensor(self.errors, dtype=torch.float64), self.controller.config.discount))
        if self.pending is not None and self.former_error is not None:
            reward = float((self.former_error > error) - (self.former_error < error))
            self.rewards.append(reward)
            seen = self.children.exchange((*self.pending, reward))
            self.learning.learn(*(Episode(*of_child) for of_child in seen))
            self.log({"adaptation/reward": reward, "adaptation/error": error})
            if not self._has_warned and len(self.rewards) >= 5 and not any(self.rewards):
                self._has_warned = True
                logger.warning(
                    f"The reward was 0 for {len(self.rewards)} actions: on the validation data {self.metric.name} "
                    "stays what it is whatever the loss, so there is nothing to adapt it by. Choose a metric that "
                    "moves, or more validation data."
                )
        self.former_error = error
        missing = self.controller.config.history - len(self.readings)
        readings = [self.readings[0]] * missing + list(self.readings)
        states = parameter_states(torch.stack(readings), self.network.values().cpu(), progress)
        actions, log_probabilities = self.controller.act(states, self.generator)
        self.pending = remembered(states, actions, log_probabilities, generator=self.generator)
        self.network.adjust(self.controller.changes(actions))
        self.history.append((step, self.network.values().cpu()))

    @torch.no_grad()
    def _predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [n, C], or embeddings, and labels [n] of the validation data, the same in all processes."""
        trainer = self.trainer
        model, was_training, kept = trainer.model_wrapped, trainer.model.training, torch.get_rng_state()
        names, device, kind = trainer.label_names, trainer.args.device, self.kind or SurrogateForClassification
        reads_labels = takes_labels(model, names)
        model.eval()
        found = []
        # Of persistent workers, the loader of an evaluation is kept, for whatever is evaluated next.
        for batch in trainer.get_test_dataloader(self.dataset):
            inputs = send_to_device(batch, device)
            labels = batch_labels(trainer.model, inputs, names)
            with trainer.compute_loss_context_manager():
                outputs = trainer.model_outputs(model, inputs if reads_labels else without_labels(model, inputs, names))
            logits = kind.recorded(outputs, labels, inputs)[kind.scored[0]] if labels is not None else torch.empty(0)
            if labels is None or labels.dim() != 1 or logits.dim() != 2:
                raise ValueError(
                    "surrogate='ala' adapts a loss of one label per example: it wants logits [N, C], or "
                    f"embeddings, and labels [N], but got {list(logits.shape)} and "
                    f"{None if labels is None else list(labels.shape)}."
                )
            found.append(trainer.accelerator.gather_for_metrics((logits, labels)))
        model.train(was_training)
        torch.set_rng_state(kept)
        if not found:
            raise ValueError(
                "surrogate='ala' reads validation data, but that gives no batch: with dataloader_drop_last=True it "
                f"wants {trainer.args.eval_batch_size} examples or more in each process."
            )
        logits, labels = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        counts = labels != IGNORED_LABEL
        return logits[counts], labels[counts]

    def _take(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes note of a reading."""
        if not logits.isfinite().all():
            raise FloatingPointError(
                "What the model puts out for validation data is not finite: the model has diverged."
            )
        doubts = self.network.doubts(labels)
        if doubts and not self.readings:
            logger.warning(f"The loss is adapted by this validation data. {doubts}")
        self.readings.append(self.network.statistics(logits, labels))
        score = float(self.metric.compute(logits.numpy(), labels.numpy()))
        self.errors.append(1 - score if self.metric.higher_is_better else score)

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self.surrogate is not None:
            self.controller.save_pretrained(folder / "controller")

    def save_state(self, checkpoint: Path) -> None:
        if not self.trainer.args.should_save:
            return
        checkpoint.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self, name) for name in ("errors", "former_error", "pending", "history", "rewards")}
        state |= {"readings": list(self.readings), "generator": self.generator.get_state()}
        torch.save(state | {"learning": self.learning.state_dict()}, checkpoint / STATE)

    def _load(self, checkpoint: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            ValueError: if it has nothing of the kind.
        """
        if not (checkpoint / STATE).is_file():
            raise ValueError(f"{checkpoint} has no {STATE}: it was not trained on surrogate='ala'.")
        state = torch.load(checkpoint / STATE, weights_only=True)
        self.learning.load_state_dict(state.pop("learning"))
        self.generator.set_state(state.pop("generator"))
        self.readings = deque(state.pop("readings"), maxlen=self.readings.maxlen)
        self.__dict__.update(state)
        self.surrogate = self.saved_surrogate(checkpoint)


def _adjustable(loss: Surrogate | str | None) -> Surrogate | None:
    """The loss to adapt; None for none.

    Raises:
        ValueError: for one that cannot be adapted.
    """
    if isinstance(loss, str) and loss in hand_made_losses(None):
        loss = hand_made_loss(loss)
    if loss is None or (isinstance(loss, Surrogate) and isinstance(loss.network, AdjustableLoss)):
        return loss
    known = [name for name, kind in hand_made_losses(None).items() if issubclass(kind, AdjustableLoss)]
    given = loss.config.architecture if isinstance(loss, Surrogate) else loss
    raise ValueError(
        f"loss= is what a controller adapts: one of {', '.join(known)}, or what hand_made_loss makes of these with "
        f"options, but got {given!r}."
    )


def _sample(dataset: Any) -> Any:
    """The data set or, of a large one, 2,000 examples of it, evenly spaced."""
    if not hasattr(dataset, "__len__") or len(dataset) <= MOST_EXAMPLES:
        return dataset
    return part_of(dataset, torch.linspace(0, len(dataset) - 1, MOST_EXAMPLES).long().tolist())
