"""Pictures of comparisons."""

import pytest
from matplotlib.image import imread

from hf_reloss.compare.pictures import _apart, plot_gains


def test_seeds_that_tie_are_all_to_be_seen(tmp_path):
    assert _apart([0.5, 0.5, 0.5, 0.9], 0.01) == pytest.approx([0.0, 0.11, -0.11, 0.0])
    usual = {seed: 0.8 + seed / 100 for seed in range(5)}
    ties = {"cross_entropy": usual, "focal": {seed: score + 0.01 for seed, score in usual.items()}}
    apart = ties | {"focal": {seed: score + 0.01 * (seed - 2) for seed, score in usual.items()}}
    inks = []
    for name, results in (("ties", ties), ("apart", apart)):
        plot_gains(tmp_path / f"{name}.png", results, "cross_entropy", metric="accuracy")
        grey = imread(tmp_path / f"{name}.png")[..., :3]
        inks.append((abs(grey - [0xB9 / 255, 0xC0 / 255, 0xC6 / 255]).max(-1) < 0.02).sum())  # of seeds
    assert inks[0] > 0.5 * inks[1]
