"""What is read by models that answer questions with a span of a text, and what answers are read out of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from common import DatasetArguments, check_columns

from hf_reloss.surrogates.spans import best_spans

OUTSIDE = -1
"""The offset of tokens that are not of the context."""


@dataclass
class QuestionDataArguments(DatasetArguments):
    """DatasetArguments, for questions about a context."""

    question_column: str = field(default="question", metadata={"help": "The column of questions."})
    context_column: str = field(default="context", metadata={"help": "The column of the texts with the answers."})
    answer_column: str = field(
        default="answers", metadata={"help": "The column of answers: text and answer_start, a list each."}
    )
    max_seq_length: int = field(default=384, metadata={"help": "Longer texts are taken in parts of so many tokens."})
    doc_stride: int = field(default=128, metadata={"help": "How many tokens two parts share."})
    max_answer_length: int = field(default=30, metadata={"help": "No longer answer, in tokens, is predicted."})
    version_2_with_negative: bool = field(default=False, metadata={"help": "Questions may have no answer."})
    null_score_diff_threshold: float = field(
        default=0.0, metadata={"help": "By how much the score of no answer must be above the best one's."}
    )


def make_features(examples: datasets.Dataset, tokenizer: Any, data_args: QuestionDataArguments) -> datasets.Dataset:
    """What the model reads: each question with a part of its context that fits, one after the other.

    Of the first answer, `start_positions` and `end_positions` are those of its first and last token, or 0 where the
    part does not hold all of it. `example` is the number of the example, and `offsets` [L, 2] are where the tokens
    begin and end in its context, -1 for those that are not of it.

    Raises:
        ValueError: for columns that are missing, a slow tokenizer, or parts that are no longer than what they share.
    """
    question, context, answers = data_args.question_column, data_args.context_column, data_args.answer_column
    check_columns(examples, question_column=question, context_column=context, answer_column=answers)
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand in the text: take a fast one."
        )
    length = min(data_args.max_seq_length, tokenizer.model_max_length)
    if data_args.doc_stride >= length:
        raise ValueError(f"--doc_stride {data_args.doc_stride} wants to be less than --max_seq_length, here {length}.")

    def encode(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        encoded = tokenizer(
            [text.strip() for text in batch[question]],
            batch[context],
            truncation="only_second",
            max_length=length,
            stride=data_args.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        columns = {**encoded, "example": [indices[row] for row in rows], "offsets": []}
        positions = []
        for part, (row, places) in enumerate(zip(rows, offsets, strict=True)):
            of_context = np.array(encoded.sequence_ids(part), dtype=float) == 1
            columns["offsets"].append(np.where(of_context[:, None], np.array(places), OUTSIDE))
            positions.append(_answer_positions(columns["offsets"][-1], batch[answers][row]))
        columns["start_positions"], columns["end_positions"] = map(list, zip(*positions, strict=True))
        return columns

    return examples.map(
        encode, batched=True, with_indices=True, remove_columns=examples.column_names, desc="tokenizing"
    )


def _answer_positions(offsets: np.ndarray, answers: dict[str, Sequence]) -> tuple[int, int]:
    """The first and the last token of the first answer, of offsets [L, 2]; (0, 0) if it is not all there."""
    inside = np.flatnonzero(offsets[:, 0] != OUTSIDE)
    if not len(answers["text"]) or not len(inside):
        return 0, 0
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    if begin < offsets[inside[0], 0] or end > offsets[inside[-1], 1]:
        return 0, 0
    tokens = inside[(offsets[inside, 1] > begin) & (offsets[inside, 0] < end)]
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else (0, 0)


class AnswerReader:
    """Reads answers out of a model's logits: for each example the best span of all parts of its context.

    Args:
        examples, features: as `make_features` takes and gives them.
        data_args: the columns, and how answers are chosen.
    """

    chunk = 256  # features whose spans are scored at once

    def __init__(self, examples: datasets.Dataset, features: datasets.Dataset, data_args: QuestionDataArguments):
        self.data_args = data_args
        self.contexts = examples[data_args.context_column][:]
        self.references = [list(answers["text"]) for answers in examples[data_args.answer_column]]
        self.example, self.offsets = features["example"][:], features.with_format("numpy")["offsets"][:]

    def __call__(self, start_logits: np.ndarray, end_logits: np.ndarray) -> list[str]:
        """An answer for each example, "" for none, from logits [features, L] in the order of the features.

        Only with `version_2_with_negative` there may be none, or where no token of the context was seen.
        """
        best = [(-np.inf, "")] * len(self.contexts)
        none = [np.inf] * len(self.contexts)
        for first in range(0, len(self.example), self.chunk):
            rows = range(first, min(first + self.chunk, len(self.example)))
            logits = torch.as_tensor(np.stack([start_logits[first : rows.stop], end_logits[first : rows.stop]])).float()
            inside = torch.zeros(logits.shape[1:], dtype=torch.bool)
            for row in rows:
                of_context = torch.from_numpy(self.offsets[row][:, 0] != OUTSIDE)
                inside[row - first, : len(of_context)] = of_context
            spans, scores = best_spans(*logits.masked_fill(~inside, -torch.inf), self.data_args.max_answer_length)
            nothing = logits[..., 0].sum(0).tolist()
            for row, (start, end), score, null in zip(rows, spans.tolist(), scores.tolist(), nothing, strict=True):
                example = self.example[row]
                none[example] = min(none[example], null)
                if score > best[example][0]:
                    begin, stop = self.offsets[row][start][0], self.offsets[row][end][1]
                    best[example] = score, self.contexts[example][begin:stop]
        if not self.data_args.version_2_with_negative:
            return [text for _, text in best]
        threshold = self.data_args.null_score_diff_threshold
        return ["" if null - score > threshold else text for null, (score, text) in zip(none, best, strict=True)]
