"""What more processes cost: ranking, and the bytes that are gathered in a step.

    python benchmarks/scaling.py

Soft ranks are timed on one thread. Bytes are counted by real processes, over gloo, from the tensors that they gather.
"""

import json
import os
import subprocess
import sys
import time

import torch
from quality import RESULTS
from torch import distributed as dist
from tqdm.auto import tqdm

from hf_reloss import SurrogateForClassification, SurrogateForTokens, distributed
from hf_reloss.compare.runs import environment
from hf_reloss.learning.objectives import RelationalObjective
from hf_reloss.losses.base import gathered_evidence

GROUPS = 64
"""Of a process in a step of SurrogateTrainer, by default."""

PROCESSES = (1, 8, 64, 1_000)


def seconds_to_rank(groups: int) -> float:
    """Of the correlation of so many groups and its gradient, the least of several turns."""
    objective, losses, scores = RelationalObjective(0.0), torch.randn(groups), torch.rand(groups)

    def turn() -> float:
        start = time.perf_counter()
        objective.correlation(losses.clone().requires_grad_(), scores).backward()
        return time.perf_counter() - start

    turn()
    return min(turn() for _ in range(5))


def gathered_bytes(processes: int) -> dict[str, int]:
    """Bytes that one process receives in a step, of each kind of surrogate, as `processes` real ones count them."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launch, __file__, "count"]
    run = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def count() -> None:
    dist.init_process_group("gloo")
    received = []
    gather = distributed._all_gather

    def counting(output: torch.Tensor, *args, **kwargs):
        received.append(output.numel() * output.element_size())
        return gather(output, *args, **kwargs)

    distributed._all_gather = counting
    found = {}
    labels = torch.arange(32) % 10
    of_classes = SurrogateForClassification.for_metric("matthews_correlation")
    gathered_evidence(of_classes.evidence(torch.randn(32, 10), labels))
    found["macro-F1, 32 examples of 10 classes"] = sum(received)
    received.clear()
    of_tokens = SurrogateForTokens.for_metric("sacrebleu")
    gathered_evidence(of_tokens.evidence(torch.randn(32, 40, 50), torch.arange(32 * 40).view(32, 40) % 50))
    found["BLEU, 32 sentences of 40 tokens"] = sum(received)
    received.clear()
    distributed.gathered(torch.randn(GROUPS)), distributed.gathered(torch.rand(GROUPS))
    found[f"SurrogateTrainer, {GROUPS} groups"] = sum(received)
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.barrier()


def main() -> None:
    torch.set_num_threads(1)
    ranking = {str(p * GROUPS): 1e3 * seconds_to_rank(p * GROUPS) for p in tqdm(PROCESSES, desc="ranks")}
    counted = {str(processes): gathered_bytes(processes) for processes in tqdm((2, 4), desc="bytes")}
    result = {
        "command": "python benchmarks/scaling.py",
        "environment": environment(),
        "ranking_ms": ranking,
        "bytes": counted,
    }
    (RESULTS / "scaling_cpu.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    count() if sys.argv[1:] == ["count"] else main()
