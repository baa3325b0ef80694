"""What training on a model's own texts has in common, whatever the loss compares them by."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from transformers.utils import logging

from ...metrics.base import IGNORED_LABEL
from ...metrics.sentences import Risk
from ...predictions.dataset import decoded
from ...predictions.models import is_ctc, tokenizer_of
from ..arguments import option
from ..batch import Batch
from .aligned import Aligned
from .base import LossStrategy, StrategyLoss
from .candidates import CandidateSource, RandomNumbers, Wanted
from .written import Written

logger = logging.get_logger(__name__)

FEW = 0.1
"""Of the examples of a run, with texts that the metric tells apart: for less it is said that little was learned."""


class Compared(NamedTuple):
    """The K candidates of each of N examples, [N, K] each.

    Attributes:
        log_probabilities: float32, log p(y|x), with gradients; -inf for what the model cannot put out.
        risks: float32, 0 for a perfect text, 1 for one of score 0.
        lengths: int64, tokens, the end among them; 1 or more.
        distinct: bool, which of them differ from those before them.
    """

    log_probabilities: torch.Tensor
    risks: torch.Tensor
    lengths: torch.Tensor
    distinct: torch.Tensor


class OnOwnTexts(LossStrategy):
    """A way to train that compares what a model itself writes in training, each text scored by any metric of texts.

    Candidates are drawn from the model, token by token (`Written`) or along the frames of CTC (`Aligned`). The random
    numbers for it are those of the seed, the step and an example's place in the step: several processes draw what one
    would, a run that is resumed draws what it would have drawn, and the random state of the run stays as it is. In
    evaluation the loss is the model's own. A subclass says what it makes of the candidates of an example.

    Args:
        metric: that texts are scored by: what `Risk` takes.

    Attributes:
        risk: of texts.
        source: of candidates.
        number, with_reference, temperature: of candidates, as in `Wanted`.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"candidates": 4, "reference": False, "temperature": 0.5}
    """What the arguments `risk_...` are by default, by what follows; those that are not here are not used."""
    defaults_of_ctc: ClassVar[Mapping[str, Any]] = {"candidates": 8, "reference": False, "temperature": 1.0}
    """Likewise, for models of CTC."""
    is_tempered: ClassVar[bool] = False
    """Whether log p is of what candidates are drawn from, where a temperature changes that."""

    @abstractmethod
    def loss_of_each(self, compared: Compared) -> torch.Tensor:
        """The loss [N] of N examples by their candidates; 0 where there is nothing to compare."""

    def prepare(self, trainer: Any) -> None:
        """As of any strategy.

        Raises:
            ValueError: for a model from which no candidates can be drawn, without a tokenizer or a metric of texts, or
                for fewer than two candidates or a temperature of 0 or less.
        """
        super().prepare(trainer)
        of_ctc = is_ctc(trainer.model)
        self.source: CandidateSource = (Aligned if of_ctc else Written)(trainer, self.word)
        self.calls_model = self.source.calls_model
        self.tokenizer = tokenizer_of(trainer.processing_class, trainer.data_collator)
        if self.tokenizer is None:
            raise ValueError(
                f"surrogate={self.word!r} scores texts, so it wants the tokenizer, processing_class=, to decode them, "
                f"but got {type(trainer.processing_class).__name__}."
            )
        if self.wanted_metric is None:
            raise ValueError(f"surrogate={self.word!r} wants the metric that texts are scored by: metric='bleu', say.")
        defaults = self.defaults_of_ctc if of_ctc else self.defaults
        given = {name: option(trainer.args, f"risk_{name}") for name in defaults}
        self.settings = {name: default if given[name] is None else given[name] for name, default in defaults.items()}
        self.number, self.with_reference = self.settings["candidates"], self.settings["reference"]
        self.temperature: float = self.settings["temperature"]
        if self.number + self.with_reference < 2 or self.number < 1 or self.temperature <= 0:
            raise ValueError(
                f"surrogate={self.word!r} compares candidates: risk_candidates is 1 or more, 2 or more without the "
                f"reference, and risk_temperature is above 0, but got {self.number} and {self.temperature}."
            )
        self.risk = Risk(self.wanted_metric, f"surrogate={self.word!r}")
        self._micro_batch = (-1, 0)
        self.start(None)

    def start(self, checkpoint: Path | None) -> None:
        self._logged, self._examples = torch.zeros(4), torch.zeros(2, dtype=torch.long)

    def is_active(self, training: bool) -> bool:
        return training and super().is_active(training)

    def keeps_labels_from_model(self) -> bool:
        return True

    def begin(self) -> None:
        self.announce_warmup()

    def end_step(self) -> None:
        self.announce_switch()

    def measured(self) -> dict[str, float]:
        texts, risk, tokens, wanted = self._logged.tolist()
        self._logged = torch.zeros(4)
        return {"texts/risk": risk / texts, "texts/length": tokens / max(wanted, 1)} if texts else {}

    def end(self, best_checkpoint: Path | None) -> None:
        super().end(best_checkpoint)
        examples, compared = self._examples.tolist()
        if compared < FEW * examples:
            self.tell(
                f"The model wrote texts that the metric tells apart for {compared} of {examples} examples only, and "
                "of the others nothing is learned: raise risk_temperature or risk_candidates, or check the metric."
            )

    def loss(self, batch: Batch, outputs: Any) -> StrategyLoss:
        """The mean over the examples of a batch that have labels; the outputs are the model's, as its `source` has
        them."""
        wanted = Wanted(self.number, self.with_reference, self.temperature, self.is_tempered, self._random())
        found = self.source.candidates(batch, outputs, wanted)
        options = self.source.decoding
        texts, references = (decoded(ids, self.tokenizer, **options) for ids in (found.ids, found.references))
        risks = self.risk(texts, [references[example] for example in found.examples.tolist()])
        places, lengths = found.places, (found.ids != IGNORED_LABEL).sum(-1).clamp(min=1)
        compared = Compared(
            found.log_probabilities[places], risks.to(places.device)[places], lengths[places], found.distinct
        )
        losses, counts = self.loss_of_each(compared), batch.counts.any(-1)
        self._note(compared, (found.references != IGNORED_LABEL).sum(-1), counts)
        mean = torch.where(counts, losses, 0.0).sum() / counts.sum().clamp(min=1)
        return StrategyLoss(batch.weights.of_examples * mean, found.outputs)

    def _note(self, compared: Compared, wanted: torch.Tensor, counts: torch.Tensor) -> None:
        """Takes note of what was written for the examples that count, and of the lengths of their references, [N]."""
        risks, lengths = compared.risks[counts], compared.lengths[counts]
        written = wanted[counts].sum() * risks.shape[1]
        self._logged += torch.stack([torch.tensor(risks.numel()).to(risks), risks.sum(), lengths.sum(), written]).cpu()
        differ = (risks.amax(-1) > risks.amin(-1)).sum() if len(risks) else 0
        self._examples += torch.tensor([len(risks), int(differ)])

    def _random(self) -> RandomNumbers:
        """For a micro-batch."""
        args, step = self.trainer.args, self.trainer.state.global_step
        self._micro_batch = (step, self._micro_batch[1] + 1 if self._micro_batch[0] == step else 0)
        first = (self._micro_batch[1] * args.world_size + args.process_index) * args.train_batch_size
        return RandomNumbers(args.seed, step, first)
