"""How well a loss ranks groups of predictions as a metric does."""

import datasets
import torch
from accelerate.utils import gather_object

from ..metrics import Metric
from ..predictions.dataset import joined
from ..predictions.groups import draw_groups
from ..predictions.recorder import PredictionRecorder
from ..ranking import spearman
from ..surrogates.base import Surrogate
from ..surrogates.config import SurrogateConfig

FEWEST_TO_RANK = 80
"""Of fewer predictions no alignment is measured."""

NUM_GROUPS, LARGEST_GROUP = 128, 128


def gathered_columns(recorder: PredictionRecorder) -> dict[str, torch.Tensor] | None:
    """What the recorders of all processes hold, [n, ...] each; None if that is too little to rank groups of."""
    parts = [part for part in gather_object([recorder.rows() if len(recorder) else None]) if part is not None]
    if sum(len(part["labels"]) for part in parts) < FEWEST_TO_RANK:
        return None
    return {name: joined([part[name] for part in parts]) for name in parts[0] if name != "index"}


@torch.no_grad()
def alignment(
    predictions: datasets.Dataset,
    metric: Metric,
    kind: type[Surrogate],
    surrogate: Surrogate | None = None,
    *,
    device: torch.device | str = "cpu",
) -> float:
    """Spearman's rank correlation of a negated loss with a metric, over groups of predictions.

    Args:
        predictions: as `record_predictions` gives them, 80 or more.
        metric: scores the groups.
        kind: the surrogates that read these predictions.
        surrogate: the loss, on `device`; None for the one that the task is usually trained on.
        device: on which losses are computed.

    Raises:
        ValueError: if the groups cannot be ranked; and what a metric of somebody's own raises.
    """
    size = min(LARGEST_GROUP, max(2, len(predictions) // 10))
    groups = draw_groups(predictions, metric, num_groups=NUM_GROUPS, group_size=size)
    if surrogate is None:
        reader = kind(SurrogateConfig(task=kind.task)).freeze()
        reader.to(device)  # type: ignore[arg-type]  # transformers' decorator hides `self`
    else:
        reader = surrogate
    losses = []
    for first in range(0, len(groups), 32):
        batch = groups.__getitems__(list(range(first, min(first + 32, len(groups)))))
        batch = {name: column.to(device) for name, column in batch.items()}
        evidence = reader.evidence(batch, batch["labels"])
        if surrogate is None:
            losses.append(reader.network.mean(reader.original_losses(evidence), evidence.counts).cpu())
        else:
            losses.append(surrogate(evidence).cpu())
    return spearman(-torch.cat(losses).double(), groups.scores.double()).item()
