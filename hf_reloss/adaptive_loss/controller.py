"""The controller of adaptive loss alignment (ALA): a policy that changes a loss while a model is trained on it.

Huang et al. 2019, Addressing the Loss-Metric Mismatch with Adaptive Loss Alignment, arXiv:1905.05895, section 4.
"""

import itertools
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

MOST_PARAMETERS = 2**16
"""Of how many parameters an episode is, at most."""

CLIP = 0.2
"""By which share an action may become more or less likely for what is remembered of it."""


class LossControllerConfig(PreTrainedConfig):
    """Configuration of a `LossController`.

    Args:
        history: how many validation statistics of the past a state holds.
        hidden_size: width of the two layers of the policy.
        step_size: β, by which an action changes a parameter.
        discount: γ, by which older errors of an episode count less.
        learning_rate: of the policy.
        memory: how many stages of the training, one episode of each child, are learned from again.
        record: how it was learned.
    """

    model_type = "reloss_controller"

    history: int = 10
    hidden_size: int = 32
    step_size: float = 0.1
    discount: float = 0.9
    learning_rate: float = 1e-3
    memory: int = 16
    record: dict[str, Any] | None = None

    @property
    def state_size(self) -> int:
        """Numbers in a state: two statistics' histories, their relative changes, the value and the progress."""
        return 2 * self.history + 4


class Episode(NamedTuple):
    """One action for each parameter, as each pair of classes has, and what came of them.

    Attributes:
        states: [P, S].
        actions: [P].
        log_probabilities: [P], log π of the actions when they were drawn.
        reward: 1, 0 or -1.
        baseline: what the reward is compared with; None for the mean of those before.
    """

    states: torch.Tensor
    actions: torch.Tensor
    log_probabilities: torch.Tensor
    reward: float
    baseline: float | None = None


class LossController(PreTrainedModel):
    """A policy, one for all parameters of a loss: from a state to the logits of lowering, leaving and raising.

    It is saved, published and loaded as any model. An untrained one acts at random.

    Example:
        >>> controller = LossController(LossControllerConfig())
        >>> controller(torch.zeros(5, 24)).shape
        torch.Size([5, 3])
    """

    config_class = LossControllerConfig
    base_model_prefix = "controller"
    main_input_name = "states"

    def __init__(self, config: LossControllerConfig):
        super().__init__(config)
        width = config.hidden_size
        self.policy = nn.Sequential(
            nn.Linear(config.state_size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()
            if module is self.policy[-1]:  # all actions are alike: else Φ would at once go one way
                module.weight.zero_()
                module.bias.zero_()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [..., 3] of the actions -β, 0 and +β, of states [..., S]."""
        return self.policy(states)

    @torch.no_grad()
    def act(self, states: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions [P] drawn for states [P, S], 0, 1 or 2 for -β, 0 and +β, and the logs of their probabilities [P]."""
        log_probabilities = self(states).log_softmax(-1)
        actions = torch.multinomial(log_probabilities.exp(), 1, generator=generator)
        return actions.squeeze(-1), log_probabilities.gather(-1, actions).squeeze(-1)

    def changes(self, actions: torch.Tensor) -> torch.Tensor:
        """What actions [P] add to the parameters, [P]: -β, 0 or +β."""
        return self.config.step_size * (actions - 1)


def remembered(*parts: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, ...]:
    """What is learned from of tensors [P, ...]: of more than `MOST_PARAMETERS` a sample of that size, drawn anew."""
    if len(parts[0]) <= MOST_PARAMETERS:
        return parts
    chosen = torch.randperm(len(parts[0]), generator=generator)[:MOST_PARAMETERS]
    return tuple(part[chosen] for part in parts)


class PolicyLearning:
    """REINFORCE on one-step episodes, with a memory of past ones and a baseline.

    An episode is learned from again and again, so what is learned of it ends where the policy has made its actions
    `CLIP` more likely, or less, than when they were drawn (Schulman et al. 2017, arXiv:1707.06347, equation 7).
    Without that bound, which the paper does not have, early rewards make the policy certain of one action for good.

    Args:
        controller: whose policy learns.
    """

    baseline_decay = 0.9

    def __init__(self, controller: LossController):
        self.controller, self.baseline = controller, 0.0
        self.memory: deque[list[Episode]] = deque(maxlen=controller.config.memory)
        self.optimizer = torch.optim.Adam(controller.parameters(), controller.config.learning_rate)

    def learn(self, *siblings: Episode) -> None:
        """One step on -mean (r - b) π(a | s) / π_then(a | s), bounded, over the episodes in the memory with these.

        For an episode that is new, its gradient is that of REINFORCE, -(r - b) ∇log π(a | s). The baseline b is the
        moving mean of the rewards before, which then moves to include this one.

        Args:
            siblings: one episode, or those of several children at the same stage of their training. Then b is the mean
                reward of the other children: what they all gain, because training goes on, says nothing of an action.
        """
        mean = sum(episode.reward for episode in siblings) / len(siblings)
        if (others := len(siblings) - 1) > 0:
            siblings = tuple(one._replace(baseline=(mean * (others + 1) - one.reward) / others) for one in siblings)
        self.memory.append(list(siblings))
        number = sum(map(len, self.memory))
        self.optimizer.zero_grad()
        for past in itertools.chain(*self.memory):
            advantage = past.reward - (self.baseline if past.baseline is None else past.baseline)
            log_probabilities = self.controller(past.states).log_softmax(-1)
            taken = log_probabilities.gather(-1, past.actions[:, None]).squeeze(-1)
            ratio = (taken - past.log_probabilities).exp()
            gain = torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - CLIP, 1 + CLIP))
            (-gain.mean() / number).backward()
        self.optimizer.step()
        self.baseline = self.baseline_decay * self.baseline + (1 - self.baseline_decay) * mean

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on: the policy, its optimizer, the memory and the baseline."""
        return {
            "policy": self.controller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": [[tuple(episode) for episode in siblings] for siblings in self.memory],
            "baseline": self.baseline,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self.controller.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        memory = ([Episode(*episode) for episode in siblings] for siblings in state["memory"])
        self.memory = deque(memory, maxlen=self.memory.maxlen)
        self.baseline = state["baseline"]


def parameter_states(history: torch.Tensor, values: torch.Tensor, progress: float) -> torch.Tensor:
    """The state of each parameter of a loss, by which the policy acts.

    Args:
        history: [H, 2, P], two statistics of the last H readings, the latest at the end: of pairs of classes their
            confusions C_ij and C_ji.
        values: [P], of the parameters: Φ_ij.
        progress: how much of the training is over, 0 to 1.

    Returns:
        [P, 2 H + 4]: the H readings of the one statistic, those of the other, how far the latest of each lies above the
        mean of the H, as a share of it, the value, and the progress.
    """
    forth, back = history.permute(1, 2, 0)
    changes = [(each[:, -1] - each.mean(1)) / each.mean(1).clamp(min=1e-8) for each in (forth, back)]
    return torch.cat([forth, back, torch.stack([*changes, values, torch.full_like(values, progress)], dim=1)], dim=1)


def discounted(errors: torch.Tensor, discount: float) -> torch.Tensor:
    """The mean of errors [n] in which the latest counts most: Σ_k γ^(n - k) e_k / Σ_k γ^(n - k)."""
    weights = discount ** torch.arange(len(errors) - 1, -1, -1, dtype=torch.float64)
    return (errors * weights).sum() / weights.sum()
