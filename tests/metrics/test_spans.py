import pytest
import torch

from hf_reloss.metrics import load_metric
from hf_reloss.metrics.spans import segments

# Worked by hand from the official scripts: prediction, gold answers, exact match, F1.
SQUAD = [
    ("Denver Broncos", ["Denver Broncos"], 1, 1),
    ("the Denver Broncos!", ["Denver Broncos"], 1, 1),  # articles and punctuation do not count
    ("A  denver\tBRONCOS", ["Denver Broncos"], 1, 1),  # nor do case and white space
    ("Broncos Denver", ["Denver Broncos"], 0, 1),  # words are a bag
    ("Denver", ["Denver Broncos"], 0, 2 / 3),
    ("Denver Denver", ["Denver Broncos"], 0, 1 / 2),  # each word is shared once
    ("Carolina Panthers", ["Denver Broncos"], 0, 0),
    ("", ["Denver Broncos"], 0, 0),
    ("the", ["an"], 1, 0),  # in v1.1, nothing equals nothing, but shares no word with it
    ("1,200", ["1200"], 1, 1),  # punctuation leaves no gap
    ("north-east", ["north east"], 0, 0),
    ("theatre", ["atre"], 0, 0),  # an article is a word, not a part of one
    ("a.b.c", ["abc"], 1, 1),  # punctuation goes before articles, which are then no words
    ("Café Zürich", ["café zürich"], 1, 1),
    ("CAFÉ", ["cafe"], 0, 0),  # accents count
    ("“Paris”", ["Paris"], 0, 0),  # punctuation is that of ASCII
    ("東京", ["東京"], 1, 1),
    ("in 1976", ["1976", "in the year 1976", "In 1976."], 1, 1),  # the best of several
    ("the year 1976", ["1976", "year 1977 or 1978"], 0, 2 / 3),
]
# Likewise for questions that may have no answer.
SQUAD_V2 = [
    *(row for row in SQUAD if row[0] != "the"),
    ("", [], 1, 1),
    ("Paris", [], 0, 0),
    ("the", [], 1, 1),  # nothing is left of it
    ("...", [], 1, 1),
    ("the", ["an"], 1, 1),  # nor of the gold answer, which is as good as none
    ("Paris", ["a", "!"], 0, 0),
    ("", ["a", "Paris"], 0, 0),  # as there is one that something is left of
    ("the Paris", ["a", "Paris"], 1, 1),
    (None, [], 1, 1),
    (None, ["Paris"], 0, 0),
    (None, ["an"], 0, 0),  # said by its probability, the gold answer counts as it is
]
CMRC = [
    ("北京大学", ["北京大学"], 1, 1),
    ("北京大学。", ["《北京大学》"], 1, 1),
    ("北京", ["北京大学"], 0, 2 / 3),
    ("大学北京", ["北京大学"], 0, 1 / 2),  # a run, not a bag
    ("北京的大学", ["北京大学"], 0, 4 / 9),  # and not a subsequence: 2 of 5 and of 4
    ("上海", ["北京大学"], 0, 0),
    ("", ["北京"], 0, 0),
    ("。", ["！"], 1, 0),
    ("2008年8月8日", ["2008年8月8日"], 1, 1),
    ("2008年", ["2008年8月8日"], 0, 1 / 2),  # 2 of 2 and of 6: numbers are one token
    ("IPhone手机", ["iphone"], 0, 1 / 2),  # 1 of 3 and of 1
    ("the iPhone 6s", ["iphone 6s"], 0, 4 / 5),  # articles count
    ("A-B", ["ab"], 1, 1),  # punctuation leaves no gap
    ("北 京", ["北京"], 0, 1),  # inner white space counts for the exact match alone
    (" 北京 ", ["北京"], 1, 1),
    ("北京…", ["北京"], 0, 4 / 5),  # the ellipsis is in the script's list, but never found
    ("北京,", ["北京"], 0, 4 / 5),  # the comma of ASCII is not
    ("上海市", ["北京", "上海", "上海市区"], 0, 6 / 7),
]
TABLES = {
    "squad_exact_match": (SQUAD, 2),
    "squad_f1": (SQUAD, 3),
    "squad_v2_exact": (SQUAD_V2, 2),
    "squad_v2_f1": (SQUAD_V2, 3),
    "cmrc_exact_match": (CMRC, 2),
    "cmrc_f1": (CMRC, 3),
}
every_metric = pytest.mark.parametrize("name", TABLES)


def column(name):
    """Predictions, references and scores of a metric."""
    table, at = TABLES[name]
    return [row[0] for row in table], [row[1] for row in table], [100 * row[at] for row in table]


@every_metric
def test_each_answer_scores_as_worked_by_hand(name):
    metric = load_metric(name)
    for prediction, answers, expected in zip(*column(name), strict=True):
        assert metric.compute([prediction], [answers]) == pytest.approx(expected, abs=1e-9), (prediction, answers)


@every_metric
def test_a_score_is_the_mean_over_questions(name):
    predictions, references, expected = column(name)
    assert load_metric(name).compute(predictions, references) == pytest.approx(sum(expected) / len(expected), abs=1e-9)


@every_metric
def test_group_scores_equal_compute_on_the_same_subset(name):
    predictions, references, _ = column(name)
    index = torch.randint(len(predictions), (20, 7))
    metric = load_metric(name)
    scores = metric.score_groups(predictions, references, index)
    expected = [metric.compute([predictions[i] for i in rows], [references[i] for i in rows]) for rows in index]
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(expected, abs=1e-9)
    assert len(set(expected)) > 5


@every_metric
def test_no_questions_have_no_score(name):
    metric = load_metric(name)
    assert metric.statistics([], []).shape == (0, 2)
    assert torch.isnan(metric.score(torch.zeros(3, 2))).all()


@pytest.mark.parametrize(
    "as_reference",
    [
        lambda answers: tuple(answers),
        lambda answers: {"text": answers, "answer_start": [0] * len(answers)},
        lambda answers: {"id": "q", "answers": {"text": answers, "answer_start": [0] * len(answers)}},
    ],
)
@every_metric
def test_references_are_read_in_all_their_forms(name, as_reference):
    predictions, references, _ = column(name)
    given = [{"id": "q", "prediction_text": text} if isinstance(text, str) else text for text in predictions]
    metric = load_metric(name)
    assert metric.compute(given, [as_reference(r) for r in references]) == metric.compute(predictions, references)


def test_a_single_gold_answer_can_be_a_string():
    assert load_metric("squad_f1").compute(["Denver", "Paris"], ["Denver Broncos", "Paris"]) == pytest.approx(500 / 6)


def test_a_probability_above_the_threshold_says_that_there_is_no_answer():
    predictions = [{"prediction_text": "Paris", "no_answer_probability": p} for p in (0.2, 0.5, 0.9)]
    references = [[], [], ["Paris"]]
    assert load_metric("squad_v2_exact").compute(predictions, references) == pytest.approx(100 / 3)
    lower = load_metric("squad_v2_exact", no_answer_threshold=0.5)
    assert lower.compute(predictions, references) == 0  # 0.5 is not above 0.5
    lowest = load_metric("squad_v2_f1", no_answer_threshold=0.1)
    assert lowest.compute(predictions, references) == pytest.approx(200 / 3)


def test_evaluate_gets_its_own_form():
    given = load_metric("squad_v2_f1").for_evaluate(["Paris", None], ["Paris", []])
    assert given == {
        "predictions": [
            {"id": "0", "prediction_text": "Paris", "no_answer_probability": 0.0},
            {"id": "1", "prediction_text": "", "no_answer_probability": float("inf")},
        ],
        "references": [
            {"id": "0", "answers": {"text": ["Paris"], "answer_start": [0]}},
            {"id": "1", "answers": {"text": [], "answer_start": []}},
        ],
    }
    given = load_metric("squad_f1").for_evaluate(["Paris"], ["Paris"])
    assert given["predictions"] == [{"id": "0", "prediction_text": "Paris"}]


@pytest.mark.parametrize("name", ["squad_exact_match", "squad_f1", "squad_v2_exact", "squad_v2_f1"])
def test_what_evaluate_gets_is_scored_alike(name):
    class Module:
        """Scores what is made for `evaluate`, by the table."""

        def compute(self, predictions, references):
            table, at = TABLES[name]
            texts = [(text or "", answers) for text, answers, *_ in table]
            assert [
                (p["prediction_text"], r["answers"]["text"]) for p, r in zip(predictions, references, strict=True)
            ] == texts
            return {load_metric(name).evaluate_key: 100 * sum(row[at] for row in table) / len(table)}

    predictions, references, _ = column(name)
    assert load_metric(name).check_against(Module(), predictions, references) == pytest.approx(0, abs=1e-9)


def test_segments_are_chinese_characters_and_words_without_punctuation():
    assert segments("《哈利·波特》It's 3.5 GB的") == ["哈", "利", "波", "特", "it", "'s", "3.5", "gb", "的"]
    assert segments("他说：ok. 走") == ["他", "说", "ok", ".", "走"]
    assert segments("") == []


@pytest.mark.parametrize("name", ["squad_exact_match", "squad_f1", "cmrc_exact_match", "cmrc_f1"])
def test_a_question_without_gold_answer_is_refused(name):
    with pytest.raises(
        ValueError, match="at least one gold answer per question, but the one predicted as 'b' has none"
    ):
        load_metric(name).compute(["a", "b"], [["a"], []])


@every_metric
def test_other_lengths_are_refused(name):
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        load_metric(name).compute(["a", "b"], ["a"])


@every_metric
def test_ids_that_differ_are_refused(name):
    predictions = [{"id": "1", "prediction_text": "a"}, {"id": "2", "prediction_text": "b"}]
    references = [{"id": "1", "answers": {"text": ["a"]}}, {"id": "3", "answers": {"text": ["b"]}}]
    with pytest.raises(ValueError, match="question '2' where the reference is for '3'"):
        load_metric(name).compute(predictions, references)


@pytest.mark.parametrize("prediction", [3, {"text": "a"}, {"prediction_text": 3}, ["a"]])
@every_metric
def test_predictions_that_are_not_text_are_refused(name, prediction):
    with pytest.raises(ValueError, match="predictions that are strings"):
        load_metric(name).compute([prediction], ["a"])


@pytest.mark.parametrize("reference", [3, None, [3], {"answer": "a"}, [["a"]], torch.tensor([1, 2])])
@every_metric
def test_references_that_are_not_text_are_refused(name, reference):
    with pytest.raises(ValueError, match="gold answers of a question as a string"):
        load_metric(name).compute(["a"], [reference])


def test_only_questions_that_may_have_no_answer_take_none():
    with pytest.raises(ValueError, match="got None"):
        load_metric("squad_f1").compute([None], ["a"])
