"""What docs/metrics.md says of each metric is so."""

import dataclasses
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from hf_reloss import surrogates
from hf_reloss.metrics import AdditiveMetric, GroupwiseMetric, load_metric
from hf_reloss.metrics.loading import _known
from hf_reloss.metrics.tasks import SeveralScores
from hf_reloss.surrogates.base import Surrogate

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
KNOWN = {name: kind for name, kind in _known().items() if kind.__module__.startswith("hf_reloss.")}
NEEDED = {
    "cohen_kappa": {"weights": "quadratic"}, "mase": {"training": [1.0, 2.0]}, "f1": {"average": "macro"},
    **{name: {"model": "path"} for name in KNOWN if name.startswith("bertscore")},
}  # fmt: skip


def rows(section):
    """Of each name in the first column, the cells of its row."""
    table = TEXT.split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]
    return {name: cells for cells in lines for name in re.findall(r"`(\w+)`", cells[0])}


ROWS = rows("By name")


def test_it_names_all_metrics_and_no_others():
    assert ROWS.keys() == KNOWN.keys()


@pytest.mark.parametrize("name", KNOWN)
def test_it_says_what_a_metric_is(name):
    first, _, in_evaluate, _, _, options, scored, trains = ROWS[name]
    kind = KNOWN[name]
    assert ("↓" in first) == (not kind.higher_is_better)
    assert set(re.findall(r"`(\w+)`", options)) == {field.name for field in dataclasses.fields(kind)}
    ways = {SeveralScores: "-", AdditiveMetric: "sums", GroupwiseMetric: "group by group"}
    assert scored == next((way for base, way in ways.items() if issubclass(kind, base)), "groups at once")
    module = re.match(r"`(\w+)", in_evaluate)
    if module is not None:
        assert module[1] == {"brier": "brier_score", "r2": "r_squared", "rmse": "mse"}.get(name, kind.evaluate_module)
    if not issubclass(kind, SeveralScores) and not trains.startswith("watched"):
        metric = load_metric(name, **NEEDED.get(name, {}))
        soft = any(reader.has_soft_metric(metric) for reader in readers())
        assert trains.startswith("soft") == soft


def readers():
    for module in pkgutil.iter_modules(surrogates.__path__):
        importlib.import_module(f"{surrogates.__name__}.{module.name}")
    found = [Surrogate]
    for kind in found:
        found.extend(kind.__subclasses__())
    return [kind for kind in found[1:] if kind.__module__.startswith("hf_reloss.")]


def test_of_every_metric_of_evaluate_it_says_whether_it_is_known():
    listed = rows("Evaluate's metrics")
    assert len(listed) == 54
    for name, (_, known, why) in listed.items():
        assert (known == "yes") == (name in KNOWN), name
        assert known == "yes" or why, name
    named = {found[1] for cells in ROWS.values() if (found := re.match(r"`(\w+)", cells[2]))}
    assert named <= listed.keys()
