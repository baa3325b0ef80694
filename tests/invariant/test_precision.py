"""Whatever the precision of a model, its surrogate computes in float32, and what reaches the model is finite."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments

from hf_reloss import AutoSurrogate, ReLossTrainer
from hf_reloss.learning.objectives import RelationalObjective

from ..conftest import TinyClassifier, tiny_rows

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


def scaled(trainer_class: type[Trainer], folder: Path, **options) -> tuple[dict[str, torch.Tensor], float]:
    """Weights of a run in float16 with a gradient scaler, whose first steps overflow, and the scale at its end.

    Accelerate makes a scaler on a GPU only, so it is handed one.
    """
    torch.manual_seed(0)
    args = TrainingArguments(
        str(folder), max_steps=30, per_device_train_batch_size=16, learning_rate=0.05, save_strategy="no",
        disable_tqdm=True, use_cpu=True, seed=3, logging_steps=1,
    )  # fmt: skip
    trainer = trainer_class(TinyClassifier(), args, train_dataset=tiny_rows(160), **options)
    trainer.accelerator.state._mixed_precision, trainer.accelerator.native_amp = "fp16", True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=1_000)
    trainer.train()
    return trainer.model.state_dict(), trainer.accelerator.scaler.get_scale()


@pytest.mark.parametrize("name", ["accuracy", "macro-f1"])
def test_a_gradient_scaler_finds_its_scale_and_the_run_its_way(tmp_path, name):
    loss = AutoSurrogate.from_pretrained(f"reloss/{name}").freeze()
    weights, scale = scaled(ReLossTrainer, tmp_path, surrogate=loss)
    assert scale < 2.0**24  # steps were left out
    assert all(weight.isfinite().all() for weight in weights.values())
    expected, same = scaled(
        Trainer, tmp_path, compute_loss_func=lambda outputs, labels, num_items_in_batch=None: loss(outputs, labels)
    )
    assert scale == same
    for key, weight in expected.items():
        torch.testing.assert_close(weights[key], weight)
    rows = {key: torch.stack([row[key] for row in tiny_rows(200, seed=1)]) for key in ("features", "labels")}
    trained = TinyClassifier()
    trained.load_state_dict(weights)
    assert (trained(rows["features"]).logits.argmax(-1) == rows["labels"]).float().mean() > 0.8


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
