"""Runs that are made once each, one after the other or side by side."""

import os

import pytest

from hf_reloss.compare.runs import environment, make_runs


def squared(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is below 0.")
    return number**2


def process(number: int) -> int:
    return os.getpid()


JOBS = {f"of {number}": (number,) for number in (1, 2, 3)}


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_missing_is_made_and_stored_as_it_ends(workers):
    done, stored = {"of 2": -1}, []
    for key in make_runs(JOBS, squared, done, lambda: stored.append(dict(done)), workers=workers):
        assert key in stored[-1]
    assert done == {"of 1": 1, "of 2": -1, "of 3": 9}
    assert len(stored) == 2


def test_side_by_side_they_have_processes_of_their_own():
    done = {}
    list(make_runs(JOBS, process, done, lambda: None, workers=2))
    assert os.getpid() not in done.values()


@pytest.mark.parametrize("workers", [0, 2])
def test_one_that_fails_ends_all_unless_somebody_hears_of_it(workers):
    jobs = {"bad": (-1,)} | JOBS
    with pytest.raises(ValueError, match="-1 is below 0"):
        list(make_runs(jobs, squared, {}, lambda: None, workers=workers))
    done, heard = {}, {}
    keys = list(make_runs(jobs, squared, done, lambda: None, workers=workers, on_error=heard.__setitem__))
    assert sorted(keys) == sorted(jobs)
    assert done == {"of 1": 1, "of 2": 4, "of 3": 9}
    assert [*heard] == ["bad"]
    assert str(heard["bad"]) == "-1 is below 0."


def test_what_is_not_wanted_any_more_is_passed_over():
    done = {}
    keys = list(make_runs(JOBS, squared, done, lambda: None, is_wanted=lambda key: len(done) < 1))
    assert keys == [*JOBS]
    assert done == {"of 1": 1}


def test_the_environment_names_what_runs_depend_on():
    assert {"python", "machine", "torch", "transformers", "hf-reloss"} <= environment().keys()
