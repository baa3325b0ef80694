"""Child models that share a controller: processes that `accelerate launch` has started, each with a model of its own.

Huang et al. 2019, Addressing the Loss-Metric Mismatch with Adaptive Loss Alignment, arXiv:1905.05895, section 4.3.
"""

import contextlib
import io
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import distributed


class Children:
    """Processes that tell each other what they have seen, and share nothing else.

    Args:
        store: through which they speak; None for one that is alone.
        rank: which of them this one is.
        number: how many there are.
    """

    def __init__(self, store: distributed.Store | None = None, rank: int = 0, number: int = 1):
        self.store, self.rank, self.number = store, rank, number
        self._round = 0

    def exchange(self, value: Any) -> list[Any]:
        """The values of all, in the order of their ranks; each has to call it as often as the others.

        Args:
            value: what `torch.load` reads with `weights_only`: tensors, numbers, texts, and collections of them.

        Raises:
            RuntimeError: if one of them has ended, or takes longer than the store waits.
        """
        if self.number == 1:
            return [value]
        store = self.store
        assert store is not None
        written = io.BytesIO()
        torch.save(value, written)
        self._round += 1
        keys = [f"{self._round}/{rank}" for rank in range(self.number)]
        try:
            store.set(keys[self.rank], written.getvalue())  # type: ignore[arg-type]  # torch's stub knows texts only
            values = [torch.load(io.BytesIO(store.get(key)), weights_only=True) for key in keys]
            if store.add(f"{self._round}/read", 1) == self.number:
                store.set(f"{self._round}/done", "")
            if self.rank == 0:  # which may be the one that keeps the store, and goes last
                store.wait([f"{self._round}/done"])
                for key in (*keys, f"{self._round}/read", f"{self._round}/done"):
                    store.delete_key(key)
        except distributed.DistError as error:
            raise RuntimeError(
                f"Child {self.rank} of {self.number} waited for what the others have seen, but one of them has ended, "
                "or not come so far within ddp_timeout: see its log. Children of one controller need the same number "
                "of steps, and are resumed together, from checkpoints of one step."
            ) from error
        return values


_children: Children | None = None


def launched(timeout: float = 1_800.0) -> Children:
    """The children that `accelerate launch` or `torchrun` has started; of a program that was started alone, one.

    Args:
        timeout: of the first call: how many seconds they wait for each other.

    Raises:
        RuntimeError: if the processes work together already.
    """
    global _children
    if _children is None:
        _children = _rendezvous(timeout) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else Children()
    return _children


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A launched process looks to torch, Accelerate and Trainer like a program of its own here.

    What says that there are others is taken out of the environment, which is as before afterwards; of several GPUs it
    sees one. TrainingArguments that are made here stay those of one process.
    """
    kept = dict(os.environ)
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", 0)))
    try:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
        if devices := torch.cuda.device_count():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")
            os.environ["CUDA_VISIBLE_DEVICES"] = visible[local_rank % devices]
        yield
    finally:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
            os.environ.pop(name, None)
            if name in kept:
                os.environ[name] = kept[name]


def _rendezvous(timeout: float) -> Children:
    if distributed.is_initialized():
        raise RuntimeError(
            "adapt_children=True makes a model of its own of each process, but they have been joined already: make the "
            "training arguments before any Accelerator or other TrainingArguments."
        )
    store, rank, number = next(distributed.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    store.set_timeout(timedelta(seconds=timeout))
    return Children(distributed.PrefixStore("hf_reloss", store), rank, number)
