"""Child models that share a controller; tests/distributed/test_faults.py trains some."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch import distributed

from hf_reloss import ReLossTrainer, ReLossTrainingArguments
from hf_reloss.adaptive_loss import children
from hf_reloss.adaptive_loss.children import Children

from ..conftest import TinyClassifier, tiny_rows


def test_each_gets_what_all_have_seen_in_order():
    store = distributed.HashStore()
    store.set_timeout(timedelta(seconds=20))

    def child(rank: int) -> list:
        one = Children(store, rank, 3)
        return [one.exchange({"rank": rank, "tensor": torch.full((2,), rank + 10.0 * turn)}) for turn in range(4)]

    with ThreadPoolExecutor(3) as threads:
        seen = list(threads.map(child, range(3)))
    for of_child in seen:
        for turn, values in enumerate(of_child):
            assert [value["rank"] for value in values] == [0, 1, 2]
            assert [value["tensor"].tolist() for value in values] == [[rank + 10.0 * turn] * 2 for rank in range(3)]
    assert store.num_keys() == 0  # nothing is left behind


def test_one_that_is_alone_needs_no_other():
    assert Children().exchange(3.0) == [3.0]


def test_one_whose_others_do_not_answer_ends():
    store = distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    with pytest.raises(RuntimeError, match="Child 0 of 2 waited"):
        Children(store, 0, 2).exchange(1.0)


def test_a_launched_process_looks_alone_for_as_long_as_its_arguments_are_made(monkeypatch, tmp_path):
    launch = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "CUDA_VISIBLE_DEVICES": "3,6"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(children, "_children", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(distributed.HashStore(), 5, 8)]))
    found = children.launched()
    assert (found.rank, found.number) == (5, 8)
    assert children.launched() is found
    before = dict(os.environ)
    with children.alone():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
        assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} & os.environ.keys()
    assert dict(os.environ) == before
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    args = ReLossTrainingArguments(str(tmp_path), adapt_children=True, use_cpu=True)
    assert args.world_size == 1
    assert os.environ.keys() >= launch.keys()
    assert all(os.environ[name] == launch[name] for name in launch)


def test_each_child_has_a_seed_and_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "_children", Children(distributed.HashStore(), 2, 3))
    args = ReLossTrainingArguments(str(tmp_path), adapt_children=True, seed=40, use_cpu=True)
    assert (args.seed, args.output_dir) == (42, str(tmp_path / "child-2"))
    assert args.disable_tqdm
    again = ReLossTrainingArguments(args.output_dir, adapt_children=True, seed=args.seed, use_cpu=True)
    assert (again.seed, again.output_dir) == (args.seed, args.output_dir)


def test_a_child_that_is_alone_is_told_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(children, "_children", Children())
    with caplog.at_level("WARNING", logger="hf_reloss"):
        args = ReLossTrainingArguments(str(tmp_path), adapt_children=True, use_cpu=True)
    assert "this is the only process" in caplog.text
    assert args.output_dir == str(tmp_path / "child-0")


def test_what_is_wrong_is_told(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="push the one that is chosen"):
        ReLossTrainingArguments(str(tmp_path), adapt_children=True, push_to_hub=True, use_cpu=True)
    args = ReLossTrainingArguments(str(tmp_path), adapt_children=True, use_cpu=True)
    with pytest.raises(ValueError, match="is for surrogate='ala'"):
        ReLossTrainer(TinyClassifier(), args, train_dataset=tiny_rows(20), surrogate="focal")
    monkeypatch.setattr(children, "_children", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="make the training arguments before any Accelerator"):
        children.launched()
