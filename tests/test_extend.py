"""docs/extend.md: what it defines is trained with, saved, loaded in another process, and gone on with."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from .processes import python

ROOT = Path(__file__).parents[1]
FILES = {
    code.split("\n")[0].removeprefix("# "): code
    for code in re.findall(r"```python\n(# my_\w+\.py\n.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.S)
}
PRINT = """
logits, labels = torch.linspace(-3, 3, 20).view(4, 5), torch.arange(4)
print(loss(logits, labels).item().hex())
"""


@pytest.fixture
def folder(tmp_path):
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    return tmp_path


def call(folder, code: str, *arguments: str) -> subprocess.CompletedProcess:
    return python(code, *arguments, folder=folder)


def ran(folder, code: str, *modules: str) -> str:
    """What a process says in its last line that has imported some of the files, and does something."""
    imports = "".join(f"import {module}\n" for module in modules)
    done = call(folder, f"import torch\nfrom hf_reloss import *\n{imports}{code}")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_all_files_of_the_page_are_tried_here():
    assert FILES.keys() == {f"my_{name}.py" for name in ("metric", "loss", "task", "strategy", "program", "comparison")}


def test_a_metric_is_known_by_its_name(folder):
    code = "print(load_metric('within', radius=0.25).compute(torch.tensor([0.0, 1.0]), torch.tensor([0.1, 2.0])))"
    assert ran(folder, code, "my_metric") == "0.5"


@pytest.mark.parametrize("made", ["hand_made_loss('squared_probability', factor=2.0)"])
def test_a_loss_is_made_by_its_word_saved_and_loaded_in_another_process(folder, made):
    first = ran(folder, f"loss = {made}\nloss.save_pretrained('saved'){PRINT}", "my_loss")
    assert ran(folder, f"loss = AutoSurrogate.from_pretrained('saved'){PRINT}", "my_loss") == first
    without = call(folder, "from hf_reloss import AutoSurrogate\nAutoSurrogate.from_pretrained('saved')")
    assert "import the module that defines" in without.stderr


def test_a_program_learns_a_surrogate_for_a_task_and_a_metric_and_goes_on(folder):
    program = "import runpy\nrunpy.run_path('my_program.py', run_name='__main__')"
    arguments = ("--max_steps", "60", "--learning_rate", "0.05", "--save_steps", "30", "--use_cpu")
    arguments = (*arguments, "--per_device_train_batch_size", "16", "--report_to", "none", "--disable_tqdm", "True")
    whole = call(folder, program, *arguments, "--output_dir", "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    resumed = call(
        folder, program, *arguments, "--output_dir", "resumed", "--resume_from_checkpoint", "whole/checkpoint-30"
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    for name in ("model.safetensors", "surrogate/model.safetensors"):
        assert (folder / "whole" / name).read_bytes() == (folder / "resumed" / name).read_bytes(), name
    kind = "loss = AutoSurrogate.from_pretrained('whole/surrogate')\nprint(type(loss).__name__, loss.network.radius)"
    assert ran(folder, kind, "my_task") == "SurrogateForNumbers 0.5"
    without = call(folder, "from hf_reloss import AutoSurrogate\nAutoSurrogate.from_pretrained('whole/surrogate')")
    assert "import the module that defines it first" in without.stderr


TRAIN = """
from my_comparison import examples, model

args = ReLossTrainingArguments("OUT", max_steps=20, save_steps=10, report_to="none", disable_tqdm=True, use_cpu=True)
torch.manual_seed(0)
trainer = ReLossTrainer(model(), args, train_dataset=examples, surrogate="annealed")
trainer.train(resume_from_checkpoint=RESUMED)
print(trainer.strategy.steps, trainer.model.head.weight.sum().item().hex())
"""


def test_a_way_to_train_is_found_by_its_word_and_goes_on_from_a_checkpoint(folder):
    whole = ran(folder, TRAIN.replace("OUT", "whole").replace("RESUMED", "None"), "my_strategy")
    assert whole.startswith("20 ")
    resumed = TRAIN.replace("OUT", "resumed").replace("RESUMED", "'whole/checkpoint-10'")
    assert ran(folder, resumed, "my_strategy") == whole


def test_losses_are_compared_on_a_task(folder):
    arguments = ["compare", "my_comparison.py", "--losses", "squared_probability,focal", "--metric", "accuracy"]
    done = call(folder, "from hf_reloss.cli import app; app()", *arguments, "--seeds", "2", "--output", "comparison")
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    stored = json.loads((folder / "comparison" / "results.json").read_text())
    assert {loss: len(scores) for loss, scores in stored["scores"].items()} == {
        "cross_entropy": 2, "squared_probability": 2, "focal": 2,
    }  # fmt: skip
