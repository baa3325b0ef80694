"""Whatever the precision of a model, its surrogate computes in float32, and what reaches the model is finite."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_reloss import AutoSurrogate
from hf_reloss.objectives import RelationalObjective

CARDS = sorted(folder.name for folder in (Path(__file__).parents[2] / "hub_cards").iterdir())


def made_up(surrogate, dtype: torch.dtype, scale: float):
    """Outputs of a precision and size, the tensors in them, which have gradients, and labels."""
    torch.manual_seed(0)
    outputs, labels = map(eval, surrogate.example())
    single = torch.is_tensor(outputs)
    given = {"": outputs} if single else outputs
    leaves = {name: (tensor * scale).to(dtype).requires_grad_() for name, tensor in given.items()}
    return (leaves[""] if single else leaves), list(leaves.values()), labels


@pytest.mark.parametrize("name", CARDS)
@settings(max_examples=25, deadline=None)
@given(dtype=st.sampled_from([torch.bfloat16, torch.float16]), scale=st.floats(0, 1e4))
def test_gradients_are_finite_in_half_precision(name, dtype, scale):
    surrogate = AutoSurrogate.from_pretrained(f"reloss/{name}").freeze()
    outputs, leaves, labels = made_up(surrogate, dtype, scale)
    with torch.autocast("cpu", torch.bfloat16):
        loss = surrogate(outputs, labels)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    loss.backward()
    for leaf in leaves:
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", CARDS)
def test_the_loss_is_that_of_the_same_numbers_in_float32(name):
    surrogate = AutoSurrogate.from_pretrained(f"reloss/{name}").freeze()
    outputs, _, labels = made_up(surrogate, torch.bfloat16, 3.0)
    exact = outputs.float() if torch.is_tensor(outputs) else {key: tensor.float() for key, tensor in outputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        rounded = surrogate(outputs, labels)
    torch.testing.assert_close(rounded, surrogate(exact, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_ranked_in_float32_whatever_they_come_in(dtype):
    losses, scores = torch.randn(64).to(dtype), torch.rand(64).to(dtype)
    objective = RelationalObjective(0.0)
    rho = objective.correlation(losses, scores)
    assert rho.dtype == torch.float32
    torch.testing.assert_close(rho, objective.correlation(losses.float(), scores.float()), rtol=1e-5, atol=1e-6)
