"""What has to be scored group by group is scored in processes where that is worth it."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_reloss import load_metric
from hf_reloss.metrics import processes

INDEX = torch.arange(200).view(20, 10)[torch.arange(120) % 20]
LABELS = torch.arange(200) % 3
DECIDED = torch.arange(200) % 7 % 3


def share(predictions, references, folder):
    """Of right ones; and says in which process."""
    (Path(folder) / str(os.getpid())).touch()
    return np.mean(predictions == references)


@pytest.fixture
def started(monkeypatch):
    """How often processes were to be started, which end at once."""
    calls = []

    class Dying:
        def __init__(self, *args, **options):
            calls.append(args)
            raise RuntimeError("no processes here")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", Dying)
    monkeypatch.setattr(processes, "_number_of_processes", lambda: 2)
    return calls


def test_slow_metrics_are_scored_in_processes_and_give_the_same(monkeypatch, tmp_path):
    wanted = (DECIDED == LABELS)[INDEX].double().mean(1)
    labels = torch.where(torch.arange(200) % 5 == 0, -100, LABELS)
    counted = load_metric(share, folder=str(tmp_path), higher_is_better=True)
    assert counted.score_groups(DECIDED, LABELS, INDEX).tolist() == pytest.approx(wanted.tolist())
    alone = counted.score_groups(DECIDED, labels, INDEX)
    assert [file.name for file in tmp_path.iterdir()] == [str(os.getpid())]
    monkeypatch.setattr(processes, "WORTH", 0.0)
    monkeypatch.setattr(processes, "_number_of_processes", lambda: 2)
    pool = processes.ProcessPoolExecutor  # of one, which each of several is
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda number, *args, **options: pool(1, *args, **options))
    assert torch.equal(counted.score_groups(DECIDED, labels, INDEX), alone)
    assert len(list(tmp_path.iterdir())) == 2


def test_cheap_ones_are_not(started, tmp_path):
    load_metric(share, folder=str(tmp_path), higher_is_better=True).score_groups(DECIDED, LABELS, INDEX)
    assert started == []


def test_where_processes_fail_it_goes_on_without(started, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(processes, "WORTH", 0.0)
    metric = load_metric(share, folder=str(tmp_path), higher_is_better=True)
    wanted = (DECIDED == LABELS)[INDEX].double().mean(1)
    assert metric.score_groups(DECIDED, LABELS, INDEX).tolist() == pytest.approx(wanted.tolist())
    assert len(started) == 1
    assert "no processes here" in caplog.text


@pytest.mark.parametrize("reason", ["not pickled", "a program that runs when it is imported", "a single core"])
def test_processes_are_not_started_where_they_cannot_work(reason, started, monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "WORTH", 0.0)
    function = share
    if reason == "not pickled":

        def function(predictions, references, folder):
            return share(predictions, references, folder)

    elif reason == "a single core":
        monkeypatch.setattr(processes, "_number_of_processes", lambda: 1)
    else:
        (tmp_path / "train.py").write_text("train()\n")
        monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "train.py"), raising=False)
    scores = load_metric(function, folder=str(tmp_path), higher_is_better=True).score_groups(DECIDED, LABELS, INDEX)
    assert len(scores) == 120
    assert started == []


def test_processes_share_the_cores_with_other_ranks_and_start_none_themselves(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16), raising=False)
    assert processes._number_of_processes() == processes.MOST_PROCESSES
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert processes._number_of_processes() == 4
    monkeypatch.setattr(processes.multiprocessing, "parent_process", lambda: object())
    assert processes._number_of_processes() == 1
