"""One step of a training is the same however its examples are divided into micro-batches and processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .programs import PROGRAMS

ROOT = Path(__file__).parents[2]
DIVISIONS = [(16, 1, 1), (4, 4, 1), (8, 1, 2), (2, 4, 2), (4, 1, 4)]
"""Micro-batch of a process, accumulation, processes."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory) -> dict[tuple[int, int, int], dict[str, dict[str, torch.Tensor]]]:
    """Of each division and program, the weights after each epoch."""
    found = {}
    for micro_batch, accumulation, processes in DIVISIONS:
        folder = tmp_path_factory.mktemp(f"{micro_batch}_{accumulation}_{processes}")
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [
            *(sys.executable, *(launch if processes > 1 else []), "-m", "tests.invariant.programs"),
            *(str(folder), str(micro_batch), str(accumulation)),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-10_000:]
        found[micro_batch, accumulation, processes] = {
            name: load_file(folder / f"{name}.safetensors") for name in PROGRAMS
        }
    return found


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("division", DIVISIONS[1:], ids=lambda numbers: "x".join(map(str, numbers)))
def test_all_divisions_follow_one_trajectory(trajectories, program, division):
    if program == "dropped" and division[1] > 1:
        pytest.skip("of an epoch, as many whole micro-batches are left as there are, not whole steps")
    # Of smaller groups the loss is another one: that of all processes' micro-batches. Of a stream, a Trainer leaves out
    # the micro-batches at its end that do not fill a step.
    is_other = program in ("group", "agreement", "maps", "texts", "stream") and division[1] > 1
    reference = DIVISIONS[1] if is_other else DIVISIONS[0]
    one, two = trajectories[reference][program], trajectories[division][program]
    assert one.keys() == two.keys()
    assert max(float(key.partition(".")[0]) for key in one) == 2
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_trajectory_goes_somewhere(trajectories, program):
    seen = trajectories[DIVISIONS[0]][program]
    first, last = min(key.partition(".")[0] for key in seen), max(key.partition(".")[0] for key in seen)
    names = {key.partition(".")[2] for key in seen}
    assert any(not torch.allclose(seen[f"{first}.{name}"], seen[f"{last}.{name}"], atol=1e-4) for name in names)
