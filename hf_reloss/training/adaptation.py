"""What adaptive loss alignment does in a run: validation data is read, and a controller changes the loss by it.

Huang et al. 2019, Addressing the Loss-Metric Mismatch with Adaptive Loss Alignment, arXiv:1905.05895.
"""

import copy
from collections import deque
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from ..adaptive_loss.children import Children
from ..adaptive_loss.controller import (
    Episode,
    LossController,
    LossControllerConfig,
    PolicyLearning,
    discounted,
    parameter_states,
    remembered,
)
from ..losses.hand_made.base import AdjustableLoss
from ..metrics import Metric, load_metric
from ..metrics.base import IGNORED_LABEL
from ..predictions.models import batch_labels
from ..surrogates.base import output_tensor
from ..surrogates.embeddings import embeddings_of
from ..surrogates.hand_made import hand_made_loss

logger = logging.get_logger(__name__)

READINGS = 5
"""How often the validation data is read for each action: from step to step would cost more than the training."""

MOST_STEPS, FEWEST_ACTIONS = 200, 40
"""From action to action, and in a run, by default: the paper's 200 steps would leave none of a short run."""

MOST_EXAMPLES = 2_000
"""Of how many validation examples a reading is, at most."""

STATE = "controller.pt"


class AdaptsLoss(TrainerCallback):
    """Reads validation data, rewards the controller by what its metric has gained, and lets it act on the loss.

    Args:
        trainer: whose loss it is.
        controller: which acts; None for a fresh one, of the trainer's seed.
        metric: of which the reward is: what `load_metric` takes.
        dataset: the validation data, of which an evenly spaced sample is read if it is large.
        every: K, steps from action to action; None for 200, or a fortieth of the run if that is less.
        children: models in other processes that share the controller.

    Attributes:
        history: the loss's parameters [P] float32 after each action, with the step; of class correlations the pairs
            i ≤ j, Φ_ij times C - 1 where i ≠ j.
        rewards: of the actions, in order: 1, 0 or -1.
        best_child: which of the children that share the controller has the lowest error in the end.

    Raises:
        ValueError: without validation data, for a metric that is not known, or too few steps from action to action.
    """

    def __init__(
        self,
        trainer: Any,
        controller: LossController | None,
        metric: Metric | Any,
        dataset: Any,
        every: int | None,
        children: Children | None = None,
    ):
        if dataset is None or isinstance(dataset, dict):
            raise ValueError(
                "surrogate='ala' adapts the loss by what the metric gains on validation data: pass eval_dataset=, or "
                "validation_dataset= to AdaptiveLossTrainer where eval_dataset is what is reported."
            )
        if every is not None and every < READINGS:
            raise ValueError(f"adapt_steps={every} is the steps from action to action: at least {READINGS}.")
        if controller is None:
            with torch.random.fork_rng():
                torch.manual_seed(trainer.args.seed)
                controller = LossController(LossControllerConfig())
        self.trainer, self.metric, self.wanted_steps = trainer, load_metric(metric), every
        self.children = children or Children()
        self.dataset, self.controller = _sample(dataset), controller
        loss = trainer.surrogate and trainer.surrogate.state_dict()
        self._at_first = copy.deepcopy((controller.state_dict(), loss))
        self.start()

    def start(self) -> None:
        """Begins anew, with the controller and the loss that were given: each call of `train` is a run of its own."""
        controller, loss = self._at_first
        self.controller.load_state_dict(controller)
        if loss is None:
            self.trainer.surrogate = None
        else:
            self.trainer.surrogate.load_state_dict(loss)
        self.every, self.best_child = self.wanted_steps, self.children.rank
        self.learning = PolicyLearning(self.controller)
        self.generator = torch.Generator().manual_seed(self.trainer.args.seed)
        self.readings: deque[torch.Tensor] = deque(maxlen=self.controller.config.history)
        self.errors: list[float] = []
        self.former_error: float | None = None
        self.pending: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self.history: list[tuple[int, torch.Tensor]] = []
        self.rewards: list[float] = []
        self._told = False

    def on_train_begin(self, args, state, control, **kwargs):
        if self.every is None:
            self.every = max(READINGS, min(MOST_STEPS, state.max_steps // FEWEST_ACTIONS))
        self.controller.load_state_dict(self.children.exchange(self.controller.state_dict())[0])
        if not self.history:
            outputs, labels = self._predictions()
            if self.trainer.surrogate is None:
                loss = hand_made_loss("class_correlation", classes=outputs.shape[-1])
                self.trainer.surrogate = self.trainer._placed(loss)
            self._take(outputs, labels)
            self.history = [(0, self.network.values().cpu())]

    def on_step_end(self, args, state, control, **kwargs):
        interval, first = max(1, self.every // READINGS), self.trainer.warmup_steps
        seen = state.global_step > first - self.readings.maxlen * interval  # what a state can hold
        if seen and state.global_step % interval == 0:
            self._take(*self._predictions())
        if state.global_step % self.every == 0:
            if state.global_step >= first:
                self._act(state.global_step, state.global_step / state.max_steps)
            self.errors.clear()

    def on_train_end(self, args, state, control, **kwargs):
        errors = self.children.exchange(self.former_error)
        if len(errors) > 1 and None not in errors:
            self.best_child = min(range(len(errors)), key=errors.__getitem__)
            logger.info(f"Of the {len(errors)} children, {self.best_child} is the best, by an error of {min(errors)}.")

    @property
    def network(self) -> AdjustableLoss:
        """The loss."""
        return self.trainer.surrogate.network

    @property
    def _reads_embeddings(self) -> bool:
        return self.trainer.surrogate is not None and self.trainer.surrogate.task == "embeddings"

    def _act(self, step: int, progress: float) -> None:
        """Ends the episode of the last action with its reward, and begins the next one."""
        error = float(discounted(torch.tensor(self.errors, dtype=torch.float64), self.controller.config.discount))
        if self.pending is not None:
            reward = float((self.former_error > error) - (self.former_error < error))
            self.rewards.append(reward)
            seen = self.children.exchange((*self.pending, reward))
            self.learning.learn(*(Episode(*of_child) for of_child in seen))
            logs_next = self.trainer.control.should_log  # which logging this would take back
            self.trainer.log({"adaptation/reward": reward, "adaptation/error": error})
            self.trainer.control.should_log = logs_next
            if not self._told and len(self.rewards) >= 5 and not any(self.rewards):
                self._told = True
                logger.warning(
                    f"The reward was 0 for {len(self.rewards)} actions: on the validation data {self.metric.name} "
                    "stays what it is whatever the loss, so there is nothing to adapt it by. Choose a metric that "
                    "moves, or more validation data."
                )
        self.former_error = error
        readings = [self.readings[0]] * (self.readings.maxlen - len(self.readings)) + list(self.readings)
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
        takes_labels = trainer._takes_labels(model)
        model.eval()
        found = []
        # Of persistent workers, the loader of an evaluation is kept, for whatever is evaluated next.
        for batch in trainer.get_test_dataloader(self.dataset):
            inputs = trainer._prepare_inputs(batch)
            labels = batch_labels(trainer.model, inputs, trainer.label_names)
            with trainer.compute_loss_context_manager():
                outputs = model(**(inputs if takes_labels else trainer._without_labels(model, inputs)))
            logits = embeddings_of(outputs) if self._reads_embeddings else output_tensor(outputs, "logits")
            if labels is None or labels.dim() != 1 or logits.dim() != 2:
                raise ValueError(
                    "surrogate='ala' adapts a loss of one label per example: it wants logits [N, C], or "
                    f"embeddings, and labels [N], but got {list(logits.shape)} and "
                    f"{None if labels is None else list(labels.shape)}."
                )
            found.append(trainer.accelerator.gather_for_metrics((logits.float(), labels)))
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
        """Writes what is needed to go on into a checkpoint."""
        state = {name: getattr(self, name) for name in ("errors", "former_error", "pending", "history", "rewards")}
        state |= {"readings": list(self.readings), "generator": self.generator.get_state()}
        torch.save(state | {"learning": self.learning.state_dict()}, folder / STATE)

    def load(self, folder: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            ValueError: if it has nothing of the kind.
        """
        if not (folder / STATE).is_file():
            raise ValueError(
                f"{folder} has no {STATE}: it was not trained on surrogate='ala', or saved with save_only_model=True."
            )
        state = torch.load(folder / STATE, weights_only=True)
        self.learning.load_state_dict(state.pop("learning"))
        self.generator.set_state(state.pop("generator"))
        self.readings = deque(state.pop("readings"), maxlen=self.readings.maxlen)
        self.__dict__.update(state)


def part_of(dataset: Any, rows: list[int]) -> Any:
    """Some examples of a map-style data set; of one of `datasets`, a data set of that kind."""
    return dataset.select(rows) if hasattr(dataset, "select") else torch.utils.data.Subset(dataset, rows)


def _sample(dataset: Any) -> Any:
    """The data set or, of a large one, 2,000 examples of it, evenly spaced."""
    if not hasattr(dataset, "__len__") or len(dataset) <= MOST_EXAMPLES:
        return dataset
    return part_of(dataset, torch.linspace(0, len(dataset) - 1, MOST_EXAMPLES).long().tolist())
