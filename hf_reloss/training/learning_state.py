"""How far a run has come that learns its surrogate: what a checkpoint remembers of it."""

import dataclasses
import json
from pathlib import Path

LEARNING_STATE = "reloss_state.json"
"""Where a checkpoint keeps it."""


@dataclasses.dataclass
class LearningState:
    """How far a run has come that learns its surrogate; it is saved with each checkpoint.

    Attributes:
        surrogate: the word that was asked for, `"auto"` or `"approximation"`.
        metric: what was asked for: a word, or a metric's signature.
        first_step: at which recording began.
        next_try: the step at which learning is tried again after it failed; None before the first try.
        switched_at: the step from which on the loss is the surrogate or the soft metric; None before that.
        gave_up: whether learning failed for good, so that the loss is the model's own to the end.
    """

    surrogate: str
    metric: str
    first_step: int = 0
    next_try: int | None = None
    switched_at: int | None = None
    gave_up: bool = False

    def save(self, folder: Path) -> None:
        """Writes it into a checkpoint."""
        content = json.dumps(dataclasses.asdict(self), indent=2)
        (folder / LEARNING_STATE).write_text(content + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "LearningState | None":
        """That of a checkpoint; None for one of another Trainer."""
        file = folder / LEARNING_STATE
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
