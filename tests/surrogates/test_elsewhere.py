"""Losses, networks, metrics and surrogates that are defined outside of the package are found by their words."""

import subprocess
import sys

import pytest
import torch

THEIRS = '''
"""Somebody's own metric, hand-made loss, learned network, and surrogate of a task of their own."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from hf_reloss import Surrogate, SurrogateConfig, load_metric
from hf_reloss.losses.base import Evidence, SurrogateNetwork
from hf_reloss.losses.hand_made.base import HandMadeLoss
from hf_reloss.metrics.base import AdditiveMetric


@dataclass(frozen=True)
class Within(AdditiveMetric):
    """The share of numbers that are nearer to the true ones than `radius`."""

    name: ClassVar[str] = "within"
    radius: float = 0.5

    def _statistics(self, predictions, references):
        near = ((predictions - references).abs() < self.radius).double()
        return torch.stack([near, torch.ones_like(near)], -1)

    def _score(self, sums):
        return sums[..., 0] / sums[..., 1]


class SquaredProbability(HandMadeLoss):
    """(1 - p(label))², times `factor`."""

    architecture = "squared_probability"
    tasks = ("classification", "tokens")
    options = {"factor": 1.0}

    def losses(self, evidence):
        return self.factor * torch.expm1(-self.label_losses(evidence)).square()


class Scaled(SurrogateNetwork):
    """Cross-entropy times a learned number."""

    architecture = "scaled"
    tasks = ("classification",)

    def __init__(self, *, start: float = 0.0):
        super().__init__()
        self.log_factor = nn.Parameter(torch.tensor(start))

    def losses(self, evidence):
        losses = F.cross_entropy(evidence.outputs.flatten(0, -2), evidence.labels.flatten(), reduction="none")
        return self.log_factor.exp() * losses.view(evidence.labels.shape)


class SoftHits(SurrogateNetwork):
    architecture = "soft_hits"
    tasks = ("numbers",)

    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(1.0))

    def losses(self, evidence):
        return F.softplus(self.sharpness.exp() * ((evidence.outputs[..., 0] - evidence.labels).abs() - 0.5))


class SurrogateForNumbers(Surrogate):
    """For models that put out one number per example."""

    task = "numbers"
    networks = (SoftHits,)
    read_columns = ("numbers",)
    scored = ("numbers", "labels")
    original_loss = "mean_squared_error"

    @classmethod
    def reads(cls, outputs, labels):
        return labels.is_floating_point() and labels.dim() == 1

    @classmethod
    def recorded(cls, outputs, labels, inputs):
        return {"numbers": outputs["logits"].flatten(), "labels": labels}

    def evidence(self, outputs, labels):
        numbers = outputs["numbers"] if "numbers" in outputs else outputs["logits"].squeeze(-1)
        return Evidence(numbers[..., None].float(), labels.float(), torch.ones_like(labels, dtype=torch.bool))

    def original_losses(self, evidence):
        return (evidence.outputs[..., 0] - evidence.labels).square()

    @classmethod
    def for_metric(cls, metric, **options):
        return cls(SurrogateConfig(task=cls.task))

    @classmethod
    def has_soft_metric(cls, metric):
        return load_metric(metric).name == "within"

    def example(self):
        return '{"logits": torch.randn(8, 1)}', "torch.randn(8)"
'''


@pytest.fixture
def theirs(tmp_path):
    (tmp_path / "theirs.py").write_text(THEIRS)
    return tmp_path


def run(folder, code: str) -> subprocess.CompletedProcess:
    code = "import torch\nfrom hf_reloss import *\n" + code
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True)


PRINT = """
logits, labels = torch.linspace(-3, 3, 20).view(4, 5), torch.arange(4)
print(loss(logits, labels).item().hex())
"""


@pytest.mark.parametrize(
    "made",
    [
        "hand_made_loss('squared_probability', factor=2.0)",
        "SurrogateForClassification(SurrogateConfig(architecture='scaled', loss_options={'start': 0.5}))",
    ],
)
def test_a_loss_of_somebodys_own_is_made_by_its_word_saved_and_loaded_in_another_process(theirs, made):
    first = run(theirs, f"import theirs\nloss = {made}\nloss.save_pretrained('saved')\n{PRINT}")
    assert first.returncode == 0, first.stderr
    again = run(theirs, f"import theirs\nloss = AutoSurrogate.from_pretrained('saved')\n{PRINT}")
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    without = run(theirs, "AutoSurrogate.from_pretrained('saved')")
    assert "import the module that defines" in without.stderr


def test_a_trainer_takes_a_loss_of_somebodys_own_by_its_word(theirs):
    done = run(
        theirs,
        """
import theirs
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
    def forward(self, x, labels=None):
        return {"logits": self.head(x)}

rows = [{"x": torch.randn(2), "labels": torch.tensor(index % 2)} for index in range(32)]
args = ReLossTrainingArguments("out", max_steps=2, use_cpu=True, save_strategy="no", disable_tqdm=True)
trainer = ReLossTrainer(Model(), args, train_dataset=rows, surrogate="squared_probability")
trainer.train()
print(type(trainer.surrogate.network).__name__)
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "SquaredProbability"


def test_auto_learns_a_surrogate_for_a_task_of_somebodys_own(theirs):
    code = """
import theirs
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1)
    def forward(self, x, labels=None):
        logits = self.head(x)
        return {"loss": (logits[:, 0] - labels).square().mean(), "logits": logits}

torch.manual_seed(0)
x = torch.randn(400, 3)
rows = [{"x": row, "labels": row.sum() + 0.3 * torch.randn(())} for row in x]
args = ReLossTrainingArguments("out", max_steps=60, per_device_train_batch_size=16, learning_rate=0.05, use_cpu=True,
                               report_to="none", save_steps=60, disable_tqdm=True)
trainer = ReLossTrainer(Model(), args, train_dataset=rows, surrogate="auto", metric="within")
trainer.train()
print(trainer.strategy.state.switched_at is not None, type(trainer.surrogate).__name__)
loaded = AutoSurrogate.from_pretrained("out/checkpoint-60/surrogate")
outputs, labels = {"logits": torch.linspace(-1, 1, 6)[:, None]}, torch.zeros(6)
print(torch.equal(loaded(outputs, labels), trainer.surrogate(outputs, labels)))
"""
    done = run(theirs, code)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-3:] == ["True", "SurrogateForNumbers", "True"], done.stderr[-3000:]
    # In another process, where the module is imported again, and where it is not.
    load = "print(type(AutoSurrogate.from_pretrained('out/checkpoint-60/surrogate')).__name__)"
    assert run(theirs, f"import theirs\n{load}").stdout.split()[-1] == "SurrogateForNumbers"
    without = run(theirs, load)
    assert "import the module that defines it first" in without.stderr


def test_what_is_defined_here_stays_what_it_is():
    from hf_reloss import AutoSurrogate, SurrogateForClassification

    assert AutoSurrogate.reading({"logits": torch.randn(4, 3)}, torch.arange(4) % 3) is SurrogateForClassification
