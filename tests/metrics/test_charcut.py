"""CharCut is that of its library."""

import difflib
import math
import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from hf_reloss import load_metric

from .test_text import corpora, official, same

PAIRS = [
    (
        "this week the saudis denied information published in the new york times",
        "saudi arabia denied this week information published in the american new york times",
    ),
    ("this is in fact an estimate", "this is actually an estimate"),
    ("ab, cd, ab... xyz " + "long text that stays where it is ", "long text that stays where it is xyz ab... cd"),
    ("...", "a...b ...c"),
    ("  naïve 猫的 🙂🙂🙂 ", "🙂🙂🙂 naive 猫的"),
    ("", "a"),
    (" ", ""),
]


def spans(text):
    """All that may match: runs of whole pieces, and parts of one word with what is around it."""
    pieces = [found.span() for found in re.finditer(r"\w+|\W", text)]
    of_pieces = {(a, d) for a, _ in pieces for _, d in pieces if a < d}
    words = [found.span() for found in re.finditer(r"\w+", text)] or [(0, len(text))]
    starts, ends = [0, *(end for _, end in words)], [*(start for start, _ in words[1:]), len(text)]
    inside = {
        (a, b)
        for start, (_, end), limit in zip(starts, words, ends, strict=False)
        for a in range(start, end)
        for b in range(a + 3, limit + 1)
    }
    return of_pieces, inside


def places(text, chosen):
    found = {}
    for a, b in sorted(chosen):
        found.setdefault(text[a:b], []).append(a)
    return found


def by_definition(one, two):
    """Characters that change, from a list of all common strings, which is gone through again after each match."""
    one, two = one.strip(), two.strip()
    candidates = {}
    for kind in (0, 1):
        first, second = places(one, spans(one)[kind]), places(two, spans(two)[kind])
        for text in first.keys() & second.keys():
            if len(text) >= 3:
                candidates[text] = first[text], second[text]
            elif one.startswith(text) and two.startswith(text):
                candidates[text] = [0], [0]
            elif one.endswith(text) and two.endswith(text):
                candidates[text] = [len(one) - len(text)], [len(two) - len(text)]
    ordered = sorted(
        ((text, *both) for text, both in candidates.items()),
        key=lambda match: (-len(match[0]), len(match[1]) == len(match[2]), len(match[1]) + len(match[2]), match[1]),
    )
    used, matches = (set(), set()), []
    while ordered:
        text, first, second = ordered[0]
        matches.append((first[0], second[0], text))
        for side, place in zip(used, matches[-1], strict=False):
            side.update(range(place, place + len(text)))

        def free(text, starts, side):
            return [start for start in starts if side.isdisjoint(range(start, start + len(text)))]

        kept = [(text, free(text, first, used[0]), free(text, second, used[1])) for text, first, second in ordered]
        ordered = [match for match in kept if all(match)]
    matches.sort()
    letters = [[(match, i) for match in order for i in range(len(match[2]))]
               for order in (matches, sorted(matches, key=lambda match: match[1]))]  # fmt: skip
    blocks = difflib.SequenceMatcher(None, *letters, autojunk=False).get_matching_blocks()
    still = {letters[0][place][0] for a, _, size in blocks for place in range(a, a + size)}
    cost = len(one) + len(two) - sum(2 * len(text) for *_, text in matches)
    for a, b, text in set(matches) - still:
        across = sorted(match for match in still if (match[0] - a) * (match[1] - b) < 0)
        before = across[0][0] < a
        distance = a - across[0][0] if before else across[-1][0] + len(across[-1][2]) - a - len(text)
        cost += len(text) * (1 if math.exp(len(text)) >= distance else 2)
    length = len(one) + len(two)
    return min(cost, length), length


@settings(max_examples=30, deadline=None)
@given(corpora(most=1), st.booleans())
def test_it_is_the_definition(corpus, shuffled):
    predictions, references = corpus[0], [text for [text] in corpus[1]]
    if shuffled:
        predictions = [" ".join(sorted(text.split())) for text in references]
    rows = [by_definition(*pair) for pair in zip(predictions, references, strict=True)]
    metric = load_metric("charcut_mt")
    assert metric.statistics(predictions, references).tolist() == [list(row) for row in rows]
    length = sum(row[1] for row in rows)
    assert same(metric.compute(predictions, references), sum(row[0] for row in rows) / length if length else 0)


def test_it_gives_what_its_library_gives():
    # What `charcut.calculate_charcut` gives each pair; of the first two together, the example of evaluate's module.
    theirs = [32 / 153, 9 / 55, 24 / 95, 7 / 13, 15 / 24, 1, 0]
    predictions, references = map(list, zip(*PAIRS, strict=True))
    metric = load_metric("charcut_mt")
    assert same(metric.score_groups(predictions, references, torch.arange(7)[:, None]).tolist(), theirs)
    assert same(metric.compute(predictions[:2], references[:2]), 0.1971153846153846)
    assert not metric.higher_is_better
    found = official(False, lambda predictions, references: {"charcut_mt": metric.compute(predictions, references)})
    assert same(metric.check_against(found, predictions, [[text] for text in references]), 0)
    with pytest.raises(ValueError, match="one reference per prediction, but got several"):
        metric.compute(["a"], [["a", "b"]])


def test_a_module_is_known_by_its_file_where_its_class_has_another_name():
    module = official(False, lambda predictions, references: {"charcut_mt": 0.5})
    type(module).__module__ = "evaluate_modules.metrics.evaluate-metric--charcut_mt.0123.charcut_mt"
    assert module.name == "official"
    assert load_metric(module) == load_metric("charcut_mt")
