"""Pairs of a better and a worse text for preference optimisation: what a model writes, judged by a metric."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging

from ..metrics import Metric
from ..metrics.sentences import score_each
from ..predictions.dataset import decoded
from ..predictions.models import tokenizer_of, unwrapped, writes_text
from .rewards import is_comparable, metric_of_texts, stripped
from .strategies.written import drawn_texts

logger = logging.get_logger(__name__)


def preference_pairs(
    model: nn.Module,
    data: datasets.Dataset,
    metric: Metric | Any,
    *,
    processing_class: Any,
    prompt: str = "prompt",
    references: str = "answer",
    candidates: int = 8,
    batch_size: int = 16,
    seed: int = 42,
    **generation: Any,
) -> datasets.Dataset:
    """Lets a model write several texts for each prompt, and pairs the best by a metric with the worst.

    What comes out is what TRL's `DPOTrainer` takes. Each text is scored by itself, BLEU smoothed, and without white
    space around it. Prompts all texts of which score alike make no pair, nor do those without a reference.

    Args:
        model: a causal language model or an encoder-decoder; it stays as it is.
        data: with a prompt, a string or messages (`{"role": ..., "content": ...}`), and a reference in each row.
        metric: what `load_metric` takes, of texts.
        processing_class: the model's tokenizer, or a processor that has one.
        prompt: the column of prompts.
        references: the column of what is right: a string or several, or None.
        candidates: how many texts are drawn for each prompt, 2 or more.
        batch_size: of how many prompts at a time.
        seed: of the random numbers; the random state stays as it is.
        generation: options of `generate`. By default 256 tokens are drawn at most, from the whole distribution of the
            model.

    Returns:
        A data set with the columns `prompt`, `chosen` and `rejected`, strings or, of conversations, messages, and their
        scores as the metric gives them, `score_chosen` and `score_rejected` (float64). Of an error rate, the lower is
        chosen.

    Raises:
        ValueError: for a model that draws no texts, a column that is not there, fewer than 2 candidates, a metric that
            scores no texts, or if there is no pair at all.
    """
    scorer, tokenizer = metric_of_texts(metric), tokenizer_of(processing_class)
    _check(model, data, tokenizer, (prompt, references), candidates)
    if not generation.keys() & {"max_new_tokens", "max_length"}:
        generation["max_new_tokens"] = 256
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    generation = {"pad_token_id": pad or 0} | generation
    rows: list[dict[str, Any]] = []
    known = [place for place, reference in enumerate(data[references]) if is_comparable(scorer, reference)]
    for start in tqdm(range(0, len(known), batch_size), "drawing texts", disable=not logging.is_progress_bar_enabled()):
        batch = data.select(known[start : start + batch_size])
        prompts = batch[prompt][:]
        tokens = _tokens(prompts, tokenizer, unwrapped(model).config.is_encoder_decoder)
        tokens = {name: value.to(next(model.parameters()).device) for name, value in tokens.items()}
        (batch_seed,) = np.random.SeedSequence([seed, start]).generate_state(1)
        begun, drawn = drawn_texts(model, tokens, candidates, int(batch_seed), **generation)
        for given, texts, reference in zip(prompts, _texts(begun, drawn, tokenizer), batch[references], strict=True):
            pair = _pair(scorer, texts, reference)
            if pair is not None:
                rows.append({"prompt": given} | _as_said(pair, given))
    logger.info(f"{len(rows)} of {len(data)} prompts have a pair: of the others, no two texts differ in {scorer.name}.")
    if not rows:
        raise ValueError(
            f"Of none of the {len(data)} prompts do two of the {candidates} texts differ in {scorer.name}: draw more "
            f"candidates=, pass a higher temperature=, or check that {references!r} holds what is right."
        )
    return datasets.Dataset.from_list(rows)


def _check(model: nn.Module, data: datasets.Dataset, tokenizer: Any, columns: Sequence[str], candidates: int) -> None:
    if not writes_text(model):
        raise ValueError(
            f"preference_pairs lets a model write, but {type(unwrapped(model)).__name__} writes no text: pass a causal "
            "language model or an encoder-decoder, such as AutoModelForCausalLM gives."
        )
    missing = [name for name in columns if name not in data.column_names]
    if missing:
        raise ValueError(
            f"The data have the columns {data.column_names}, without {', '.join(map(repr, missing))}: say with prompt= "
            "and references= which of them hold prompts and what is right."
        )
    if tokenizer is None:
        raise ValueError("preference_pairs wants the model's tokenizer: pass it as processing_class=.")
    if candidates < 2:
        raise ValueError(f"A pair is of two candidates or more, but candidates={candidates}.")


def _is_conversation(prompt: Any) -> bool:
    return not isinstance(prompt, str)


def _tokens(prompts: Sequence[Any], tokenizer: Any, of_encoder: bool) -> dict[str, torch.Tensor]:
    """Prompts as a model reads them: `input_ids` and `attention_mask`, [N, S] int64, padded where no text goes on."""
    if _is_conversation(prompts[0]):
        rows = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)
    else:
        rows = tokenizer(list(prompts))
    ids = [torch.tensor(row) for row in rows["input_ids"]]
    side = "right" if of_encoder else "left"
    pad = tokenizer.pad_token_id or 0  # what is masked may be anything

    def padded(values: list[torch.Tensor], padding: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding, padding_side=side)

    return {"input_ids": padded(ids, pad), "attention_mask": padded([torch.ones_like(row) for row in ids], 0)}


def _texts(begun: torch.Tensor, drawn: torch.Tensor, tokenizer: Any) -> list[list[str]]:
    """The K texts of each of N prompts: what is written behind it, with the white space in between."""
    number = drawn.shape[1]
    before = decoded(begun, tokenizer)
    wholes = decoded(torch.cat([begun.repeat_interleave(number, 0), drawn.flatten(0, 1)], -1), tokenizer)
    alone = decoded(drawn.flatten(0, 1), tokenizer)
    texts = []
    for place, (whole, text) in enumerate(zip(wholes, alone, strict=True)):
        prefix = before[place // number]
        texts.append(whole[len(prefix) :] if whole.startswith(prefix) else text)
    return [texts[start : start + number] for start in range(0, len(texts), number)]


def _pair(metric: Metric, texts: Sequence[str], reference: Any) -> dict[str, tuple[str, float]] | None:
    """The best and the worst of texts, with their scores; None if all that have a score have the same."""
    different = list(dict.fromkeys(texts))
    scores = score_each(metric, [text.strip() for text in different], [stripped(reference)] * len(different)).tolist()
    scored = [(text, score) for text, score in zip(different, scores, strict=True) if not math.isnan(score)]
    sign = 1 if metric.higher_is_better else -1
    scored.sort(key=lambda found: -sign * found[1])  # of several that score alike, the first that was drawn
    if not scored or scored[0][1] == scored[-1][1]:
        return None
    worst = next(found for found in scored if found[1] == scored[-1][1])
    return {"chosen": scored[0], "rejected": worst}


def _as_said(pair: Mapping[str, tuple[str, float]], prompt: Any) -> dict[str, Any]:
    """A pair as columns, in the form of its prompt."""
    said = {
        name: [{"role": "assistant", "content": text}] if _is_conversation(prompt) else text
        for name, (text, _) in pair.items()
    }
    return said | {f"score_{name}": score for name, (_, score) in pair.items()}
