"""A process that dies and a disk that is full: an error in time, and the checkpoint before is whole."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def start(folder: Path, *fate: str, processes: int = 2, program: str = "victim") -> list[subprocess.Popen]:
    """Processes that nobody looks after: none is ended because another is."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.distributed.programs", program, str(folder), *fate]
    common = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank in range(processes):
        of_process = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)} if processes > 1 else {}
        log = (folder / f"{rank}.log").open("w")
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=os.environ | common | of_process, stdout=log, stderr=log)
        )
    return started


def ended(processes: list[subprocess.Popen]) -> list[int]:
    return [process.wait(timeout=200) for process in processes]


def test_when_one_process_dies_the_others_end_with_an_error_and_the_run_goes_on_from_before(tmp_path):
    assert ended(start(tmp_path / "unbroken")) == [0, 0]
    first, second = start(tmp_path / "broken", "dies")
    assert second.wait(timeout=200) == -signal.SIGKILL
    died = time.monotonic()
    assert first.wait(timeout=60) not in (0, -signal.SIGKILL)
    assert time.monotonic() - died < 40  # the time-out is 20 s
    assert "Error" in (tmp_path / "broken" / "0.log").read_text()
    assert [path.name for path in (tmp_path / "broken" / "run").glob("checkpoint-*")] == ["checkpoint-4"]
    assert ended(start(tmp_path / "broken", "resumes")) == [0, 0]
    assert_same_weights(tmp_path / "unbroken", tmp_path / "broken")


def test_when_one_process_diverges_all_end_at_once_with_an_error_that_says_so(tmp_path):
    assert ended(start(tmp_path / "broken", "diverges")) == [1, 1]
    first, second = ((tmp_path / "broken" / f"{rank}.log").read_text() for rank in (0, 1))
    assert "FloatingPointError" in first
    assert "at step 7" in first
    assert "FloatingPointError" in second
    assert [path.name for path in (tmp_path / "broken" / "run").glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_disk_that_is_full_leaves_the_checkpoint_before_whole(tmp_path):
    assert ended(start(tmp_path / "unbroken", processes=1)) == [0]
    assert ended(start(tmp_path / "broken", "full", processes=1)) == [1]
    assert "Error" in (tmp_path / "broken" / "0.log").read_text()
    run = tmp_path / "broken" / "run"
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    assert not (run / "checkpoint-8" / "trainer_state.json").exists()  # it is not whole, and not what is resumed
    assert ended(start(tmp_path / "broken", "resumes", processes=1)) == [0]
    assert_same_weights(tmp_path / "unbroken", tmp_path / "broken")


def test_children_share_a_controller_and_go_on_after_one_has_died(tmp_path):
    assert ended(start(tmp_path / "unbroken", program="children")) == [0, 0]
    first, second = children = [
        load_file(tmp_path / "unbroken" / f"child_{rank}" / "result_0.safetensors") for rank in (0, 1)
    ]
    for child in children:  # each has seen all the data, and all has been remembered of both
        assert child["batches"] == 10
        assert len(child["rewards"]) == 9
        assert child["remembered"].tolist() == [2] * 9
        errors = torch.cat([one["error"] for one in children])
        assert child["best"] == errors.argmin()
    for name, weight in first.items():
        if name.startswith("policy."):
            assert torch.equal(weight, second[name]), name
        elif name.startswith("weight."):
            assert not torch.equal(weight, second[name]), name
    assert not torch.equal(first["values"], second["values"])
    assert {path.name for path in (tmp_path / "unbroken" / "run").iterdir()} == {"child-0", "child-1"}

    survivor, dead = start(tmp_path / "broken", "dies", program="children")
    assert dead.wait(timeout=200) == -signal.SIGKILL
    assert survivor.wait(timeout=60) == 1
    assert "resumed together" in (tmp_path / "broken" / "0.log").read_text()
    assert ended(start(tmp_path / "broken", "resumes", program="children")) == [0, 0]
    for rank in (0, 1):
        assert_same_weights(tmp_path / "unbroken" / f"child_{rank}", tmp_path / "broken" / f"child_{rank}")


def assert_same_weights(one: Path, two: Path) -> None:
    one, two = (load_file(folder / "result_0.safetensors") for folder in (one, two))
    assert one.keys() == two.keys()
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())
