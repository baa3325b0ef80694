"""What results of a comparison depend on, and how they are written."""

import itertools
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import DataCollatorWithPadding

from hf_reloss import AutoSurrogate, SurrogateConfig
from hf_reloss.compare.stored_results import SAMPLED_ROWS, differences, fingerprint, replaced, write_atomically
from hf_reloss.compare.task import ComparedTask, load_task
from hf_reloss.metrics import load_metric

from ..conftest import TinyClassifier, tiny_rows
from .test_study import TASK

ACCURACY = load_metric("accuracy")


class Augmented(torch.utils.data.Dataset):
    """Rows of which the features are turned around at random, half of the time."""

    def __init__(self, rows: list[dict]):
        self.rows, self.read = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        self.read += 1
        row = self.rows[index]
        return row | {"features": row["features"] * (-1 if torch.rand(()) < 0.5 else 1)}


def of(data, **options) -> dict:
    return fingerprint(ComparedTask(TinyClassifier, data, tiny_rows(4), **options), ACCURACY)


@pytest.mark.parametrize("rows", [1, 3, 300])
def test_of_randomly_augmented_data_only_what_is_stable_counts(rows):
    prints = []
    for seed in range(5):
        torch.manual_seed(seed)
        prints.append(of(Augmented(tiny_rows(rows))))
        assert not differences(prints[0], prints[-1])
        assert prints[-1]["train_dataset, column features"] is None
    relabelled = of(Augmented([row | {"labels": (row["labels"] + 1) % 4} for row in tiny_rows(rows)]))
    assert [part.split(":")[0] for part in differences(prints[0], relabelled)] == ["train_dataset, column labels"]


def test_of_much_data_a_sample_is_read():
    data = Augmented(tiny_rows(10_000))
    of(data)
    assert data.read == 2 * SAMPLED_ROWS


def test_data_without_rows_to_read_or_of_any_form_have_a_fingerprint():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(tiny_rows(3))

    assert of(Stream())["train_dataset, length"] == "unknown"
    assert not differences(of(Stream()), of(Stream()))
    tuples = torch.utils.data.TensorDataset(torch.arange(3), torch.ones(3))
    assert {"train_dataset, column 0", "train_dataset, column 1"} <= of(tuples).keys()
    table = Dataset.from_dict({"labels": [0, 1, 2]})
    assert of(table) == of(Dataset.from_dict({"labels": [0, 1, 2]}))
    assert differences(of(table), of(Dataset.from_dict({"labels": [0, 1, 3]})))
    halves = [of([{"labels": torch.full((1,), value, dtype=torch.bfloat16)}]) for value in (1.0, 1.0, 2.0)]
    assert halves[0] == halves[1]
    assert differences(halves[0], halves[2])
    odd = [of([{"text": "a", "array": np.arange(value), "set": {value}, "lock": threading.Lock()}]) for value in (3, 4)]
    assert [part.split(",")[1].split(":")[0] for part in differences(*odd)] == [" column array", " column set"]


def test_options_count_by_what_stays_the_same():
    def collator(**options) -> dict:
        return {"data_collator": DataCollatorWithPadding(object(), **options)}

    rows = tiny_rows(4)
    assert of(rows, trainer_options=collator()) == of(rows, trainer_options=collator())
    assert differences(of(rows, trainer_options=collator()), of(rows, trainer_options=collator(max_length=9)))


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process(tmp_path):
    file = tmp_path / "task.py"
    extra = "trainer_options = {'data_collator': lambda rows: rows, 'callbacks': [object()]}\n"
    file.write_text(f"{TASK}\narguments['label_names'] = ['labels']\n{extra}")
    program = (
        "import json, sys; from hf_reloss.metrics import load_metric; from hf_reloss.compare.task import load_task; "
        "from hf_reloss.compare.stored_results import fingerprint; "
        "print(json.dumps(fingerprint(load_task(sys.argv[1]), load_metric('accuracy'))))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program, file],
        check=True, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": "7"},
    ).stdout  # fmt: skip
    here = fingerprint(load_task(str(file)), ACCURACY)
    assert json.loads(printed.splitlines()[-1]) == here
    assert None not in here.values()
    file.write_text(file.read_text() + "# something else\n")
    assert [part.split(":")[0] for part in differences(here, fingerprint(load_task(str(file)), ACCURACY))] == ["task"]


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, "former")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half" * 100_000 + "\ud800")
    assert path.read_text() == "former"


class Killed(BaseException):
    """Ends everything at a write, as a kill does."""


@pytest.fixture
def kill_at():
    """Sets at which opening, renaming or making of something below a folder everything ends; at 0, at none."""
    left = {"steps": 0, "below": ""}

    def watch(event, arguments):
        if event in ("open", "os.rename", "os.mkdir") and str(arguments[0]).startswith(left["below"]):
            left["steps"] -= 1
            if left["steps"] == 0:
                raise Killed

    sys.addaudithook(watch)
    yield lambda step, below: left.update(steps=step, below=str(below))
    left.update(steps=0)  # a hook cannot be taken away


def test_a_folder_is_replaced_only_by_a_whole_one(tmp_path, kill_at):
    folder = tmp_path / "surrogate"
    former, new = (AutoSurrogate.from_config(SurrogateConfig(anchor=anchor)) for anchor in (1.0, 3.0))
    for step in itertools.count(1):
        former.save_pretrained(folder)
        kill_at(step, tmp_path)
        try:
            with replaced(folder) as partial:
                new.save_pretrained(partial)
            break
        except Killed:
            assert not folder.exists() or AutoSurrogate.from_pretrained(folder).config.anchor == 1.0
    kill_at(0, tmp_path)
    assert step > 4
    assert AutoSurrogate.from_pretrained(folder).config.anchor == 3.0
    assert os.listdir(tmp_path) == ["surrogate"]
