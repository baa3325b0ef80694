"""Minimum risk training: the loss is the expected risk of texts that the model itself writes.

Shen et al. 2016, Minimum Risk Training for Neural Machine Translation, arXiv:1512.02433; mixed with cross-entropy:
Edunov et al. 2018, Classical Structured Prediction Losses for Sequence to Sequence Learning, arXiv:1711.04956.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutput

from ...metrics import AdditiveMetric, Metric, load_metric
from ...metrics.base import IGNORED_LABEL
from ...metrics.translation import Bleu, SacreBleu
from ...predictions.dataset import decoded
from ...predictions.models import tokenizer_of, unwrapped, writes_text
from ..arguments import option
from ..batch import Batch
from .base import LossDescription, LossStrategy, StrategyLoss

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
        metric = load_metric(metric)
        if isinstance(metric, Bleu):
            metric = dataclasses.replace(metric, smooth=True)
        elif isinstance(metric, SacreBleu):
            metric = dataclasses.replace(metric, use_effective_order=True)
        self.metric = metric
        try:
            perfect, wrong = self._scores([PROBE, ANOTHER], [PROBE, PROBE]).tolist()
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
        scores = self._scores(*map(list, zip(*places, strict=True)))
        risks = ((self.best - scores) / self.scale).float()
        return risks.masked_fill(~risks.isfinite(), 1.0)[[places[pair] for pair in pairs]]

    def _scores(self, texts: list[str], references: list[str]) -> torch.Tensor:
        if isinstance(self.metric, AdditiveMetric):
            return self.metric.score(self.metric.statistics(texts, references))
        scores = [self.metric.compute([text], [given]) for text, given in zip(texts, references, strict=True)]
        return torch.tensor(scores, dtype=torch.float64)


class MinimumRisk(LossStrategy):
    """The expected risk of what an encoder-decoder writes: `ReLossSeq2SeqTrainer(..., surrogate="minimum_risk")`.

    Candidates are drawn in evaluation mode, from the model's whole distribution, as long as `generation_max_length` or
    the `generation_config` allows. The random numbers for it are those of the seed, the step and the process: a run
    that is resumed draws what it would have drawn, and the random state of the run stays as it is. In evaluation the
    loss is the model's own.

    Args:
        metric: of which the risk is: what `Risk` takes.

    Attributes:
        risk: of texts.
    """

    word = "minimum_risk"
    citation = "Shen et al. 2016, arXiv:1512.02433"
    calls_model = True

    def prepare(self, trainer: Any) -> None:
        """As of any strategy.

        Raises:
            ValueError: for a model that is no encoder-decoder from which samples can be drawn, or is divided over the
                processes, without a tokenizer or a metric of texts, or for fewer than two candidates or an alpha of 0
                or less.
        """
        super().prepare(trainer)
        model = unwrapped(trainer.model)
        draws = writes_text(model) and "generation_config" in inspect.signature(model.generate).parameters
        if not (draws and model.config.is_encoder_decoder):
            raise ValueError(
                "surrogate='minimum_risk' draws texts from an encoder-decoder that writes token by token, but this is "
                f"{type(model).__name__}: take such a model, or another surrogate."
            )
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            raise ValueError(
                "surrogate='minimum_risk' draws texts from a model that is whole in each process, but FSDP or "
                "DeepSpeed's ZeRO-3 divides it: use data parallel processes, or another surrogate."
            )
        self.tokenizer = tokenizer_of(trainer.processing_class, trainer.data_collator)
        if self.tokenizer is None:
            raise ValueError(
                "surrogate='minimum_risk' scores texts, so it wants the tokenizer, processing_class=, to decode them, "
                f"but got {type(trainer.processing_class).__name__}."
            )
        if self.wanted_metric is None:
            raise ValueError("surrogate='minimum_risk' wants the metric that is the risk: metric='bleu', say.")
        self.candidates, self.alpha, self.with_reference = (
            option(trainer.args, f"risk_{name}") for name in ("candidates", "alpha", "reference")
        )
        if self.candidates + self.with_reference < 2 or self.candidates < 1 or self.alpha <= 0:
            raise ValueError(
                "Minimum risk training compares candidates: risk_candidates is 1 or more, 2 or more without the "
                f"reference, and risk_alpha is above 0, but got {self.candidates} and {self.alpha}."
            )
        self.risk = Risk(self.wanted_metric)
        self._drawn = (-1, 0)

    def is_active(self, training: bool) -> bool:
        return training and super().is_active(training)

    def begin(self) -> None:
        self.announce_warmup()

    def end_step(self) -> None:
        self.announce_switch()

    def describe(self) -> LossDescription:
        return LossDescription(
            "minimum risk",
            sentence=f"for the least expected risk of what it writes, by the metric {self.risk.metric.signature}",
            paper=("minimum risk training", "https://arxiv.org/abs/1512.02433"),
        )

    def loss(self, batch: Batch, outputs: Any) -> StrategyLoss:
        """The mean over the examples of a batch that have labels; the outputs are the model's for the candidates that
        differ, [M, T, V] logits."""
        model, inputs, labels = batch.model, batch.inputs, batch.labels
        skipped = self.trainer.label_names
        prompt = {name: x for name, x in inputs.items() if name not in skipped and not name.startswith("decoder_")}
        starts, targets = self._draw(model, prompt)
        if self.with_reference:
            length = max(targets.shape[-1], labels.shape[-1])
            targets = torch.cat([_longer(labels[:, None], length), _longer(targets, length)], dim=1)
        distinct = ~(targets[:, :, None] == targets[:, None]).all(-1).tril(-1).any(-1)  # [N, K]
        examples, targets = distinct.nonzero()[:, 0], targets[distinct]
        log_probabilities, outputs = self._log_probabilities(model, prompt, starts[examples], targets, examples)
        texts, references = decoded(targets, self.tokenizer), decoded(labels, self.tokenizer)
        risks = self.risk(texts, [references[example] for example in examples.tolist()]).to(labels.device)

        def by_example(values: torch.Tensor, missing: float) -> torch.Tensor:
            return values.new_full(distinct.shape, missing).masked_scatter(distinct, values)

        expected = expected_risk(by_example(log_probabilities, -torch.inf), by_example(risks, 0.0), self.alpha)
        counts = (labels != IGNORED_LABEL).any(-1)
        mean = (expected * counts).sum() / counts.sum().clamp(min=1)
        return StrategyLoss(batch.weights.of_examples * mean, outputs)

    @torch.no_grad()
    def _draw(self, model: nn.Module, prompt: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens [N] that the model starts from, and what it goes on with, [N, K, T], -100 after its end."""
        args, step = self.trainer.args, self.trainer.state.global_step
        self._drawn = (step, self._drawn[1] + 1 if self._drawn[0] == step else 0)
        (seed,) = np.random.SeedSequence([args.seed, *self._drawn, args.process_index]).generate_state(1)
        writer = self.trainer.accelerator.unwrap_model(model)
        longest = getattr(args, "generation_max_length", None)
        training = writer.training
        writer.eval()
        with torch.random.fork_rng([args.device] if args.device.type == "cuda" else []):
            torch.manual_seed(int(seed))
            ids = writer.generate(
                **prompt, do_sample=True, num_return_sequences=self.candidates, num_beams=1, top_k=0, top_p=1.0,
                temperature=1.0, return_dict_in_generate=False, **({} if longest is None else {"max_length": longest}),
            )  # fmt: skip
        writer.train(training)
        ends = unwrapped(model).generation_config.eos_token_id
        written = ids[:, 1:]
        if ends is not None:
            last = torch.isin(written, torch.tensor(ends, device=ids.device))
            written = written.masked_fill(last.cumsum(-1) > last.long(), IGNORED_LABEL)
        return ids[:: self.candidates, 0], written.unflatten(0, (-1, self.candidates))

    def _log_probabilities(
        self,
        model: nn.Module,
        prompt: Mapping[str, Any],
        starts: torch.Tensor,
        targets: torch.Tensor,
        examples: torch.Tensor,
    ) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """log p(y|x) [M] float32 of targets [M, T], each of one of the N examples [M], which are encoded once."""
        encoder = unwrapped(model).get_encoder()
        known = inspect.signature(encoder.forward).parameters
        with self.trainer.accelerator.autocast():
            encoded = encoder(**{name: x for name, x in prompt.items() if name in known}, return_dict=True)
        given = {name: prompt[name][examples] for name in ("attention_mask",) if name in prompt}
        read = torch.cat([starts[:, None], targets[:, :-1].clamp(min=0)], dim=1)  # behind the end nothing counts
        outputs = model(
            **given,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded[0][examples]),
            decoder_input_ids=read,
            use_cache=False,
        )
        each = F.cross_entropy(
            outputs["logits"].float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED_LABEL
        )
        return -each.view(targets.shape).sum(-1), outputs


def _longer(targets: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(targets, (0, length - targets.shape[-1]), value=IGNORED_LABEL)
