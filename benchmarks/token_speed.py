"""A training step of a language model with a large vocabulary, on ReLoss and on the model's own loss.

python benchmarks/token_speed.py {own,reloss} CPU_OR_CUDA   # prints the megabytes that steps need at their peak
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

from hf_reloss import ReLossTrainer, SurrogateConfig, SurrogateForTokens

VOCABULARY, SENTENCES, TOKENS = 32_000, 8, 128


def stepper(loss: str, device: str) -> Callable[[], None]:
    """Takes a training step of a GPT-2 of 4 layers, 256 wide, with a head of 32,000 tokens."""
    torch.manual_seed(0)
    sizes = {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": TOKENS}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **sizes))
    args = TrainingArguments(tempfile.mkdtemp(), use_cpu=device == "cpu", bf16=device == "cuda", disable_tqdm=True)
    if loss == "own":
        trainer = Trainer(model, args)
    else:
        surrogate = SurrogateForTokens(SurrogateConfig(task="tokens", reach=2))
        trainer = ReLossTrainer(model, args, surrogate=surrogate)
    trainer.pop_callback(PrinterCallback)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    model.config.use_cache = False  # as in training
    ids = torch.randint(VOCABULARY, (SENTENCES, TOKENS), device=device)

    def step() -> None:
        trainer.training_step(trainer.model, {"input_ids": ids, "labels": ids})
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def peak(loss: str, device: str) -> float:
    """The largest memory in MB that three steps take, those of the model and its optimizer among them."""
    if device == "cuda":
        step = stepper(loss, device)
        torch.cuda.reset_peak_memory_stats()
    else:
        torch.set_num_threads(1)
        before = _largest_resident()
        step = stepper(loss, device)
    for _ in range(3):
        step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _largest_resident() - before


def _largest_resident() -> float:
    """The largest resident memory of this process in MB, as Linux tells it; getrusage would tell its parent's, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def measures(device: str, in_turns: Callable[..., dict[str, float]]) -> dict[str, Callable[[], dict[str, float]]]:
    """What `speed.py` measures of language models."""

    def time() -> dict[str, float]:
        return in_turns(stepper("reloss", device), stepper("own", device))

    def memory() -> dict[str, float]:
        """Each in a fresh process, so that neither finds memory that the other has left."""
        ours, theirs = (
            float(subprocess.check_output([sys.executable, str(Path(__file__)), loss, device], text=True).split()[-1])
            for loss in ("reloss", "own")
        )
        return {"ours_mb": ours, "theirs_mb": theirs, "ratio": theirs / ours}

    what = f"of a language model with {VOCABULARY:,} tokens, on ReLoss against its own loss"
    return {f"step {what}": time, f"peak memory {what}": memory}


if __name__ == "__main__":
    print(peak(sys.argv[1], sys.argv[2]))
