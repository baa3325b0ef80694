"""CharCut: characters that have to be changed, where long strings may move as a whole."""

import difflib
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from .text import TextMetric

SHORTEST = 3
"""How many characters a match has at least, unless it is of words that both texts begin or end with."""

Match = tuple[int, int, int]
"""Where a match starts, in the prediction and in the reference, and its length, in characters."""

Found = tuple[str, list[int], list[int]]
"""What two texts have in common, and where it starts in each."""

Reader = tuple[list[int], Callable[[int, int], str]]
"""Where in a text matches may start, and what follows, of a start and a place behind it: a piece, or "" for no more."""


@dataclass(frozen=True)
class CharCut(TextMetric):
    """CharCut (Lardilleux and Lepage 2017) of evaluate: edited characters per character of both texts, in [0, 1].

    Matches are taken from the longest: runs of whole words, and parts of one word with what is around it. What matches
    in another order has moved, and costs its length once, or twice if it is short and moved far. Equal to
    `charcut.calculate_charcut`, which reads each line as a text: here lines are of the text that they are in. One
    reference per prediction. Statistics: [N, 2], the cost and the characters of both texts; 0 where there are none.
    """

    name: ClassVar[str] = "charcut_mt"
    higher_is_better: ClassVar[bool] = False
    evaluate_nests: ClassVar[bool] = False

    def _rows(self, predictions: list[str], references: list[list[str]]) -> Sequence[Sequence[float]]:
        rows = []
        for prediction, reference in zip(predictions, self.one_each(references), strict=True):
            texts = prediction.strip(), reference.strip()
            length = sum(map(len, texts))
            rows.append((min(_cost(*texts), length), length))
        return rows

    def _score(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[..., 0] / sums[..., 1].clamp(min=1)


def _cost(prediction: str, reference: str) -> int:
    """The characters that are taken out, put in or moved."""
    matches = sorted(_matches(prediction, reference))
    cost = len(prediction) + len(reference) - 2 * sum(size for *_, size in matches)
    in_place = _in_order(matches)
    for match in matches:
        if match not in in_place:
            far = math.log(_distance(match, in_place)) > match[2]
            cost += match[2] * (2 if far else 1)
    return cost


def _matches(prediction: str, reference: str) -> Iterator[Match]:
    """What both texts have, from the longest, each character once."""
    found = {text: (starts, others) for text, starts, others in _runs_of_words(prediction, reference)}
    for text, starts, others in _common(_within_words(prediction), _within_words(reference)):
        if len(text) >= SHORTEST:
            found[text] = starts, others
    free = [True] * len(prediction), [True] * len(reference)

    def order(text: str) -> tuple[int, bool, int, list[int]]:
        starts, others = found[text]
        return -len(text), len(starts) == len(others), len(starts) + len(others), starts

    for text in sorted(found, key=order):
        size = len(text)
        left: tuple[list[int], ...] = found[text]
        while True:
            left = tuple(
                [start for start in starts if all(side[start : start + size])]
                for starts, side in zip(left, free, strict=True)
            )
            if not all(left):
                break
            for starts, side in zip(left, free, strict=True):
                side[starts[0] : starts[0] + size] = [False] * size
            yield left[0][0], left[1][0], size


def _runs_of_words(prediction: str, reference: str) -> Iterator[Found]:
    """Runs of words and other characters in both: long ones and, however short, the beginning and the end of both."""
    for text, starts, others in _common(_words(prediction), _words(reference)):
        ends = len(prediction) - len(text), len(reference) - len(text)
        if len(text) >= SHORTEST:
            yield text, starts, others
        elif starts[0] == others[0] == 0:
            yield text, [0], [0]
        elif ends[0] == starts[-1] and ends[1] == others[-1]:
            yield text, [ends[0]], [ends[1]]


def _common(first: Reader, second: Reader) -> Iterator[Found]:
    """All that two texts have in common, piece by piece."""
    (starts, piece), (others, other_piece) = first, second
    todo = [("", starts, others)]
    while todo:
        text, *both = todo.pop()
        longer: list[dict[str, list[int]]] = [defaultdict(list), defaultdict(list)]
        for found, places, read in zip(longer, both, (piece, other_piece), strict=True):
            for start in places:
                found[read(start, start + len(text))].append(start)
        for more in longer[0].keys() & longer[1].keys() - {""}:
            grown = text + more, longer[0][more], longer[1][more]
            yield grown
            todo.append(grown)


def _words(text: str) -> Reader:
    """Words and single other characters as pieces."""
    pieces = {found.start(): found[0] for found in re.finditer(r"\w+|\W", text)}
    return list(pieces), lambda start, place: pieces.get(place, "")


def _within_words(text: str) -> Reader:
    """Characters as pieces: of one word, with what is before and behind it."""
    words = [found.span() for found in re.finditer(r"\w+", text)] or [(0, len(text))]
    until = [start for start, _ in words[1:]] + [len(text)]
    begin, limits = 0, dict[int, int]()
    for (_, end), limit in zip(words, until, strict=True):
        limits |= dict.fromkeys(range(begin, end), limit)
        begin = end
    return list(limits), lambda start, place: text[place] if place < limits[start] else ""


def _in_order(matches: list[Match]) -> set[Match]:
    """The matches that have not moved, of all in the prediction's order: those of the longest blocks of both."""
    sides = matches, sorted(matches, key=lambda match: match[1])
    first, second = ([(match, place) for match in side for place in range(match[2])] for side in sides)
    blocks = difflib.SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    inside = itertools.chain.from_iterable(first[start : start + size] for start, _, size in blocks)
    return {match for match, _ in inside}


def _distance(moved: Match, in_place: set[Match]) -> int:
    """How many characters lie between a match that moved and the far end of those that it moved across."""
    crossed = sorted(match for match in in_place if (match[0] < moved[0]) != (match[1] < moved[1]))
    if crossed[0][0] < moved[0]:
        return moved[0] - crossed[0][0]
    return crossed[-1][0] + crossed[-1][2] - moved[0] - moved[2]
