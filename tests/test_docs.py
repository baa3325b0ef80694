"""What docs/metrics.md says is so."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_reloss.groups import draw_groups
from hf_reloss.metrics import _known, load_metric

from .conftest import synthetic_predictions

TEXT = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()


def test_it_names_all_metrics_and_no_others():
    table = TEXT.split("## By name")[1].split("## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    ours = {name for name, kind in _known().items() if kind.__module__.startswith("hf_reloss.")}
    assert named == ours


def test_its_python_snippets_run():
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        exec(snippet, names)
    predictions, references = np.array([3, 15, 20]), np.array([3, 16, 40])
    assert names["metric"].compute(predictions, references) == pytest.approx((1 + 1) / 3)
    within = load_metric("within_one")
    assert within.compute(predictions, references) == pytest.approx(2 / 3)
    groups = draw_groups(synthetic_predictions(), within, num_groups=20, group_size=32)
    batch = groups.__getitems__([0, 7])
    for logits, labels, score in zip(batch["logits"], batch["labels"], batch["score"], strict=True):
        near = (logits.argmax(-1) - labels).abs() <= 1
        assert near.float().mean().item() == pytest.approx(score.item())
    assert torch.equal(within.score(torch.tensor([[1.0, 2.0], [3.0, 4.0]])), torch.tensor([0.5, 0.75]).double())
