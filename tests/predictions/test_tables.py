"""Predictions from files: what is taken for scores, labels and names of classes."""

import datasets
import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from hf_reloss.predictions.tables import columns_of, logits_of, read_table, scored_labels

SCORES = np.array([[2.0, -1.0, 0.5], [0.0, 1.5, -2.0], [0.1, 0.2, 0.3], [-1.0, -3.0, 4.0]])
NAMES = ("cat", "dog", "fox")


def written(path, columns):
    table = pyarrow.table(columns)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.csv.write_csv(table, path)
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize(
    "given", [["cat", "dog", None, "fox"], [0, 1, None, 2], ["score_cat", "score_dog", None, "score_fox"]]
)
def test_labels_are_numbers_or_names_of_classes(tmp_path, ending, given):
    columns = {"id": [7, 8, 9, 10]} | {f"score_{name}": SCORES[:, place] for place, name in enumerate(NAMES)}
    table = read_table(written(tmp_path / f"p{ending}", columns | {"label": given}))
    assert columns_of(table) == ([f"score_{name}" for name in NAMES], ["label"])
    found = scored_labels(table)
    assert found.labels.tolist() == [0, 1, -100, 2]
    assert found.names == NAMES
    assert not found.of_probabilities
    assert torch.equal(found.logits, torch.from_numpy(SCORES))


def test_columns_can_be_chosen_and_grades_from_one_on_are_found_by_their_names():
    table = {"noise": SCORES[:, 0]} | {str(grade): SCORES[:, grade - 1] for grade in (1, 2, 3)}
    table |= {"grade": np.array([1, 2, 3, 1])}
    assert scored_labels(table, ["1", "2", "3"]).labels.tolist() == [0, 1, 2, 0]
    assert scored_labels(table, ["1", "2", "3"], ["grade"]).logits.shape == (4, 3)


def test_probabilities_become_logits_that_differ_by_a_constant_only():
    logits = torch.from_numpy(SCORES)
    found = logits_of(logits.softmax(-1), torch.tensor([0, 1, 2, 0]))
    assert found.of_probabilities
    assert torch.allclose(found.logits - found.logits[:, :1], logits - logits[:, :1])
    labels = torch.randint(2, logits.shape)
    several = logits_of(logits.sigmoid(), labels)
    assert several.of_probabilities
    assert torch.allclose(several.logits, logits)
    assert logits_of(torch.tensor([[0.0, 1.0]]), torch.tensor([1])).logits.isfinite().all()
    assert not logits_of(torch.rand(4), torch.rand(4)).of_probabilities  # a number stays what it is


def test_several_labels_go_by_their_names():
    table = {f"p_{name}": SCORES[:, place] for place, name in enumerate(NAMES)}
    table |= {"label_fox": np.array([0, 1, 0, 1]), "label_cat": np.array([1, 0, 0, 0])}
    table |= {"label_dog": np.array([0.0, 0.0, 1.0, np.nan])}
    assert scored_labels(table).labels.T.tolist() == [[1, 0, 0, 0], [0, 0, 1, -100], [0, 1, 0, 1]]


def test_what_was_recorded_is_read_from_lists(tmp_path):
    one, several = [0, 1, 2, 0], [[0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]]
    for logits, labels in (("logits", one), ("label_logits", several)):
        rows = {logits: SCORES.tolist(), "labels": labels, "stage": [1.0] * 4}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "p.parquet")
        found = scored_labels(read_table(tmp_path / "p.parquet"))
        assert np.allclose(found.logits, SCORES)
        assert found.labels.tolist() == labels


def test_one_column_of_scores_is_of_numbers():
    found = scored_labels({"value": SCORES[:, 0], "label": np.array([2, 0, 1, 1])})
    assert found.logits.shape == (4, 1)
    assert found.labels.dtype == torch.float64


@pytest.mark.parametrize(
    ("changed", "chosen", "message"),
    [
        ({"label": np.array(["cat", "cow", "fox", "cat"])}, None, "The labels 'cow' are no names of columns of scores"),
        ({"score_cat": np.array([1.0, np.nan, 0.0, 0.0])}, None, "1 of 4 rows lack a score"),
        ({}, ["label"], "not in the column 'label'"),
        ({}, ["score_cow"], "has no column 'score_cow'"),
        ({}, [], "has no column of scores"),
        ({"label_2": np.zeros(4)}, None, "2 of labels and 3 of scores"),
    ],
)
def test_what_does_not_fit_is_refused(changed, chosen, message):
    table = {f"score_{name}": SCORES[:, place] for place, name in enumerate(NAMES)}
    table |= {"label": np.array(["cat", "dog", "fox", "cat"])} | changed
    with pytest.raises(ValueError, match=message):
        scored_labels(table, chosen)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "p.parquet").write_text("label\n1\n")
    with pytest.raises(ValueError, match="cannot be read"):
        read_table(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"is no \.csv, \.tsv or \.parquet file"):
        read_table(tmp_path / "p.json")
    ragged = {"logits": [[1.0, 2.0], [1.0]], "label": [0, 1]}
    with pytest.raises(ValueError, match="lists of different lengths"):
        read_table(written(tmp_path / "q.parquet", ragged))
