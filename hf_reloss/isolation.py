"""What is done within a distributed training without being part of it."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import patch_environment
from transformers.integrations import deepspeed
from transformers.utils import logging


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
