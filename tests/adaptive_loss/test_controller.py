"""The parts of adaptive loss alignment, against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reloss import LossController, LossControllerConfig
from hf_reloss.adaptive_loss.controller import Episode, PolicyLearning, discounted, parameter_states, remembered
from hf_reloss.losses.hand_made.class_correlation import confusions
from hf_reloss.surrogates.hand_made import hand_made_loss


def correlations(classes: int):
    return hand_made_loss("class_correlation", classes=classes).network


def test_the_confusions_are_means_of_minus_log_p_over_the_examples_of_a_class():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.1, 0.8, 0.1]])
    found = confusions(probabilities.log(), torch.tensor([0, 0, 1]))
    log = math.log
    expected = [
        [(log(2) + log(4)) / 2, (log(4) + log(2)) / 2, log(4)],
        [log(10), -log(0.8), log(10)],
    ]
    torch.testing.assert_close(found[:2], torch.tensor(expected))
    assert found[2].isnan().all()
    statistics = correlations(3).statistics(probabilities.log(), torch.tensor([0, 0, 1]))  # of 00, 01, 02, 11, 12, 22
    mean = torch.tensor(expected).mean(0)
    torch.testing.assert_close(statistics[0, [1, 4, 5]], torch.tensor([expected[0][1], expected[1][2], mean[2]]))
    torch.testing.assert_close(statistics[1, [1, 4, 5]], torch.tensor([expected[1][0], mean[1], mean[2]]))


def test_a_state_has_24_numbers():
    history = torch.full((10, 2, 3), 3.0)  # of the pairs 00, 01 and 11
    history[:, 0, 1] = torch.arange(1, 11).float()  # C_01, of mean 5.5
    history[:, 1, 1] = 2.0
    history[-1, 1, 1] = 4.0  # C_10, of mean 2.2
    states = parameter_states(history, torch.tensor([1.0, -0.3, 1.1]), progress=0.25)
    assert states.shape == (3, LossControllerConfig().state_size) == (3, 24)
    expected = [*range(1, 11), *[2.0] * 9, 4.0, (10 - 5.5) / 5.5, (4 - 2.2) / 2.2, -0.3, 0.25]
    torch.testing.assert_close(states[1], torch.tensor(expected))
    torch.testing.assert_close(states[0], torch.tensor([3.0] * 20 + [0.0, 0.0, 1.0, 0.25]))


def test_the_error_of_an_episode_counts_late_readings_most():
    errors = torch.tensor([0.3, 0.2, 0.1], dtype=torch.float64)
    expected = (0.81 * 0.3 + 0.9 * 0.2 + 0.1) / (0.81 + 0.9 + 1)
    assert discounted(errors, 0.9).item() == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 12), seed=st.integers(0, 99))
def test_correlations_stay_symmetric_and_change_by_the_step(classes, seed):
    controller = LossController(LossControllerConfig(step_size=0.1))
    network, generator = correlations(classes), torch.Generator().manual_seed(seed)
    assert torch.equal(network.correlations, torch.eye(classes))
    rows, columns = torch.triu_indices(classes, classes)
    step = torch.where(rows == columns, 0.1, 0.1 / (classes - 1))
    for _ in range(3):
        actions = torch.randint(3, (len(rows),), generator=generator)
        before, values = network.correlations.clone(), network.values()
        network.adjust(controller.changes(actions))
        assert torch.equal(network.correlations, network.correlations.T)
        changed = (network.correlations - before)[rows, columns]
        torch.testing.assert_close(changed, step * (actions - 1), rtol=0, atol=1e-6)
        torch.testing.assert_close(network.values() - values, 0.1 * (actions - 1), rtol=0, atol=1e-5)


def test_actions_are_drawn_as_the_policy_has_it():
    controller = LossController(LossControllerConfig())
    with torch.no_grad():
        controller.policy[-1].bias.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    actions, log_probabilities = controller.act(torch.randn(20_000, 24), torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_probabilities.exp(), torch.tensor([0.2, 0.5, 0.3])[actions])
    torch.testing.assert_close(actions.bincount() / 20_000, torch.tensor([0.2, 0.5, 0.3]), rtol=0, atol=0.015)


def episode(actions: list[int], reward: float, states: torch.Tensor | None = None) -> Episode:
    """One of a policy for which all actions are alike."""
    states = torch.randn(len(actions), 24) if states is None else states
    return Episode(states, torch.tensor(actions), torch.full((len(actions),), 1 / 3).log(), reward)


def test_one_step_of_reinforce_is_that_of_a_hand_worked_case():
    """From a policy for which all is alike, π = 1/3, after actions 2, 2, 2, 0 and a reward of 1, baseline 0.2."""
    controller = LossController(LossControllerConfig())
    learning = PolicyLearning(controller)
    learning.baseline = 0.2
    learning.learn(episode([2, 2, 2, 0], 1.0))
    # Of -0.8 · mean log π(a): 0.8 · (1/3 - the share of the action).
    expected = 0.8 * torch.tensor([1 / 3 - 0.25, 1 / 3, 1 / 3 - 0.75])
    torch.testing.assert_close(controller.policy[-1].bias.grad, expected)
    assert learning.baseline == pytest.approx(0.9 * 0.2 + 0.1)
    probabilities = controller(torch.zeros(24)).softmax(-1)
    assert probabilities[2] > 1 / 3 > probabilities[1]  # what was done more often than drawn is done more often


def test_a_reward_counts_over_those_of_the_other_children():
    """Of three, rewards 1, 1 and -1: over the others' means 0, 0 and 1, they are 1, 1 and -2."""
    controller = LossController(LossControllerConfig())
    learning = PolicyLearning(controller)
    learning.baseline = 0.7  # which is not looked at
    learning.learn(episode([2, 2], 1.0), episode([1, 1], 1.0), episode([0, 2], -1.0))
    expected = torch.tensor([-1 / 3, -1 / 3, 2 / 3])  # of 1 · ∇log π(2), of 1 · ∇log π(1), and of -2 · ∇log π(0 or 2)
    expected += torch.tensor([-1 / 3, 2 / 3, -1 / 3]) - 2 * torch.tensor([1 / 6, -1 / 3, 1 / 6])
    torch.testing.assert_close(controller.policy[-1].bias.grad, -expected / 3)
    assert learning.baseline == pytest.approx(0.9 * 0.7 + 0.1 / 3)


def test_what_all_children_gain_teaches_nothing():
    controller = LossController(LossControllerConfig())
    before = controller.policy[-1].bias.clone()
    learning = PolicyLearning(controller)
    for _ in range(4):
        learning.learn(*(episode([action] * 3, 1.0) for action in range(3)))
    assert torch.equal(controller.policy[-1].bias, before)


def test_a_punished_action_becomes_rarer():
    controller = LossController(LossControllerConfig())
    learning = PolicyLearning(controller)
    states = torch.randn(6, 24)
    learning.learn(episode([2] * 6, -1.0, states))
    assert (controller(states).softmax(-1)[:, 2] < 1 / 3).all()


def test_a_reward_that_is_always_the_baseline_teaches_nothing():
    controller = LossController(LossControllerConfig())
    before = [parameter.clone() for parameter in controller.parameters()]
    learning = PolicyLearning(controller)
    for _ in range(3):
        learning.learn(episode([0, 1, 2, 2], 0.0))
    assert all(torch.equal(one, two) for one, two in zip(before, controller.parameters(), strict=True))


def test_what_is_remembered_of_an_action_is_learned_to_a_bound():
    controller = LossController(LossControllerConfig(memory=1))
    learning = PolicyLearning(controller)
    once = episode([2, 2, 2, 2], 1.0)
    for _ in range(300):
        learning.baseline = 0.0
        learning.learn(once)
    assert len(learning.memory) == 1
    likely = controller(once.states).softmax(-1)[:, 2]
    assert (likely > 1.15 / 3).all()
    assert (likely < 1.6 / 3).all()  # 1.2 / 3, and what the optimizer's momentum adds


def run(learning: PolicyLearning, generator: torch.Generator, learns: bool, steps: int = 30) -> float:
    """How far Φ_01 is from 1.2 after a run that starts with the identity; the error is the distance."""
    network, pending, former = correlations(2), None, None
    for step in range(steps):
        error = abs(float(network.correlations[0, 1]) - 1.2)
        if pending is not None and learns:
            learning.learn(Episode(*pending, float((former > error) - (former < error))))
        former, states = error, parameter_states(torch.ones(10, 2, 3), network.values(), step / steps)
        pending = states, *learning.controller.act(states, generator)
        network.adjust(learning.controller.changes(pending[1]))
    return abs(float(network.correlations[0, 1]) - 1.2)


def test_the_controller_solves_a_problem_whose_right_correlations_are_known():
    """Φ_01 has to be raised where it is lower than 1.2, and lowered where it is higher."""
    learning, generator = (
        PolicyLearning(LossController(LossControllerConfig(step_size=0.1))),
        torch.Generator().manual_seed(0),
    )
    for _ in range(40):
        run(learning, generator, learns=True)
    assert sum(run(learning, generator, learns=False) for _ in range(20)) / 20 < 0.3
    untrained = PolicyLearning(LossController(LossControllerConfig(step_size=0.1)))
    assert sum(run(untrained, generator, learns=False) for _ in range(20)) / 20 > 0.8


def test_it_is_saved_and_loaded(tmp_path):
    controller = LossController(LossControllerConfig(step_size=0.2))
    PolicyLearning(controller).learn(episode([2, 1, 2, 2, 0, 2], 1.0))
    controller.save_pretrained(tmp_path)
    again = LossController.from_pretrained(tmp_path)
    states = torch.randn(5, 24)
    assert torch.equal(controller(states), again(states))
    assert again.config.step_size == 0.2


def test_a_thousand_classes_take_some_hundred_megabytes():
    network, controller = correlations(1_000), LossController(LossControllerConfig())
    labels = torch.arange(1_000)
    history = network.statistics(torch.randn(1_000, 1_000), labels).expand(10, -1, -1).clone()
    states = parameter_states(history, network.values(), 0.5)
    assert states.shape == (500_500, 24)
    sizes = {"Φ": network.correlations.nbytes, "states": states.nbytes, "history": history.nbytes}
    assert {name: round(size / 1e6) for name, size in sizes.items()} == {"Φ": 4, "states": 48, "history": 40}
    learning = PolicyLearning(controller)
    episode = remembered(states, *controller.act(states))
    assert sum(part.nbytes for part in episode) < 8e6  # which is remembered of it
    learning.learn(Episode(*episode, 1.0))


def test_of_many_parameters_others_are_remembered_each_time():
    numbers, generator = torch.arange(100_000), torch.Generator().manual_seed(0)
    first, second = (set(remembered(numbers, generator=generator)[0].tolist()) for _ in range(2))
    assert len(first) == len(second) == 2**16
    assert first != second
