"""What a run says of its loss when it is over: what was considered, what was chosen, and on what evidence."""

from dataclasses import dataclass
from typing import NamedTuple

from ..decisions.tuning import TunedDecision


class Gain(NamedTuple):
    """How a metric differs between two models on the same examples.

    Attributes:
        mean: the metric of the one less that of the other.
        low, high: the 95 % interval of that, by a paired bootstrap over the examples.
        better: the share of bootstrap samples in which the one is better.
        examples: how many there are.
    """

    mean: float
    low: float
    high: float
    better: float
    examples: int

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], {self.examples:,} examples"


@dataclass(frozen=True)
class LossReport:
    """What came of a run with `surrogate="auto"`.

    Attributes:
        metric: what was judged by.
        data: the name of the data that judged; empty if there was none.
        loss: what the run turned to from the model's own loss, in words; empty if it never did.
        kept: whether the model that is left was trained on that.
        over: what was compared with: `"own loss"`, of a run that was trained on that to its end, or `"before"`, the
            model at the time when the loss was changed; empty if nothing was.
        gain: of the loss, over that.
        reason: why the loss was not changed, or not kept.
        decision: what tuning the decision has come to; None where that was not done.
        cost: how many steps were made, as a share of those of a usual run.
    """

    metric: str
    data: str = ""
    loss: str = ""
    kept: bool = False
    over: str = ""
    gain: Gain | None = None
    reason: str = ""
    decision: TunedDecision | None = None
    cost: float = 1.0

    @property
    def verdict(self) -> str:
        """The outcome in one line."""
        parts = [self._of_loss()]
        if self.decision is not None:
            found = self.decision
            gain = (
                f"{found.after - found.before:+.4f} [{found.low:+.4f}, {found.high:+.4f}], {found.examples:,} examples"
            )
            left = f"was left at {found.usual} (a tuned one would have changed it:"
            did = "gained:" if found.rule is not None else left
            parts.append(f"the decision {did} {gain}{'' if found.rule is not None else ')'}")
        judged = f" ({self.metric} on {self.data})" if self.data else ""
        return f"VERDICT: {'; '.join(parts)}{judged}"

    def _of_loss(self) -> str:
        if self.gain is None:
            did = f"trained on {self.loss}, unjudged" if self.kept else "kept the model's own loss"
            return f"{did}{': ' if self.reason else ''}{self.reason}"
        if self.over == "own loss":
            if self.kept:
                return f"{self.loss} gained over the model's own loss: {self.gain}"
            return f"kept the model's own loss ({self.loss} would have changed it: {self.gain})"
        if self.kept:
            return f"trained on {self.loss} (no harm seen in its first steps: {self.gain})"
        return f"kept the model's own loss (the first steps on {self.loss} changed it: {self.gain})"
