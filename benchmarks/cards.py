"""Makes the surrogates in hub_cards/, each from the recipe in its folder.

    HF_RELOSS_DATA=... python benchmarks/cards.py accuracy
    HF_RELOSS_DATA=... python benchmarks/cards.py

A recipe names a task of the benchmarks, with the data (in words) and the model that predictions are from; the metric
with its options (of texts and answers, the task's own); the structure of the surrogate and the settings of its learning
where they are not the task's; the seed; and what is not known otherwise of the page's metadata. The task's test
examples take no part.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml
from quality import learn, recorded
from tasks import TASKS
from tqdm.auto import tqdm
from transformers import set_seed
from transformers.utils import logging

from hf_reloss import Surrogate, load_metric
from hf_reloss.hub import ORGANISATION

CARDS = Path(__file__).parents[1] / "hub_cards"
RECIPE = "recipe.yaml"


def make_card(recipe: dict[str, Any], folder: Path, name: str) -> Surrogate:
    """Learns the surrogate of a recipe and saves it with its page.

    Args:
        recipe: with `task`, `data`, `metric` and `seed`, and maybe `options`, `structure`, `learning` and `card_data`.
        folder: that it is saved in.
        name: of the repository.
    """
    task, metric = TASKS[recipe["task"]]("test"), load_metric(recipe["metric"], **recipe.get("options", {}))
    seed, structure = recipe["seed"], recipe.get("structure", task.structure)
    predictions = recorded(task, seed)
    set_seed(seed)
    surrogate = task.kind.for_metric(metric, **structure)
    learn(surrogate, predictions, metric, task.learning | recipe.get("learning", {}) | {"seed": seed})
    surrogate.config.record["data"] = recipe["data"]
    surrogate.save_pretrained(folder, repo_id=name, card_data=recipe.get("card_data"))
    return surrogate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(folder.parent.name for folder in CARDS.glob(f"*/{RECIPE}"))
    parser.add_argument("names", nargs="*", metavar="name", help=f"by default all: {', '.join(known)}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in tqdm(parser.parse_args().names or known):
        folder = CARDS / name
        make_card(yaml.safe_load((folder / RECIPE).read_text()), folder, f"{ORGANISATION}/{name}")


if __name__ == "__main__":
    main()
