"""A run that is killed, for real, and resumed equals one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.distributed.programs", "auto", str(folder), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("killed_after", [30, 60])  # in the first stretch; once the surrogate has taken over
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, killed_after):
    unbroken = start(tmp_path / "unbroken")
    assert unbroken.wait(timeout=200) == 0

    victim = start(tmp_path / "killed")
    state = tmp_path / "killed" / "run" / f"checkpoint-{killed_after}" / "trainer_state.json"
    while not state.exists() or not state.read_text().endswith("}\n"):
        assert victim.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    (tmp_path / "killed" / "result_0.safetensors").unlink(missing_ok=True)

    resumed = start(tmp_path / "killed", str(state.parent))
    assert resumed.wait(timeout=200) == 0
    one, two = (load_file(tmp_path / name / "result_0.safetensors") for name in ("unbroken", "killed"))
    assert any(name.startswith("surrogate.") for name in one)
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
