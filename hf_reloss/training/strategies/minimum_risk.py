"""Minimum risk training: the loss is the expected risk of texts that the model itself writes.

Shen et al. 2016, Minimum Risk Training for Neural Machine Translation, arXiv:1512.02433; mixed with cross-entropy:
Edunov et al. 2018, Classical Structured Prediction Losses for Sequence to Sequence Learning, arXiv:1711.04956. For the
word error rate: Prabhavalkar et al. 2018, Minimum Word Error Rate Training for Attention-based Sequence-to-Sequence
Models, arXiv:1712.01818; with samples: Shannon 2017, Optimizing Expected Word Error Rate via Sampling for Speech
Recognition, arXiv:1706.02776.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...metrics import Metric
from ...metrics.sentences import metric_of_each, score_each
from ...predictions.dataset import decoded
from ...predictions.models import is_ctc, tokenizer_of
from ..arguments import option
from ..batch import Batch
from .aligned import Aligned
from .base import LossDescription, LossStrategy, StrategyLoss
from .candidates import CandidateSource, Written

PROBE, ANOTHER = "a b c d e f g h", "i j k l m n o p"
"""What a metric's scale is read from: a text against itself and against one with nothing in common."""


def expected_risk(log_probabilities: torch.Tensor, risks: torch.Tensor, alpha: float = 5e-3) -> torch.Tensor:
    """Σ_k Q_k Δ_k with Q_k = p_k^α / Σ_j p_j^α, the R̃(θ) of Shen et al. 2016 for each example.

    Args:
        log_probabilities: [..., K] float, log p(y_k|x) of the candidates; -inf where there is none.
        risks: [..., K] float, Δ_k.
        alpha: how sharp Q is, above 0.

    Returns:
        [...] of the type of `log_probabilities`.

    Example:
        >>> expected_risk(torch.tensor([0.25, 0.75]).log(), torch.tensor([1.0, 0.0]), alpha=1.0)
        tensor(0.2500)
    """
    return ((alpha * log_probabilities).softmax(-1) * risks).sum(-1)


class Risk:
    """The risk of texts, of each alone: 0 for a perfect one, 1 for one of score 0.

    That is 1 - metric, which is divided by a perfect text's score first (100 of a metric in points); an error rate is a
    risk already. BLEU of one sentence is smoothed: `bleu` with `smooth=True`, `sacrebleu` with
    `use_effective_order=True`.

    Args:
        metric: what `load_metric` takes.

    Raises:
        ValueError: for an unknown metric, or one that cannot score texts.
    """

    def __init__(self, metric: Metric | Any):
        self.metric = metric = metric_of_each(metric)
        try:
            perfect, wrong = score_each(metric, [PROBE, ANOTHER], [PROBE, PROBE]).tolist()
        except ImportError:
            raise
        except Exception as error:
            raise ValueError(
                f"surrogate='minimum_risk' scores texts one by one, but the metric {metric.name!r} cannot ({error!r}): "
                "choose one of texts, such as 'bleu', 'chrf' or 'rougeL', or a function of two lists of strings."
            ) from error
        self.best, self.scale = perfect, perfect or 1.0
        if not metric.higher_is_better:
            self.scale = -100.0 if wrong > 1 else -1.0

    def __call__(self, texts: Sequence[str], references: Sequence[str]) -> torch.Tensor:
        """[n] float32, of n texts; equal pairs are scored once, and what has no score counts as wrong."""
        pairs = list(zip(texts, references, strict=True))
        places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
        scores = score_each(self.metric, *map(list, zip(*places, strict=True)))
        risks = ((self.best - scores) / self.scale).float()
        return risks.masked_fill(~risks.isfinite(), 1.0)[[places[pair] for pair in pairs]]


class MinimumRisk(LossStrategy):
    """The expected risk of what a model writes: `ReLossSeq2SeqTrainer(..., surrogate="minimum_risk")`.

    Candidates are drawn from the model: by an encoder-decoder that writes token by token, see `Written`, or along the
    frames of CTC, see `Aligned`. The random numbers for it are those of the seed, the step and the process: a run that
    is resumed draws what it would have drawn, and the random state of the run stays as it is. In evaluation the loss is
    the model's own.

    Args:
        metric: of which the risk is: what `Risk` takes.

    Attributes:
        risk: of texts.
        source: of candidates.
    """

    word = "minimum_risk"
    citation = "Shen et al. 2016, arXiv:1512.02433; of CTC: Shannon 2017, arXiv:1706.02776"

    def prepare(self, trainer: Any) -> None:
        """As of any strategy.

        Raises:
            ValueError: for a model from which no candidates can be drawn, without a tokenizer or a metric of texts, or
                for fewer than two candidates or an alpha of 0 or less.
        """
        super().prepare(trainer)
        self.source: CandidateSource = (Aligned if is_ctc(trainer.model) else Written)(trainer)
        self.calls_model = self.source.calls_model
        self.tokenizer = tokenizer_of(trainer.processing_class, trainer.data_collator)
        if self.tokenizer is None:
            raise ValueError(
                "surrogate='minimum_risk' scores texts, so it wants the tokenizer, processing_class=, to decode them, "
                f"but got {type(trainer.processing_class).__name__}."
            )
        if self.wanted_metric is None:
            raise ValueError("surrogate='minimum_risk' wants the metric that is the risk: metric='bleu', say.")
        given = {name: option(trainer.args, f"risk_{name}") for name in self.source.defaults}
        chosen = {name: self.source.defaults[name] if value is None else value for name, value in given.items()}
        self.number, self.alpha, self.with_reference = (chosen[name] for name in ("candidates", "alpha", "reference"))
        if self.number + self.with_reference < 2 or self.number < 1 or self.alpha <= 0:
            raise ValueError(
                "Minimum risk training compares candidates: risk_candidates is 1 or more, 2 or more without the "
                f"reference, and risk_alpha is above 0, but got {self.number} and {self.alpha}."
            )
        self.risk = Risk(self.wanted_metric)
        self._drawn = (-1, 0)

    def is_active(self, training: bool) -> bool:
        return training and super().is_active(training)

    def keeps_labels_from_model(self) -> bool:
        return True

    def begin(self) -> None:
        self.announce_warmup()

    def end_step(self) -> None:
        self.announce_switch()

    def describe(self) -> LossDescription:
        return LossDescription(
            "minimum risk",
            sentence=f"for the least expected risk of what it writes, by the metric {self.risk.metric.signature}",
            paper=("minimum risk training", self.source.paper),
        )

    def loss(self, batch: Batch, outputs: Any) -> StrategyLoss:
        """The mean over the examples of a batch that have labels; the outputs are the model's, as its `source` has
        them."""
        found = self.source.candidates(batch, outputs, self.number, self.with_reference, self._seed())
        options = self.source.decoding
        texts, references = (decoded(ids, self.tokenizer, **options) for ids in (found.ids, found.references))
        risks = self.risk(texts, [references[example] for example in found.examples.tolist()])

        def by_example(values: torch.Tensor, missing: float) -> torch.Tensor:
            return values.new_full(found.distinct.shape, missing).masked_scatter(found.distinct, values)

        log_probabilities = by_example(found.log_probabilities, -torch.inf)
        risk = by_example(risks.to(log_probabilities.device), 0.0)
        expected = expected_risk(log_probabilities, risk, self.alpha)
        counts = batch.counts.any(-1)
        mean = torch.where(counts, expected, 0.0).sum() / counts.sum().clamp(min=1)
        return StrategyLoss(batch.weights.of_examples * mean, found.outputs)

    def _seed(self) -> int:
        """Of the random numbers for a micro-batch."""
        args, step = self.trainer.args, self.trainer.state.global_step
        self._drawn = (step, self._drawn[1] + 1 if self._drawn[0] == step else 0)
        (seed,) = np.random.SeedSequence([args.seed, *self._drawn, args.process_index]).generate_state(1)
        return int(seed)
