"""Calibrated probabilities, and whether classes want biases."""

import pytest
import torch
import torch.nn.functional as F

from hf_reloss.decisions.calibration import best_width, calibrate

from .test_tuning import CLASSES, world


def test_the_temperature_is_that_of_the_likeliest_probabilities():
    logits, labels = world(0)(20_000)
    assert calibrate(logits, labels, 0.0)[0] == pytest.approx(1.0, abs=0.05)
    assert calibrate(5 * logits, labels, 0.0)[0] == pytest.approx(5.0, abs=0.25)
    easy = 9.0 * F.one_hot(labels, CLASSES).double()  # without an error there is no temperature
    assert 0 < calibrate(easy, labels, 0.0)[0] < 1


def test_biases_are_found_where_classes_are_biased_and_left_at_0_where_they_are_not():
    logits, labels = world(1, biased=1.5)(5_000)
    unbiased, _ = world(1, biased=0.0)(5_000)
    assert best_width(logits, labels) >= 0.5
    temperature, biases = calibrate(logits, labels, 1.0)
    assert temperature == pytest.approx(1.0, abs=0.1)
    wanted = (unbiased - logits)[0]
    assert torch.allclose(biases, (wanted - wanted.mean()).double(), atol=0.3)

    true, labels = world(2)(1_000)
    assert best_width(true, labels) <= 0.25
    assert calibrate(true, labels, 0.0)[1].abs().max() == 0
