"""Where heatmaps say that joints are."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from hf_reloss.losses.heatmaps import decode_heatmaps, default_sigma, gaussian_targets

from ..surrogates.test_keypoints import lit


@settings(max_examples=100, deadline=None)
@given(st.floats(3, 12), st.floats(3, 12), st.sampled_from([0.8, 1.0, 1.2]), st.sampled_from([None, 0.3, 1.0]))
def test_the_centre_of_a_gaussian_is_found_between_pixels(x, y, sigma, blur):
    centre = torch.tensor([x, y])
    found = decode_heatmaps(0.4 * gaussian_targets(centre, 16, 16, sigma)[None, None], sigma=blur)
    assert found.shape == (1, 1, 2)
    assert (found - centre).abs().max() < 0.05


@settings(max_examples=50, deadline=None)
@given(st.floats(-0.4, 15.4), st.floats(-0.4, 31.4))
def test_at_borders_it_is_found_too_where_little_is_made_smooth(x, y):
    centre = torch.tensor([x, y])
    found = decode_heatmaps(gaussian_targets(centre, 32, 16, 1.0)[None], sigma=0.3)[0]
    assert (found - centre).abs().max() < 0.05
    by_default = decode_heatmaps(gaussian_targets(centre, 32, 16, 1.0)[None])[0]
    assert (by_default - centre).abs().max() < 1.0


def test_the_shift_is_newtons_step_on_the_logarithm_written_out():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        # A slanted paraboloid under exp, so that all second derivatives are at work. Without smoothing it is as it is.
        a, b = 0.3 + torch.rand(2, generator=generator)
        twist = 0.4 * (torch.rand((), generator=generator) - 0.5)
        centre = 4 + torch.rand(2, generator=generator) - 0.5
        rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
        dx, dy = columns - centre[0], rows - centre[1]
        heatmap = torch.exp(-(a * dx**2 + b * dy**2) / 2 + twist * dx * dy)
        log = heatmap.log()
        y, x = divmod(int(heatmap.argmax()), 9)
        gradient = torch.stack([log[y, x + 1] - log[y, x - 1], log[y + 1, x] - log[y - 1, x]]) / 2
        mixed = (log[y + 1, x + 1] - log[y + 1, x - 1] - log[y - 1, x + 1] + log[y - 1, x - 1]) / 4
        hessian = torch.stack(
            [
                torch.stack([log[y, x + 1] - 2 * log[y, x] + log[y, x - 1], mixed]),
                torch.stack([mixed, log[y + 1, x] - 2 * log[y, x] + log[y - 1, x]]),
            ]
        )
        expected = torch.tensor([x, y]) - torch.linalg.solve(hessian, gradient)
        torch.testing.assert_close(decode_heatmaps(heatmap[None], sigma=0.05)[0], expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(expected, centre, rtol=1e-3, atol=1e-3)


def test_without_a_shift_the_highest_pixel_is_taken():
    assert decode_heatmaps(lit([(3, 7), (11, 0)]), shift=None).tolist() == [[[3, 7], [11, 0]]]


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 3), (16, 12)])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_heatmaps_that_are_the_same_everywhere_have_a_finite_place(size, value):
    found = decode_heatmaps(torch.full((2, 3, *size), value))
    assert found.tolist() == [[[0, 0]] * 3] * 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_what_is_found_lies_in_the_heatmap_and_near_its_highest_pixel(seed):
    heatmaps = torch.randn(4, 2, 9, 7, generator=torch.Generator().manual_seed(seed)) - 0.5
    found, pixel = decode_heatmaps(heatmaps), decode_heatmaps(heatmaps, shift=None)
    assert (found - pixel).abs().max() <= 1
    assert found.min() >= -0.5
    assert found[..., 0].max() <= 6.5
    assert found[..., 1].max() <= 8.5


def test_unknown_shifts_are_refused():
    with pytest.raises(ValueError, match="'dark' or None"):
        decode_heatmaps(torch.zeros(1, 4, 4), shift="quarter")


def test_targets_are_as_wide_as_usual():
    assert [default_sigma(*size) for size in ((64, 48), (96, 72), (16, 16))] == [2, 3, 1]
    target = gaussian_targets(torch.tensor([3.0, 5.0]), 64, 48)
    assert target[5, 3] == 1
    assert target[5, 5].item() == pytest.approx(math.exp(-0.5))
    assert gaussian_targets(torch.tensor([-90.0, 5.0]), 64, 48).max() == 0  # far outside
