"""The demonstration: cross-entropy against ReLoss on scikit-learn's digits, and what it learned for that."""

from pathlib import Path

from rich.console import Console

from ..surrogates.auto import AutoSurrogate
from .pictures import plot_comparison
from .study import BASELINE, compare
from .task import TRAIN_IMAGES, load_task


def run_demo(seeds: int, output: Path, console: Console) -> None:
    """Learns a surrogate of accuracy, compares it with cross-entropy over paired seeds, and draws both.

    Args:
        seeds: paired runs.
        output: a folder, made if need be, for what `compare` writes, the surrogate and the picture demo.png.
        console: where the table is printed.

    Raises:
        ValueError: if ReLoss failed, or as `compare` does.
    """
    console.print(f"Learning a loss for accuracy from one run on {TRAIN_IMAGES} handwritten digits ...")
    scores = compare(load_task("digits"), ["reloss"], "accuracy", seeds=seeds, output=output, console=console)
    if "reloss" not in scores:
        raise ValueError(f"ReLoss failed: {output / 'results.json'} says why.")
    surrogate = AutoSurrogate.from_pretrained(output / "surrogate")
    record = surrogate.config.record
    console.print(
        f"Rank correlation with accuracy on held-out groups: of the learned loss {record['alignment']:.3f}, "
        f"of cross-entropy {record['alignment_cross_entropy']:.3f}."
    )
    baseline, ours = ({seed: 100 * score for seed, score in scores[loss].items()} for loss in (BASELINE, "reloss"))
    title = f"Digits, {TRAIN_IMAGES} to train on"
    plot_comparison(output / "demo.png", baseline, ours, surrogate.facts(), title=title, metric="test accuracy, %")
    console.print(f"Picture: {output / 'demo.png'}   Surrogate: {output / 'surrogate'} (reloss inspect shows it)")
