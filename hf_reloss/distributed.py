"""Several processes: tensors of all of them, the examples of each, and work that is no part of the training."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import patch_environment
from torch.autograd.function import once_differentiable
from transformers import Trainer
from transformers.integrations import deepspeed
from transformers.utils import logging


def is_filled_up(trainer: Trainer) -> bool:
    """Whether the last batch that was fetched, in all processes together, is filled up with examples from elsewhere."""
    return trainer.accelerator.gradient_state.end_of_dataloader and _remainder(trainer) > 0


def _remainder(trainer: Trainer) -> int:
    """How many examples the last batch that was fetched has, in all processes together, if they do not fill it."""
    if trainer.args.world_size == 1 or trainer.args.dataloader_drop_last:
        return 0
    sampler = getattr(trainer.accelerator.gradient_state.active_dataloader, "batch_sampler", None)
    if (
        getattr(sampler, "num_processes", None) == 1
    ):  # as of train_sampling_strategy="batch_rebalance", which shares out
        return 0
    return max(trainer.accelerator.gradient_state.remainder, 0)  # -1 where Accelerate does not know it


def own_rows(trainer: Trainer, number: int) -> int:
    """How many of a process's `number` examples, of the last batch that was fetched, do not fill it up."""
    if not is_filled_up(trainer):
        return number
    return min(max(_remainder(trainer) - trainer.args.process_index * number, 0), number)


def gathered(values: torch.Tensor) -> torch.Tensor:
    """Values [m, ...] of all processes, one after the other; of the same shape in each.

    The gradient of each is the sum of those in all processes. Where all compute the same loss of it, DDP's mean over
    processes makes it that of one process.
    """
    return values if number_of_processes() == 1 else _Gathered.apply(values)


def padded(tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """A tensor with 0 behind each of its dimensions, up to sizes."""
    missing = [size - has for size, has in zip(sizes, tensor.shape, strict=True)]
    return F.pad(tensor, [pad for size in reversed(missing) for pad in (0, size)]) if any(missing) else tensor


def number_of_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name until torch 2.13


class _Gathered(torch.autograd.Function):
    """All processes' values [m, ...], one after the other.

    It waits for each collective: torch's functional ones, which do not, corrupted gloo's memory now and then.
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        found = values.new_empty(dist.get_world_size() * len(values), *values.shape[1:])
        _all_gather(found, values.contiguous())
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Models that are made or loaded here are whole in every process.

    FSDP would load the weights in the first process alone, and DeepSpeed's ZeRO-3 would divide them, as they do with
    the model that is trained.
    """
    divides = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        with patch_environment(accelerate_use_fsdp="false", accelerate_use_deepspeed="false"):
            yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = divides


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Another Trainer can run here, inside one that is training: on all processes, with what it trains whole in each.

    Random states, the log, and what Accelerate shares are as before afterwards.
    """
    random_states = random.getstate(), np.random.get_state()
    shared = [(kind, dict(kind._shared_state)) for kind in (PartialState, AcceleratorState, GradientState)]
    verbosity = logging.get_verbosity()
    with torch.random.fork_rng(), undivided():
        try:
            for kind, _ in shared:
                kind._shared_state.clear()
            yield
        finally:
            random.setstate(random_states[0])
            np.random.set_state(random_states[1])
            for kind, state in shared:
                kind._shared_state.clear()
                kind._shared_state.update(state)
            logging.set_verbosity(verbosity)
