import io
import math

import pytest
from rich.console import Console

from hf_reloss.compare.statistics import comparison_table, paired_difference


def test_the_interval_is_students():
    # differences 1, 2, 3, 4: mean 2.5, standard error 0.6455, t(0.975, 3) = 3.1824
    difference = paired_difference({0: 11, 1: 12, 2: 13, 3: 14, 9: 99}, {0: 10, 1: 10, 2: 10, 3: 10, 8: 0})
    assert difference.mean == 2.5
    assert difference.low == pytest.approx(2.5 - 3.18245 * 0.645497, abs=1e-4)
    assert difference.high == pytest.approx(2.5 + 3.18245 * 0.645497, abs=1e-4)
    assert difference.pairs == 4


def test_one_pair_has_no_interval_and_none_is_an_error():
    single = paired_difference({1: 2.0}, {1: 1.0})
    assert math.isnan(single.low)
    assert single.to(4) == "+1.0000"
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference({1: 2.0}, {2: 1.0})


def test_the_table_holds_means_differences_alignment_and_failures():
    table = comparison_table(
        {"cross_entropy": {0: 80.0, 1: 82.0}, "reloss": {0: 81.0, 1: 82.5}},
        "cross_entropy",
        title="t",
        metric="accuracy",
        alignments={"reloss": 0.987},
        failed={"focal": "ValueError: no [b] here"},
    )
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    lines = console.export_text().splitlines()
    row = next(line for line in lines if "ReLoss" in line)
    for cell in ("81.75", "+0.75", "2 of 2", "0.987"):
        assert cell in row
    row = next(line for line in lines if "focal" in line)
    assert "ValueError: no [b] here" in row
