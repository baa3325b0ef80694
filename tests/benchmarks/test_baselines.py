"""The comparison of all losses: how a loss is read from its name, and that what is stored fits together."""

import json

import pytest

from hf_reloss.compare.statistics import paired_difference

from .conftest import BENCHMARKS

STORED = sorted((BENCHMARKS / "results").glob("baselines_*.json"))


@pytest.fixture
def baselines(program):
    return program("baselines")


@pytest.fixture
def asked(baselines, monkeypatch):
    """How a run is trained that is never made."""
    seen = {}

    def train_and_score(task, seed, trainer_class=None, **options):
        seen.update(options, seed=seed, trainer=trainer_class and trainer_class.__name__)
        return {"accuracy": 50.0, "other": 0.0}

    class Task:
        recipe, warmup, metric = {"learning_rate": 0.25}, 0.5, None

        def __init__(self, split):
            self.split = split

    monkeypatch.setattr(baselines, "train_and_score", train_and_score)
    monkeypatch.setitem(baselines.TASKS, "made_up", Task)
    monkeypatch.setattr(baselines.torch, "set_num_threads", lambda count: None)

    def ask(loss: str) -> dict:
        seen.clear()
        assert baselines.run("made_up", "test", loss, 7, 2.0, "", {"bf16": True}) == 50.0
        assert seen.pop("seed") == 7
        return dict(seen)

    return ask


def test_a_loss_is_read_from_its_name(asked):
    recipe = {"learning_rate": 0.5, "bf16": True}
    assert asked("cross_entropy") == {"trainer": None, "recipe": recipe}
    assert asked("focal") == {
        "trainer": "ReLossTrainer", "surrogate": "focal", "recipe": recipe | {"surrogate_warmup": 0.0},
    }  # fmt: skip
    assert asked("soft_f1")["recipe"]["surrogate_warmup"] == 0.5  # a loss of groups
    assert asked("focal_half")["surrogate"] == "focal"
    assert asked("focal_half")["recipe"] == recipe | {"surrogate_warmup": 0.0, "model_loss_share": 0.5}


@pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])
def test_stored_scores_and_differences_are_those_of_the_stored_runs(path, baselines):
    result = json.loads(path.read_text())
    scores = {loss: {int(seed): value for seed, value in of.items()} for loss, of in result["scores"].items()}
    tuned, tested = (
        {(name.split()[0], int(name.split()[1]), float(name.split()[2])): value for name, value in of_split.items()}
        for of_split in (result["runs"]["validation"], result["runs"]["test"])
    )
    usual = set()
    for loss, of_seeds in scores.items():
        means = {
            factor: sum(tuned[loss, seed, factor] for seed in baselines.TUNING_SEEDS) / 2
            for factor in baselines.FACTORS
        }
        best = max(means, key=means.__getitem__)
        assert of_seeds == {seed: tested[loss, seed, best] for seed in of_seeds}
        assert len(of_seeds) >= 5
        usual.add(result["learning_rates"][loss] / best)
    assert len(usual) == 1
    for baseline, gains in result["over"].items():
        assert gains.keys() == scores.keys() - {baseline}
        for loss, gain in gains.items():
            assert paired_difference(scores[loss], scores[baseline])._asdict() == pytest.approx(gain)
