"""The controller of adaptive loss alignment (ALA): a policy that changes a loss while a model is trained on it.

Huang et al. 2019, Addressing the Loss-Metric Mismatch with Adaptive Loss Alignment, arXiv:1905.05895, section 4.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

MOST_PAIRS = 2**16
"""Of how many pairs of classes an episode is remembered, at most: more are drawn from at random."""


CLIP = 0.2
"""By which share an action may become more or less likely for what is remembered of it."""


class LossControllerConfig(PreTrainedConfig):
    """Configuration of a `LossController`.

    Args:
        history: how many validation statistics of the past a state holds.
        hidden_size: width of the two layers of the policy.
        step_size: β, by which an action changes a correlation. The paper has 0.1, in runs of many more steps. With C
            classes a loss is a sigmoid of C correlations times log p, of which confident models make large numbers:
            with 0.1, and with 0.01, it was soon flat, and models forgot (see docs/rivals.md).
        discount: γ, by which older errors of an episode count less.
        learning_rate: of the policy.
        memory: how many episodes are learned from again.
        record: how it was learned.
    """

    model_type = "reloss_controller"

    history: int = 10
    hidden_size: int = 32
    step_size: float = 0.002
    discount: float = 0.9
    learning_rate: float = 1e-3
    memory: int = 16
    record: dict | None = None

    @property
    def state_size(self) -> int:
        """Numbers in a state: the histories of C_ij and C_ji, their two relative changes, Φ_ij and the progress."""
        return 2 * self.history + 4


class Episode(NamedTuple):
    """One action, for all pairs of classes alike, and what came of it.

    Attributes:
        states: [P, S].
        actions: [P].
        log_probabilities: [P], log π of the actions when they were drawn.
        reward: 1, 0 or -1.
    """

    states: torch.Tensor
    actions: torch.Tensor
    log_probabilities: torch.Tensor
    reward: float


class LossController(PreTrainedModel):
    """A policy, one for all pairs of classes: from a pair's state to the logits of lowering, leaving and raising its Φ.

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
        if module is self.policy[-1]:  # all actions are alike: else Φ would at once go one way for all pairs
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

    def change(self, correlations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Φ [C, C] after actions [C (C + 1) / 2], one for each pair i ≤ j: it stays symmetric."""
        rows, columns = class_pairs(len(correlations), correlations.device)
        changed = correlations.clone()
        changed[rows, columns] += self.config.step_size * (actions - 1)
        changed[columns, rows] = changed[rows, columns]
        return changed


class PolicyLearning:
    """REINFORCE on one-step episodes, with a memory of past ones and a moving baseline.

    An episode is learned from again and again, so what is learned of it ends where the policy has made its actions
    `CLIP` more likely, or less, than when they were drawn (Schulman et al. 2017, arXiv:1707.06347, equation 7).
    Without that bound, which the paper does not have, early rewards make the policy certain of one action for good.

    Args:
        controller: whose policy learns.
    """

    baseline_decay = 0.9

    def __init__(self, controller: LossController):
        self.controller, self.baseline = controller, 0.0
        self.memory: deque[Episode] = deque(maxlen=controller.config.memory)
        self.optimizer = torch.optim.Adam(controller.parameters(), controller.config.learning_rate)

    def learn(self, episode: Episode) -> None:
        """One step on -mean (r - b) π(a | s) / π_then(a | s), bounded, over the episodes in the memory with this one.

        For an episode that is new, its gradient is that of REINFORCE, -(r - b) ∇log π(a | s). The baseline b, of the
        rewards before, then moves to include this one.
        """
        if len(episode.actions) > MOST_PAIRS:
            chosen = torch.randperm(len(episode.actions), generator=torch.Generator().manual_seed(0))[:MOST_PAIRS]
            episode = Episode(*(part[chosen] for part in episode[:3]), episode.reward)
        self.memory.append(episode)
        self.optimizer.zero_grad()
        for past in self.memory:
            advantage = past.reward - self.baseline
            log_probabilities = self.controller(past.states).log_softmax(-1)
            taken = log_probabilities.gather(-1, past.actions[:, None]).squeeze(-1)
            ratio = (taken - past.log_probabilities).exp()
            gain = torch.minimum(advantage * ratio, advantage * ratio.clamp(1 - CLIP, 1 + CLIP))
            (-gain.mean() / len(self.memory)).backward()
        self.optimizer.step()
        self.baseline = self.baseline_decay * self.baseline + (1 - self.baseline_decay) * episode.reward

    def state_dict(self) -> dict:
        """All that is needed to go on: the policy, its optimizer, the memory and the baseline."""
        return {
            "policy": self.controller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": [tuple(episode) for episode in self.memory],
            "baseline": self.baseline,
        }

    def load_state_dict(self, state: dict) -> None:
        """Goes on from a `state_dict`."""
        self.controller.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory = deque((Episode(*episode) for episode in state["memory"]), maxlen=self.memory.maxlen)
        self.baseline = state["baseline"]


def class_pairs(classes: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs i ≤ j of classes, C (C + 1) / 2 of them: all i and all j."""
    rows, columns = torch.triu_indices(classes, classes, device=device)
    return rows, columns


def confusions(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """C_ij, the mean of -log p of class j over the examples of class i (section 4.1).

    Args:
        logits: [n, C] of validation examples.
        labels: [n] int64.

    Returns:
        [C, C], and the classes without an example, whose rows are the means over those of the others.
    """
    losses, classes = -logits.float().log_softmax(-1), logits.shape[-1]
    sums = losses.new_zeros(classes, classes).index_add_(0, labels, losses)
    numbers = torch.bincount(labels, minlength=classes)
    found = sums / numbers.clamp(min=1)[:, None]
    missing = numbers == 0
    if missing.any():
        found[missing] = found[~missing].mean(0)
    return found, missing.nonzero().flatten().tolist()


def pair_states(history: torch.Tensor, correlations: torch.Tensor, progress: float) -> torch.Tensor:
    """The state of each pair of classes i ≤ j, by which the policy acts.

    Args:
        history: [H, C, C], the confusions of the last H readings, the latest at the end.
        correlations: Φ [C, C].
        progress: how much of the training is over, 0 to 1.

    Returns:
        [C (C + 1) / 2, 2 H + 4]: the H confusions C_ij, those of C_ji, how far the latest of each lies above the mean
        of the H, as a share of it, Φ_ij, and the progress.
    """
    rows, columns = class_pairs(correlations.shape[-1], correlations.device)
    forth, back = history[:, rows, columns].T, history[:, columns, rows].T
    changes = [(each[:, -1] - each.mean(1)) / each.mean(1).clamp(min=1e-8) for each in (forth, back)]
    phi = correlations[rows, columns]
    return torch.cat([forth, back, torch.stack([*changes, phi, torch.full_like(phi, progress)], dim=1)], dim=1)


def discounted(errors: torch.Tensor, discount: float) -> torch.Tensor:
    """The mean of errors [n] in which the latest counts most: Σ_k γ^(n - k) e_k / Σ_k γ^(n - k)."""
    weights = discount ** torch.arange(len(errors) - 1, -1, -1, dtype=torch.float64)
    return (errors * weights).sum() / weights.sum()
