"""How long things take, as ratios against their peers in one run.

    HF_RELOSS_DATA=... python benchmarks/speed.py

Each pair is timed in turns, A B A B ..., in one process and on one thread; a ratio is the median of the ratios of the
turns. Writes benchmarks/results/speed_DEVICE.json and prints a table. On a machine with a GPU, `--device cuda` measures
what a GPU computes, and training steps of BERT-base and ResNet-50 in bfloat16, under one process and one for each GPU,
into speed_cuda.json, with the device's name. Soft ranks are also compared with torchsort's where that is installed: pip
install --no-build-isolation torchsort.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import metric_speed
import recording_speed
import step_speed
import text_speed
import token_speed
import torch
from diffsort import DiffSortNet
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers.utils import logging
from turns import in_turns

from hf_reloss import (
    SurrogateConfig,
    SurrogateForClassification,
    SurrogateForMultilabel,
    SurrogateTrainer,
    SurrogateTrainingArguments,
    hard_rank,
    soft_rank,
)
from hf_reloss.compare.runs import environment
from hf_reloss.predictions.dataset import predictions_dataset

RESULTS = Path(__file__).parent / "results"
GROUPS, GROUP_SIZE, CLASSES = 64, 128, 10


def ranks(n: int, device: str) -> dict[str, float]:
    """Soft ranks of n values, forward and backward, against DiffSortNet; and that the values are equal."""
    values = torch.randn(1, n, device=device, requires_grad=True)
    positions, weights = torch.arange(n, device=device).float(), torch.randn(1, n, device=device)
    network = DiffSortNet("bitonic", n, device=device, steepness=5.0, distribution="logistic_phi")

    def ours() -> torch.Tensor:
        result = soft_rank(values, steepness=5.0, distribution="logistic_phi")
        (result * weights).sum().backward()
        return result.detach()

    def theirs() -> torch.Tensor:
        result = network(values)[1] @ positions
        (result * weights).sum().backward()
        return result.detach()

    difference = (ours() - theirs()).abs().max().item()
    turns, calls = (5, 1) if n > 500 else (9, 5)  # DiffSortNet takes seconds for the largest
    return in_turns(ours, theirs, turns, device, calls) | {"largest_difference": difference}


def ranks_of_torchsort(n: int, device: str) -> dict[str, float]:
    """Soft ranks of n values, forward and backward, against torchsort's, which are those of another relaxation."""
    import torchsort

    values, weights = torch.randn(1, n, device=device, requires_grad=True), torch.randn(1, n, device=device)

    def ours() -> None:
        (soft_rank(values, steepness=5.0, distribution="logistic_phi") * weights).sum().backward()

    def theirs() -> None:
        (torchsort.soft_rank(values) * weights).sum().backward()

    return in_turns(ours, theirs, 9, device)


def ranking(metric: str, device: str) -> dict[str, float]:
    """The loss of 32 queries of 64 documents, forward and backward, against the metric of DiffSortNet's ranks."""
    scores = torch.randn(32, 64, device=device, requires_grad=True)
    labels = (torch.rand(32, 64, device=device) < 0.1).float()
    labels[:, 0] = 1
    surrogate = SurrogateForMultilabel.for_metric(metric).to(device)
    network = DiffSortNet("bitonic", 64, device=device, steepness=5.0, distribution="logistic_phi")
    positions = torch.arange(64, device=device).float()
    discounts = 1 / torch.log2(2 + positions)
    ideal = discounts.cumsum(0)[labels.sum(-1).long() - 1]

    def ours() -> None:
        surrogate(scores, labels).backward()

    def theirs() -> None:
        places = 1 + network(-scores)[1] @ positions
        discounted = (labels / torch.log2(1 + places)).sum(-1) / ideal
        soft = discounted if metric == "ndcg" else (labels / places).amax(-1)
        (-soft.log().mean()).backward()

    return in_turns(ours, theirs, 9, device)


def surrogate_step(device: str) -> dict[str, float]:
    """A step of SurrogateTrainer, 64 groups of 128, against a Python loop over groups with DiffSortNet."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (20_000,), generator=generator)
    logits = torch.randn(20_000, CLASSES, generator=generator)
    logits[torch.arange(20_000), labels] += 2 * torch.rand(20_000, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SurrogateTrainer(
            SurrogateForClassification(SurrogateConfig()),
            SurrogateTrainingArguments(folder, use_cpu=device == "cpu"),
            train_dataset=predictions_dataset(logits, labels, torch.linspace(0, 1, 20_000)),
            metric="accuracy",
        )
        trainer.create_optimizer()
    surrogate, groups = trainer.model, trainer.train_dataset
    optimizer = torch.optim.AdamW(surrogate.parameters(), 1e-2)
    network = DiffSortNet("bitonic", GROUPS, device=device, steepness=5.0, distribution="logistic_phi")
    positions = torch.arange(GROUPS, device=device).float()
    chosen = list(range(GROUPS))

    def ours() -> None:
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(surrogate, groups.__getitems__(chosen))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    def theirs() -> None:
        """As the authors train: group by group, the gradient penalty of each on its own."""
        losses, penalties, scores = [], [], []
        for group in chosen:
            row = groups[group]
            outputs, targets = row["logits"].to(device).requires_grad_(), row["labels"].to(device)
            each = surrogate(outputs, targets, reduction="none")
            (gradient,) = torch.autograd.grad(each.sum(), outputs, create_graph=True)
            losses.append(each.mean())
            penalties.append((gradient.norm(dim=-1) - 1).square().mean())
            scores.append((outputs.argmax(-1) == targets).float().mean())
        values = -torch.stack(losses)
        values = (values - values.mean()) / values.std()
        soft, hard = network(values[None])[1][0] @ positions, hard_rank(torch.stack(scores))
        rho = torch.corrcoef(torch.stack([soft, hard]))[0, 1]
        (torch.stack(penalties).mean() - rho).backward()
        optimizer.step()
        optimizer.zero_grad()

    measured = in_turns(ours, theirs, 9, device)
    return measured | {"groups_per_second": 1e3 * GROUPS / measured["ours_ms"]}


def import_time() -> dict[str, float]:
    """Seconds that `import hf_reloss` takes after `import transformers`, each time in a fresh process."""
    code = "import time, transformers; t = time.perf_counter(); import hf_reloss; print(time.perf_counter() - t)"
    runs = [float(subprocess.check_output([sys.executable, "-c", code], text=True)) for _ in range(5)]
    return {"seconds": statistics.median(runs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/speed_DEVICE.json")
    parser.add_argument("--only", help="measure the rows whose name holds this, and keep the others")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measures = {
        **{
            f"soft ranks, n = {n}, against DiffSortNet": (lambda n=n: ranks(n, options.device)) for n in (64, 256, 1024)
        },
        **(
            {"soft ranks, n = 1024, against torchsort": lambda: ranks_of_torchsort(1024, options.device)}
            if find_spec("torchsort")
            else {}
        ),
        **{
            f"{metric}, 32 queries of 64 documents, against DiffSortNet": lambda metric=metric: ranking(
                metric, options.device
            )
            for metric in ("ndcg", "mrr")
        },
        "surrogate step, 64 × 128, against a loop over groups": lambda: surrogate_step(options.device),
        **(
            {
                "import hf_reloss after transformers": import_time,
                "groups from 10 million predictions on disk": lambda: recording_speed.from_disk(10_000_000),
            }
            if options.device == "cpu"
            else {}
        ),
        **metric_speed.measures(options.device, lambda ours, theirs: in_turns(ours, theirs, 5, options.device)),
        **step_speed.measures(options.device),
        **token_speed.measures(options.device, lambda ours, theirs: in_turns(ours, theirs, 9, options.device, 2)),
        **text_speed.measures(options.device, lambda ours, theirs: in_turns(ours, theirs, 5, options.device, 2)),
    }
    path = options.output or RESULTS / f"speed_{options.device}.json"
    former = json.loads(path.read_text())["rows"] if options.only and path.exists() else {}
    wanted = {name: measure for name, measure in measures.items() if options.only is None or options.only in name}
    measured = {name: measure() for name, measure in tqdm(wanted.items())}
    results = former | measured
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    stored = {
        "command": f"python benchmarks/speed.py --device {options.device}",
        "device": device,
        "environment": environment(),
        "rows": results,
    }
    path.write_text(json.dumps(stored, indent=2) + "\n")
    table = Table("what", "ours", "theirs", "ratio", title=f"speed on {device}")
    for name, row in results.items():
        if "ratio" in row:
            unit = "mb" if "ours_mb" in row else "ms"
            values = (f"{row[f'{side}_{unit}']:.2f} {unit}" for side in ("ours", "theirs"))
            table.add_row(name, *values, f"{row['ratio']:.2f}×")
        else:
            table.add_row(name, f"{row['seconds']:.3f} s", "", "")
    Console().print(table)


if __name__ == "__main__":
    main()
