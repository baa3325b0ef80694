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

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def start(program: str, folder: Path, *arguments: str) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.distributed.programs", program, str(folder), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("program", "moment", "checkpoint"),
    [
        ("auto", "checkpoint-30/trainer_state.json", "checkpoint-30"),  # in the first stretch
        ("auto", "_surrogate-*", "checkpoint-30"),  # while the surrogate is learned
        ("auto", "checkpoint-60/trainer_state.json", "checkpoint-60"),  # once it has taken over
        ("surrogate", "checkpoint-4/trainer_state.json", "checkpoint-4"),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, program, moment, checkpoint):
    unbroken = start(program, tmp_path / "unbroken")
    assert unbroken.wait(timeout=200) == 0

    victim, run = start(program, tmp_path / "killed"), tmp_path / "killed" / "run"
    while not any(map(has_come, run.glob(moment))):
        assert victim.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    (tmp_path / "killed" / "result_0.safetensors").unlink(missing_ok=True)

    resumed = start(program, tmp_path / "killed", str(run / checkpoint))
    assert resumed.wait(timeout=200) == 0
    one, two = (load_file(tmp_path / name / "result_0.safetensors") for name in ("unbroken", "killed"))
    assert any(name.startswith("surrogate." if program == "auto" else "weight.") for name in one)
    # What a resumed run keeps of its first step is not that of the whole run.
    for name in (name for name in one if not name.startswith("gradient.")):
        assert torch.equal(one[name], two[name]), name


def has_come(moment: Path) -> bool:
    return moment.exists() and (moment.is_dir() or moment.read_text().endswith("}\n"))
