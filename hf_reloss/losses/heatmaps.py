"""Heatmaps of keypoints: what they are trained to look like, and where they say that a joint is.

Coordinates are in pixels of the heatmap, x before y, with the centres of pixels at integers.
"""

import math

import torch
import torch.nn.functional as F

LITTLE = 1e-3
"""The share of a heatmap's peak that counts as nothing, where logarithms are taken."""


def labelled(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Points [..., 2] of labels [..., 3 or more], and which of them count [...]; points that do not are at 0.

    A joint counts if its visibility, which comes third, is above 0, and x and y are finite.
    """
    counts = labels[..., :2].isfinite().all(-1) & (labels[..., 2] > 0)
    return labels[..., :2].float().masked_fill(~counts[..., None], 0.0), counts


def squared_distances(points: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Squared distances [..., H, W] of all pixels from points [..., 2]."""
    x, y = (points[..., None, None, axis] for axis in (0, 1))
    columns, rows = (torch.arange(size, device=points.device) for size in (width, height))
    return (columns - x).square() + (rows[:, None] - y).square()


def default_sigma(height: int, width: int) -> float:
    """The standard deviation of targets, in pixels: a 32nd of the longer side, at least 1.

    It is 2 for heatmaps of 64×48, as is usual (Xiao et al. 2018, arXiv:1804.06208), and 3 for those of 96×72.
    """
    return max(1.0, max(height, width) / 32)


def gaussian_targets(points: torch.Tensor, height: int, width: int, sigma: float | None = None) -> torch.Tensor:
    """Heatmaps [..., H, W] of joints at points [..., 2], which may lie outside: Gaussians with a peak of 1.

    Args:
        points: float.
        height, width: of the heatmaps.
        sigma: standard deviation in pixels; by default `default_sigma`.
    """
    sigma = default_sigma(height, width) if sigma is None else sigma
    return torch.exp(squared_distances(points, height, width) / (-2 * sigma**2))


def squared_errors(heatmaps: torch.Tensor, points: torch.Tensor, sigma: float | None = None) -> torch.Tensor:
    """The mean squared errors [...] of heatmaps [..., H, W] against `gaussian_targets` of points [..., 2]."""
    height, width = heatmaps.shape[-2:]
    return (heatmaps - gaussian_targets(points, height, width, sigma)).square().mean((-2, -1))


@torch.no_grad()
def decode_heatmaps(heatmaps: torch.Tensor, shift: str | None = "dark", sigma: float | None = None) -> torch.Tensor:
    """Where joints are: the highest pixel of each heatmap, moved by a part of a pixel.

    The shift is DARK's (Zhang et al. 2020, arXiv:1910.06278, equations 6 to 9): near its peak the logarithm of the
    heatmap, made smooth by a Gaussian, is taken for a quadratic function, whose maximum is found by Newton's step. At a
    border the step is taken from the next pixel inside. It is no longer than one pixel in x and in y, and there is none
    where the function has no maximum, as in a heatmap that is the same everywhere.

    Args:
        heatmaps: [..., H, W]; peaks are above 0, if they are to be shifted.
        shift: `"dark"`, or None for whole pixels.
        sigma: standard deviation of the Gaussian in pixels; by default `default_sigma`.

    Returns:
        [..., 2] float32, x and y: finite, and within the heatmap, whose outermost pixels end half a pixel beyond their
        centres.

    Raises:
        ValueError: for another word than these.
    """
    if shift not in ("dark", None):
        raise ValueError(f"Unknown shift {shift!r} of decoded heatmaps: choose 'dark' or None.")
    height, width = heatmaps.shape[-2:]
    maps = heatmaps.reshape(-1, height, width).float()
    top = maps.flatten(1).argmax(-1)
    x, y = top % width, top.div(width, rounding_mode="floor")
    pixel = torch.stack([x, y], dim=-1).float()
    if shift is None or min(height, width) < 3 or len(maps) == 0:
        return pixel.view(*heatmaps.shape[:-2], 2)
    smooth = _blurred(maps, default_sigma(height, width) if sigma is None else sigma)
    peak = smooth.flatten(1).amax(-1)[:, None, None].clamp(min=torch.finfo(torch.float32).tiny)
    logs = torch.maximum(smooth, LITTLE * peak).log().flatten(1)
    x, y = x.clamp(1, width - 2), y.clamp(1, height - 2)

    def at(right: int, down: int) -> torch.Tensor:
        return logs.gather(-1, ((y + down) * width + x + right)[:, None])[:, 0]

    slope = torch.stack([at(1, 0) - at(-1, 0), at(0, 1) - at(0, -1)], dim=-1) / 2
    bend_x, bend_y = at(1, 0) + at(-1, 0) - 2 * at(0, 0), at(0, 1) + at(0, -1) - 2 * at(0, 0)
    twist = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    determinant = bend_x * bend_y - twist.square()
    has_maximum = (bend_x < 0) & (determinant > 1e-6 * bend_x.square())
    step = torch.stack([bend_y * slope[:, 0] - twist * slope[:, 1], bend_x * slope[:, 1] - twist * slope[:, 0]], dim=-1)
    step = -step / determinant.where(has_maximum, 1.0)[:, None]
    found = torch.stack([x, y], dim=-1) + step
    moved = (found - pixel).clamp(-1, 1).where(has_maximum[:, None], 0.0)
    edge = pixel.new_tensor([width - 0.5, height - 0.5])
    return (pixel + moved).clamp(min=-0.5).minimum(edge).view(*heatmaps.shape[:-2], 2)


def _blurred(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Heatmaps [n, H, W] made smooth by a Gaussian; beyond a border they are as at the border."""
    reach = math.ceil(2.5 * sigma)
    weights = torch.exp(torch.arange(-reach, reach + 1, device=maps.device).float().square() / (-2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(maps[:, None], (reach,) * 4, mode="replicate")
    across = F.conv2d(padded, weights[None, None, None])
    return F.conv2d(across, weights[None, None, :, None])[:, 0]
