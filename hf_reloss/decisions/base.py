"""What a decision rule is, and what tuning one comes to."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from typing_extensions import Self

FILE = "decision.json"
"""Where a rule is kept beside a model."""


class SavedRule(ABC):
    """A rule that is kept beside a model. A subclass is found by its `word` in a saved rule, in this package or
    elsewhere."""

    word: ClassVar[str]
    """The word for it in a saved rule."""
    defined: ClassVar[dict[str, type["SavedRule"]]] = {}
    """All rules that there are by now, by their words."""
    usual: ClassVar[str]
    """What decides without it, in words."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "word" in vars(cls):
            SavedRule.defined[cls.word] = cls

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What it is made with, as JSON has it."""

    def save(self, folder: str | Path) -> None:
        """Writes it into a folder, beside a model."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        content = json.dumps({"rule": self.word} | self.to_dict(), indent=2)
        (Path(folder) / FILE).write_text(content + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Self":
        """The rule in a folder.

        Raises:
            OSError: if there is none.
            ValueError: for one that is not known here, of another kind, or damaged.
        """
        content = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
        word = content.pop("rule", None)
        known = {each: kind for each, kind in SavedRule.defined.items() if issubclass(kind, cls)}
        if word not in known:
            raise ValueError(
                f"{folder} has the rule {word!r}, which is not known here as a {cls.__name__}: there are "
                f"{', '.join(sorted(known))}."
            )
        try:
            found: Any = known[word](**content)
        except TypeError as error:
            raise ValueError(f"The rule in {folder} is damaged: {error}.") from error
        return found


class DecisionRule(SavedRule):
    """A rule from logits [..., C] to decisions [...]: the class whose score is highest; a tie goes to the first."""

    usual = "argmax"

    @abstractmethod
    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores [..., C] of logits [..., C], of their dtype: the higher, the better a class."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Of how many classes it decides."""

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """Class indices [...] int64 of logits [..., C], a tensor or an array."""
        return self.scores(torch.as_tensor(logits)).argmax(-1)

    def offsets(self) -> torch.Tensor | None:
        """Numbers [C] that, added to the logits, make argmax decide alike; None where there are none."""
        return None

    def drawn(self) -> dict[str, torch.Tensor]:
        """What there is of it to draw, by what it is called: numbers of classes [C], or what deciding for one class
        costs where another is right, [C, C] by label and decision."""
        offsets = self.offsets()
        return {} if offsets is None else {"added to the logit": offsets}

    def attach(self, model: nn.Module) -> RemovableHandle:
        """Makes a model put out scores for `logits` in evaluation, so that a `pipeline` decides by the rule.

        Args:
            model: a module that puts out a mapping with `logits` [..., C], such as `pipeline(...).model`.

        Returns:
            A handle; its `remove()` takes the rule off again.
        """

        def replace(module: nn.Module, inputs: Any, outputs: Any) -> Any:
            if not module.training:
                outputs["logits"] = self.scores(outputs["logits"])
            return outputs

        return model.register_forward_hook(replace)


Rule = TypeVar("Rule", bound=SavedRule)


@dataclass(frozen=True)
class Tuned(Generic[Rule]):
    """What tuning a decision has come to.

    Attributes:
        rule: the rule; None if it is left as it usually is, for no gain stands out from chance.
        before: the metric of the usual decisions.
        after: that of rules on examples that they were not fitted on.
        low, high: of the difference, its 95 % interval by a paired bootstrap.
        examples: how many there are.
        metric: its name.
        decided: [n] int64, what is decided for these examples, by rules that were not fitted on them.
        fitted: the rule that the numbers are of, whether or not it is kept.
    """

    rule: Rule | None
    before: float
    after: float
    low: float
    high: float
    examples: int
    metric: str
    decided: torch.Tensor = field(repr=False)
    fitted: Rule

    @property
    def usual(self) -> str:
        """What decides where no rule is kept."""
        return self.fitted.usual

    def __str__(self) -> str:
        gain = f"{self.after - self.before:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        kept = f"{self.usual} is kept:" if self.rule is None else "gained"
        on = f"cross-fitted on {self.examples:,} held-out examples ({self.before:.4f} before)"
        return f"decision: {kept} {gain} {self.metric}, {on}"
